"""A, A^T and A^+ against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import Contender, Measure, Row, choose, compiled, uniform
from microdiffusion_fast.kernels import (
    axial_backprojection,
    axial_projection,
    axial_pseudo_inverse,
)
from microdiffusion_fast.kernels.axial_projection import reference

SHAPE = choose(smoke=(12, 32, 32), cpu=(60, 512, 512), cuda=(510, 512, 512))
S = 6
WINDOWS = SHAPE[0] // S
MEAN = [1 / S] * S
SIZE = "x".join(map(str, SHAPE)) + f" float32, step length {S}"
SLOW = 5


def bench_projection(measure: Measure) -> None:
    x = uniform(SHAPE, 1)
    disjoint = (MEAN, S, 0, WINDOWS)

    def plain(volume: Tensor) -> Tensor:
        return volume.unflatten(0, (WINDOWS, S)).mean(1)

    def pooled(volume: Tensor) -> Tensor:
        return F.avg_pool3d(volume[None, None], (S, 1, 1))[0, 0]

    row = Row(
        "axial.projection",
        "A, disjoint means",
        SIZE,
        Contender(lambda: axial_projection(x, *disjoint)),
        {
            "torch mean": lambda: _on(x, plain),
            "torch avg_pool3d": lambda: _on(x, pooled),
            "torch.compile": lambda: _on(x, compiled(plain)),
        },
        floor_bytes=4 * (x.numel() + WINDOWS * prod(SHAPE[1:])),
        exact=lambda: reference.project(x.double(), *disjoint),
        tolerance=1e-6,
    )
    measure(row)


def bench_adjoint(measure: Measure) -> None:
    y = uniform((WINDOWS, *SHAPE[1:]), 2)
    disjoint = (MEAN, S, 0, SHAPE[0])

    def plain(images: Tensor) -> Tensor:
        return (images / S).repeat_interleave(S, 0)

    row = Row(
        "axial.adjoint",
        "A^T, disjoint means",
        SIZE,
        Contender(lambda: axial_backprojection(y, *disjoint)),
        {
            "torch repeat_interleave": lambda: _on(y, plain),
            "torch.compile": lambda: _on(y, compiled(plain)),
        },
        floor_bytes=4 * (y.numel() + prod(SHAPE)),
        exact=lambda: reference.backproject(y.double(), *disjoint),
        tolerance=1e-6,
    )
    measure(row)


def bench_pseudo_inverse(measure: Measure) -> None:
    """Windows that overlap by half: a banded solve in every column."""
    stride = S // 2
    count = (SHAPE[0] - S) // stride + 1
    y = uniform((count, *SHAPE[1:]), 3)
    overlapping = (MEAN, stride, 0, SHAPE[0])

    def dense() -> Contender:
        """One product with the dense pseudo-inverse, which is made outside the clock."""
        columns = torch.eye(count, dtype=torch.float64)[:, :, None]
        solved = reference.pseudo_inverse(columns, *overlapping)[..., 0]
        inverse = solved.to(y.device, torch.float32)
        return _on(y, lambda images: (inverse @ images.flatten(1)).reshape(SHAPE))

    row = Row(
        "axial.pseudo-inverse",
        "A^+, windows that overlap by half",
        SIZE,
        Contender(lambda: axial_pseudo_inverse(y, *overlapping)),
        {"dense pseudo-inverse, torch": dense},
        floor_bytes=4 * (y.numel() + prod(SHAPE)),
        exact=lambda: reference.pseudo_inverse(y.double(), *overlapping),
        tolerance=2e-5,  # sums of many neighbours, and the solution is as large as they are
    )
    measure(row)


def _on(data: Tensor, function: Callable[[Tensor], Tensor]) -> Contender:
    return Contender(lambda: function(data), rounds=SLOW)
