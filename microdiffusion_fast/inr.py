"""The prior: an implicit neural representation fitted to the projections through A.

A multiresolution hash grid and a small MLP give an intensity at every voxel; what is compared
with the data is its projections, never slices. Cells are as long along z as the slab allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError
from .forward_model import AxialProjection
from .kernels.hash_encoding import HashGridSpec, hash_encoding_grid
from .progress import Progress, ProgressCallback


@dataclass(frozen=True)
class INROptions:
    """How the INR is built and fitted.

    Attributes:
        levels: resolutions of the hash grid; the finest has about one cell per pixel.
        features: features per level.
        log2_hashmap_size: entries a level has at most, as a power of two.
        width: neurons in each of the two hidden layers.
        steps: optimiser steps at most; large images take more, so that every column is seen
            four times on average.
        tile: side of the square of columns that a step sees, in pixels.
        learning_rate: of the grid; the MLP takes a third.
        smoothness: weight of the squared second difference along z.

    A tile of 40 keeps the arrays of a step under 32 MB, where glibc reuses memory: a tile of 64
    took four times as long on two cores (0.29 s a step against 0.07 s at 96 slices).
    """

    levels: int = 6
    features: int = 4
    log2_hashmap_size: int = 18
    width: int = 32
    steps: int = 120
    tile: int = 40
    learning_rate: float = 2e-2
    smoothness: float = 0.03

    def __post_init__(self) -> None:
        for name in (
            "levels",
            "features",
            "log2_hashmap_size",
            "width",
            "steps",
            "tile",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"inr {name}", "an integer of at least 1", value)


class HashGridINR(nn.Module):
    """Intensity of a volume [Z, Y, X] as a function of the voxel.

    tiny-cuda-nn's grid is isotropic, so anisotropy is in the coordinates: z is divided by
    `axial_cell` slices, and the longest side of the result fills [0, 1].
    """

    BASE_RESOLUTION = 8
    VOXELS_AT_ONCE = 1 << 14

    def __init__(self, shape: tuple[int, int, int], axial_cell: float, options: INROptions) -> None:
        super().__init__()
        depth, height, width = shape
        longest = max(height, width, depth / axial_cell)
        finest = max(longest, self.BASE_RESOLUTION)
        growth = (finest / self.BASE_RESOLUTION) ** (1 / max(options.levels - 1, 1))
        self.shape = shape
        self.spec = HashGridSpec(
            options.levels,
            options.features,
            options.log2_hashmap_size,
            self.BASE_RESOLUTION,
            max(growth, 1.0),
        )
        units = (longest * axial_cell, longest, longest)
        self.axes = [(torch.arange(n) + 0.5) / unit for n, unit in zip(shape, units, strict=True)]
        self.table = nn.Parameter(torch.empty(self.spec.n_entries, options.features))
        self.mlp = nn.Sequential(
            nn.Linear(self.spec.n_outputs, options.width),
            nn.ReLU(inplace=True),
            nn.Linear(options.width, options.width),
            nn.ReLU(inplace=True),
            nn.Linear(options.width, 1),
        )

    def initialise(self, mean: float, generator: torch.Generator) -> None:
        """Seeded start: a nearly constant volume at the mean of the projections."""
        with torch.no_grad():
            self.table.uniform_(-1e-4, 1e-4, generator=generator)
            for layer in self.mlp:
                if isinstance(layer, nn.Linear):
                    bound = math.sqrt(6 / layer.in_features)
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.zero_()
            last = self.mlp[-1]
            assert isinstance(last, nn.Linear)
            last.bias.fill_(mean)

    def forward(self, rows: slice, columns: slice) -> Tensor:
        """All slices of a rectangle of columns, [Z, rows, columns]."""
        z, y, x = (axis.to(self.table.device) for axis in self.axes)
        features = hash_encoding_grid((z, y[rows], x[columns]), self.table, self.spec)
        # in parts whose activations stay in a cache: most of a step is the MLP, and it takes a
        # quarter less time so
        parts = [self.mlp(part) for part in features.flatten(0, 2).split(self.VOXELS_AT_ONCE)]
        return torch.cat(parts).view(features.shape[:3])

    @torch.no_grad()
    def render(self, rows_at_once: int = 16) -> Tensor:
        """The prior on the voxel grid, [Z, Y, X]: every voxel once."""
        height = self.shape[1]
        parts = [
            self(slice(low, min(low + rows_at_once, height)), slice(None))
            for low in range(0, height, rows_at_once)
        ]
        return torch.cat(parts, dim=1)


def estimate_noise(images: Tensor) -> float:
    """Standard deviation of white noise in images [K, Y, X], robust against structure.

    Source: Immerkaer 1996, "Fast Noise Variance Estimation", with the median in place of the mean.
    """
    if min(images.shape[1:]) < 3:
        return 0.0
    rows = images[:, 2:] - 2 * images[:, 1:-1] + images[:, :-2]
    both = rows[..., 2:] - 2 * rows[..., 1:-1] + rows[..., :-2]
    return float(both.abs().flatten().median()) / (0.6745 * 6)


def fit_inr(
    projections: Tensor,
    operator: AxialProjection,
    *,
    options: INROptions | None = None,
    seed: int = 0,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> HashGridINR:
    """Fit an INR to projections [K, Y, X] through the operator, by Adam on random tiles.

    It stops early once the error of the projections is down to their noise.

    Args:
        projections: intensities that span about [0, 1].
        operator: the acquisition; gives depth, windows and weights.
        options: see `INROptions`.
        seed: of the start and of the tiles; the same seed gives the same bits.

    Raises:
        InputError: options out of range.

    Source: MicroDiffusion (arXiv 2403.10815), section 3.2; Mueller et al. 2022 for the grid.
    """
    options = options or INROptions()
    height, width = projections.shape[1:]
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    axial_cell = float(min(operator.step_length, operator.stride))
    inr = HashGridINR((operator.depth, height, width), axial_cell, options)
    inr.initialise(float(projections.mean()), generator)
    inr.to(projections.device)
    groups = [
        {"params": [inr.table], "lr": options.learning_rate},
        {"params": list(inr.mlp.parameters()), "lr": options.learning_rate / 3},
    ]
    tall, wide = min(options.tile, height), min(options.tile, width)
    once = math.ceil(height * width / (tall * wide))
    steps = max(options.steps, 4 * once)
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min(1.0, (i + 1) / 10, 3 * (1 - i / steps) + 0.02)
    )
    # no closer than the noise: what would be fitted beyond it is not there
    floor, smoothed = max(estimate_noise(projections), 1e-3) ** 2, 0.0
    with Progress("fit INR", steps, enabled=progress, callback=callback) as bar:
        for step in range(steps):
            low = int(rng.integers(height - tall + 1))
            left = int(rng.integers(width - wide + 1))
            rows, columns = slice(low, low + tall), slice(left, left + wide)
            volume = inr(rows, columns)
            error = (operator(volume) - projections[:, rows, columns]).square().mean()
            bend = (volume[2:] - 2 * volume[1:-1] + volume[:-2]).square().mean()
            loss = error + options.smoothness * bend
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            decay.step()

            smoothed = 0.9 * smoothed + 0.1 * float(error.detach())
            level = smoothed / (1 - 0.9 ** (step + 1))
            bar.advance(1, note=f"error {math.sqrt(level):.4f}")
            if level < floor and step >= once:
                break
    return inr
