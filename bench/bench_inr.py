"""A training step of the INR, forward and backward through A, against plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.harness import DEVICE, Contender, Measure, Row, choose, compiled, uniform
from bench.peers.hash import grid_positions, levels_of, plain_encoding
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.inr import HashGridINR, INROptions

# A step of fit_inr: all slices of a square of columns.
DEPTH, SIDE = choose(smoke=(12, 8), cpu=(96, 40), cuda=(126, 128))
WIDTH = choose(smoke=16, cpu=128, cuda=512)
STEP_LENGTH = 6
WINDOWS = DEPTH // STEP_LENGTH
SLOW = 5


class _Case:
    """An INR with features of order 1, its operator, and a target for its projections."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.inr = HashGridINR((DEPTH, WIDTH, WIDTH), float(STEP_LENGTH), INROptions())
        self.inr.initialise(0.5, torch.Generator().manual_seed(1))
        with torch.no_grad():
            self.inr.table.copy_(uniform(self.inr.table.shape, 2) - 0.5)
        self.inr.to(DEVICE, dtype)
        self.operator = AxialProjection(DEPTH, STEP_LENGTH)
        self.target = uniform((WINDOWS, SIDE, SIDE), 3).to(dtype)
        square = slice(WIDTH // 4, WIDTH // 4 + SIDE)
        self.rows = self.columns = square
        z, y, x = (axis.to(DEVICE) for axis in self.inr.axes)
        self.positions = grid_positions([z, y[square], x[square]])
        self.levels = levels_of(self.inr.spec)

    def fused(self) -> Tensor:
        return self.inr(self.rows, self.columns)

    def plain(self) -> Tensor:
        """The same INR with a plain encoding of every voxel's position."""
        features = plain_encoding(self.positions, self.inr.table, self.levels)
        return self.inr.mlp(features).reshape(DEPTH, SIDE, SIDE)

    def step(self, volume: Callable[[], Tensor]) -> Tensor:
        """Projections of the volume, their squared error, gradients; returns that of the table."""
        error = (self.operator(volume()) - self.target).square().sum()
        error.backward()
        gradient = self.inr.table.grad
        assert gradient is not None
        return gradient

    def contender(self, volume: Callable[[], Tensor], rounds: int | None = None) -> Contender:
        def clear() -> None:
            self.inr.zero_grad(set_to_none=True)

        return Contender(lambda: self.step(volume), clear, rounds)


def bench_step(measure: Measure) -> None:
    """The MLP in the middle is the same in both, and bounds the ratio."""
    case = _Case()

    def exact() -> Tensor:
        wide = _Case(torch.float64)
        return wide.step(wide.plain)

    row = Row(
        "inr.step",
        "INR training step: encoding, MLP, A, loss, and backward",
        f"{DEPTH}x{SIDE}x{SIDE} voxels, 6 levels x 4, MLP 32-32",
        case.contender(case.fused),
        {
            "torch eager": lambda: case.contender(case.plain, SLOW),
            "torch.compile": lambda: case.contender(compiled(case.plain), SLOW),
        },
        exact=exact,
        tolerance=1e-3,
    )
    measure(row)


def bench_projection(measure: Measure) -> None:
    """The fused axial mean of the encoding alone, as for a linear head."""
    from microdiffusion_fast.kernels.hash_encoding import hash_encoding_projection

    case = _Case()
    z, y, x = (axis.to(DEVICE) for axis in case.inr.axes)
    axes = (z, y[case.rows], x[case.columns])
    spec, weights = case.inr.spec, [1 / STEP_LENGTH] * STEP_LENGTH

    def gradient(means: Tensor, table: Tensor) -> Tensor:
        """Of the sum of squares: the means take part in it."""
        means.square().sum().backward()
        assert table.grad is not None
        return table.grad

    def ours() -> Tensor:
        table = case.inr.table
        means = hash_encoding_projection(axes, table, spec, weights, STEP_LENGTH, 0, WINDOWS)
        return gradient(means, table)

    def plain(case: _Case) -> Tensor:
        features = plain_encoding(case.positions, case.inr.table, case.levels)
        means = features.reshape(WINDOWS, STEP_LENGTH, SIDE, SIDE, -1).mean(1)
        return gradient(means, case.inr.table)

    def clear() -> None:
        case.inr.zero_grad(set_to_none=True)

    row = Row(
        "inr.projection",
        "A of the encoding, forward and backward",
        f"{DEPTH}x{SIDE}x{SIDE} voxels, 6 levels x 4",
        Contender(ours, clear),
        {"torch eager": lambda: Contender(lambda: plain(case), clear, SLOW)},
        exact=lambda: plain(_Case(torch.float64)),
        tolerance=1e-3,
    )
    measure(row)
