"""The fast INR: a multiresolution hash grid and a small MLP, fitted on random squares of columns.

Cells are as long along z as the slab allows. Source: Mueller et al. 2022 (arXiv 2201.05989).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .inr_base import INR, Columns, check_counts
from .kernels.hash_encoding import HashGridSpec, hash_encoding_grid


@dataclass(frozen=True)
class INROptions:
    """How the hash-grid INR is built and fitted.

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

    Raises:
        InputError: a number out of range.

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
        check_counts(self, ("levels", "features", "log2_hashmap_size", "width", "steps", "tile"))


class HashGridINR(INR):
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
        self.options = options
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

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam as tiny-cuda-nn sets it for hash grids, whose gradients are sparse."""
        rate = self.options.learning_rate
        groups = [
            {"params": [self.table], "lr": rate},
            {"params": list(self.mlp.parameters()), "lr": rate / 3},
        ]
        return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)

    def steps(self) -> tuple[int, int]:
        """Optimiser steps at most, and how many of them see about every column once."""
        _, height, width = self.shape
        tall, wide = self._tile()
        once = math.ceil(height * width / (tall * wide))
        return max(self.options.steps, 4 * once), once

    def rate(self, step: int, steps: int) -> float:
        """Ten steps of warm-up; linear decay over the last third."""
        return min(1.0, (step + 1) / 10, 3 * (1 - step / steps) + 0.02)

    def choose(self, rng: np.random.Generator) -> Columns:
        """A square of neighbouring columns, whose cells of the grid are shared."""
        _, height, width = self.shape
        tall, wide = self._tile()
        low = int(rng.integers(height - tall + 1))
        left = int(rng.integers(width - wide + 1))
        return slice(low, low + tall), slice(left, left + wide)

    def penalty(self, volume: Tensor) -> Tensor:
        """Squared second difference along z."""
        bend = (volume[2:] - 2 * volume[1:-1] + volume[:-2]).square().mean()
        return self.options.smoothness * bend

    def _tile(self) -> tuple[int, int]:
        _, height, width = self.shape
        return min(self.options.tile, height), min(self.options.tile, width)
