"""The paper's INR: random Fourier features into a residual MLP, fitted on a lattice of columns.

The features of a voxel v are cos and sin of `2 pi B v`: 2 KB, thousands of times what is known of
it. On a grid they need not be made voxel by voxel. The phase is a sum over the axes, so a layer
on the features of row y is another layer on those of the plane (z, x): its weights are turned by
the phase of y (the angle sum). A few rows share a plane, and all of it is matrix products.

Source: MicroDiffusion (arXiv 2403.10815), section 3.2; Tancik et al. 2020 (arXiv 2006.10739).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from .errors import InputError
from .inr_base import INR, Columns, check_counts


@dataclass(frozen=True, kw_only=True)
class FourierOptions:
    """How the Fourier INR is built and fitted.

    Attributes:
        features: cos and sin together; half as many frequencies.
        scale: standard deviation of the frequencies, in cycles per unit of coordinates that span
            [-1, 1] along every axis.
        axial_scale: the same along z, `scale` as published; None for what the windows resolve
            (`resolved`), `scale` at most.
        width: neurons in a hidden layer.
        steps: optimiser steps at most; large images take more, so that every column is seen
            once on average.
        voxels: about how many voxels a step sees, in whole columns.
        learning_rate: of Adam; falls along a cosine to a twentieth.

    Raises:
        InputError: a number out of range.

    A step costs 0.05 s of one core of an AMD EPYC (torch 2.13) whatever the volume, so the default
    a minute. On a phantom of 60 x 64 x 64, 250 steps ended at 24.5 dB and 500 at 26.1.
    """

    features: int = 512
    scale: float = 4.0
    axial_scale: float | None = None
    width: int = 64
    steps: int = 1000
    voxels: int = 10_000
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_counts(self, ("features", "width", "steps", "voxels"))
        for name in ("features", "width"):
            if getattr(self, name) % 2:
                raise InputError(f"inr {name}", "an even number", getattr(self, name))
        for name in ("scale", "axial_scale", "learning_rate"):
            value = getattr(self, name)
            if name == "axial_scale" and value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise InputError(f"inr {name}", "a number above 0", value)

    def resolved(self, depth: int, axial_cell: float) -> FourierOptions:
        """These options with an `axial_scale`, for windows `axial_cell` slices apart.

        Frequencies of standard deviation s correlate over `depth / (4 pi s)` slices, and between
        the windows nothing holds finer ones: the published 4 along z, 2 slices of 96, fits every
        projection and is worse than linear interpolation. So a window is the least length.
        """
        if self.axial_scale is not None:
            return self
        return replace(self, axial_scale=min(self.scale, depth / (4 * math.pi * axial_cell)))


class FourierINR(INR):
    """Intensity of a volume [Z, Y, X] as a function of the voxel, through random Fourier features.

    Every axis spans [-1, 1] by itself: slice, row or column i of n lies at `(2 i + 1) / n - 1`.
    The features enter four layers, and again, beside what these give, four more; a layer of half
    the width and a linear one follow.

    Attributes:
        frequencies: B along (z, y, x), [features / 2, 3]; in the state, so that the state is all.
    """

    # Of one pass through the network: rows that share a plane, and voxels, whose activations
    # then stay in a cache.
    ROWS_AT_ONCE = 16
    VOXELS_AT_ONCE = 1 << 13

    frequencies: Tensor

    def __init__(self, shape: tuple[int, int, int], options: FourierOptions | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.options = options = options or FourierOptions()
        width = options.width
        self.register_buffer("frequencies", torch.zeros(options.features // 2, 3))
        self.first = nn.Linear(options.features, width)
        self.before = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        # the layer that sees both, in two parts: the features' (with the bias) and the hidden ones'
        self.again = nn.Linear(options.features, width)
        self.skip = nn.Linear(width, width, bias=False)
        self.after = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.head = nn.Linear(width, width // 2)
        self.last = nn.Linear(width // 2, 1)

    def initialise(self, mean: float, generator: torch.Generator) -> None:
        """Seeded start: random frequencies; nearly the mean of the projections everywhere."""
        with torch.no_grad():
            scale, axial = self.options.scale, self.options.axial_scale
            self.frequencies.normal_(0.0, scale, generator=generator)
            self.frequencies[:, 0].mul_(1.0 if axial is None else axial / scale)
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    # torch's own start, as published: the volume is nearly constant, and what the
                    # projections cannot tell stays so. Larger weights begin with noise there.
                    inputs = layer.in_features
                    if layer is self.again or layer is self.skip:
                        inputs = self.again.in_features + self.skip.in_features
                    bound = 1 / math.sqrt(inputs)
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    if layer.bias is not None:
                        layer.bias.uniform_(-bound, bound, generator=generator)
            self.last.bias.fill_(mean)

    def features(self, rows: slice, columns: slice) -> Tensor:
        """What the network sees, voxel by voxel: cos and sin of 2 pi B v, [Z, rows, columns, F].

        The definition, to be read and tested; `forward` never makes them.
        """
        z, y, x = self._cycles(rows, columns)
        return self._waves(z[:, None, None] + y[:, None] + x)

    def forward(self, rows: slice, columns: slice) -> Tensor:
        """All slices of the columns at these rows and columns, [Z, rows, columns]."""
        z, y, x = self._cycles(rows, columns)
        parts = [self._rows(z, part, x) for part in y.split(self.ROWS_AT_ONCE)]
        return torch.cat(parts, dim=-1).transpose(1, 2).contiguous()

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam, as published."""
        return torch.optim.Adam(self.parameters(), lr=self.options.learning_rate, fused=True)

    def steps(self) -> tuple[int, int]:
        """Optimiser steps at most, and how many of them see about every column once."""
        once = math.prod(self._strides())
        return max(self.options.steps, once), once

    def rate(self, step: int, steps: int) -> float:
        """Half a cosine, from 1 to a twentieth."""
        return 0.05 + 0.475 * (1 + math.cos(math.pi * step / steps))

    def choose(self, rng: np.random.Generator) -> Columns:
        """Columns all over the image, since each weight serves all of it: a lattice, shifted."""
        down, across = self._strides()
        low, left = int(rng.integers(down)), int(rng.integers(across))
        return slice(low, None, down), slice(left, None, across)

    def _strides(self) -> tuple[int, int]:
        """Distances of the lattice: about `voxels` in all its columns, as many down as across."""
        depth, height, width = self.shape
        side = max(1, math.isqrt(self.options.voxels // depth))
        return math.ceil(height / side), math.ceil(width / side)

    def _cycles(self, rows: slice, columns: slice) -> list[Tensor]:
        """B v along each axis, float64 [n, features / 2]: large phases would lose digits."""
        chosen = (slice(None), rows, columns)
        found = []
        for axis, (length, part) in enumerate(zip(self.shape, chosen, strict=True)):
            index = torch.arange(length, dtype=torch.float64, device=self.frequencies.device)
            places = (2 * index[part] + 1) / length - 1
            found.append(places[:, None] * self.frequencies[:, axis].double())
        return found

    def _waves(self, cycles: Tensor) -> Tensor:
        """cos and sin side by side, in the precision of the weights."""
        phase = (2 * math.pi * (cycles - cycles.round())).to(self.last.weight.dtype)
        return torch.cat([phase.cos(), phase.sin()], dim=-1)

    def _rows(self, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """A few rows, [Z, columns, rows]: the plane (z, x) in parts, each once for all rows."""
        layers = [
            (self._turned(layer.weight, y), layer.bias.repeat(len(y)))
            for layer in (self.first, self.again)
        ]
        points = torch.arange(len(z) * len(x), device=z.device)
        parts = []
        for part in points.split(max(1, self.VOXELS_AT_ONCE // len(y))):
            plane = self._waves(z[part // len(x)] + x[part % len(x)])
            first, again = (linear(plane, *layer).view(-1, self.options.width) for layer in layers)
            parts.append(self._network(first, again))
        return torch.cat(parts).view(len(z), len(x), len(y))

    def _turned(self, weight: Tensor, cycles: Tensor) -> Tensor:
        """The layer on the plane that equals `weight` on each row: [rows * width, features]."""
        cos, sin = self._waves(cycles)[:, None].chunk(2, dim=-1)
        even, odd = weight.chunk(2, dim=-1)
        return torch.cat([even * cos + odd * sin, odd * cos - even * sin], dim=-1).flatten(0, 1)

    def _network(self, first: Tensor, again: Tensor) -> Tensor:
        """From the two products with the features, [voxels, width], to intensities [voxels, 1]."""
        hidden = relu(first)
        for layer in self.before:
            hidden = relu(layer(hidden), inplace=True)
        hidden = relu(torch.addmm(again, hidden, self.skip.weight.T), inplace=True)
        for layer in (*self.after, self.head):
            hidden = relu(layer(hidden), inplace=True)
        return self.last(hidden)
