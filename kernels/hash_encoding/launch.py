"""Launches of the Triton kernels, over plain tensors.

A grid's coarse levels, whose vertices are fewer than its voxels, are looked up into dense lattices
and interpolated from there; the others gather from the table, eight rows a voxel. How many vertices
there are at most follows from the shapes: no launch waits for the device.

The table's gradient is summed in 64-bit fixed point, since integer atomics give the same sum in any
order. A unit is the largest gradient times 2^(b - 62), rounded up to a power of two, where 2^b
bounds the sum of the weights: no sum overflows, and what is added is rounded to the nearest unit,
2^-41 of the largest gradient for 2^21 points. Where a gradient or a position is not finite, all of
the result is NaN. The coarse levels of a grid sum around each vertex first: one addition a vertex.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..constants import constant
from . import triton_kernel as kernels
from .geometry import levels_of
from .reference import HashGridSpec

BLOCK = 128
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def encode_triton(positions: Tensor, table: Tensor, spec: HashGridSpec) -> Tensor:
    """`reference.encode` of a float32, bfloat16 or float16 table."""
    positions, table = positions.contiguous(), table.contiguous()
    n = positions.shape[0]
    out = table.new_empty((n, spec.n_outputs))
    if n == 0:
        return out
    scales, geometry = _geometry(spec, table.device)
    f, features, levels = _features(spec)
    blocks = _blocks(n)
    with torch.cuda.device_of(table):
        # points have no lattice and no axial weights: what stands there is not read
        kernels.encode_kernel[(blocks, -(-spec.n_levels // levels))](
            out, *[positions] * 9, table, scales, geometry, scales, blocks, n, 0, 0, 1, 1, 0,
            0, spec.n_levels, spec.n_outputs, 1, f, features, levels, False, False, BLOCK,
            **OPTIONS,
        )  # fmt: skip
    return out


def encode_backward_triton(
    grad: Tensor, positions: Tensor, table: Tensor, spec: HashGridSpec, *, want_positions: bool
) -> tuple[Tensor, Tensor]:
    """`reference.encode_backward` of a float32, bfloat16 or float16 table."""
    grad, positions, table = grad.contiguous(), positions.contiguous(), table.contiguous()
    n = positions.shape[0]
    grad_positions = positions.new_empty((n if want_positions else 0, 3))
    if n == 0:
        return torch.zeros_like(table), grad_positions
    scales, geometry = _geometry(spec, table.device)
    f, features, _ = _features(spec)
    sums = torch.zeros(table.shape, dtype=torch.int64, device=table.device)
    units, inverse = _fixed_point(grad, n, positions)
    blocks = _blocks(n)
    with torch.cuda.device_of(table):
        kernels.scatter_kernel[(blocks, spec.n_levels)](
            sums, grad, *[positions] * 3, scales, geometry, scales, units, blocks, n, 1, 1, 0, 0,
            spec.n_outputs, 1, f, features, False, BLOCK, **OPTIONS,
        )  # fmt: skip
        if want_positions:
            kernels.slope_kernel[(blocks,)](
                grad_positions, grad, positions, table, scales, geometry, n, spec.n_levels,
                f, features, BLOCK, **OPTIONS,
            )  # fmt: skip
    return (sums * inverse).to(table.dtype), grad_positions


def encode_grid_triton(
    axes: Sequence[Tensor],
    table: Tensor,
    spec: HashGridSpec,
    weights: Sequence[float],
    stride: int,
    start: int,
    count: int,
) -> Tensor:
    """`reference.encode_grid` of a float32, bfloat16 or float16 table."""
    axes, table = [axis.contiguous() for axis in axes], table.contiguous()
    depth, height, width = (axis.shape[0] for axis in axes)
    out = table.new_empty((count, height, width, spec.n_outputs))
    scales, geometry = _geometry(spec, table.device)
    f, features, levels = _features(spec)
    taps = constant(tuple(weights), torch.float32, table.device)
    blocks = _blocks(height * width)
    lattices = _lattices(spec, depth, height, width)

    def encode(*pointers: Tensor, levels_at: tuple[int, int], lattice: bool) -> None:
        first, last = levels_at
        if first < last:
            kernels.encode_kernel[(count * blocks, -(-(last - first) // levels))](
                out, *axes, *pointers, taps, blocks, height * width, depth, height, width, stride,
                start, first, last, spec.n_outputs, len(weights), f, features, levels, True,
                lattice, BLOCK, **OPTIONS,
            )  # fmt: skip

    with torch.cuda.device_of(table):
        if lattices.levels:
            z, y, x = _axis_tables(axes, scales, lattices)
            numbers = lattices.geometry(table.device)
            entries = table.new_empty((lattices.size, f))
            kernels.look_up_kernel[(_blocks(lattices.largest), lattices.levels)](
                entries, table, z.vertices, y.vertices, x.vertices, z.counts, y.counts, x.counts,
                geometry, numbers, depth, height, width, f, features, BLOCK, **OPTIONS,
            )  # fmt: skip
            tables = (z.slots, y.slots, x.slots, z.fractions, y.fractions, x.fractions)
            coarse = (0, lattices.levels)
            encode(*tables, entries, scales, numbers, levels_at=coarse, lattice=True)
        fine = (lattices.levels, spec.n_levels)
        encode(*axes, *axes, table, scales, geometry, levels_at=fine, lattice=False)
    return out


def encode_grid_backward_triton(
    grad: Tensor,
    axes: Sequence[Tensor],
    spec: HashGridSpec,
    weights: Sequence[float],
    stride: int,
    start: int,
) -> Tensor:
    """`reference.encode_grid_backward` of a float32, bfloat16 or float16 gradient."""
    axes, grad = [axis.contiguous() for axis in axes], grad.contiguous()
    depth, height, width = (axis.shape[0] for axis in axes)
    count, device = grad.shape[0], grad.device
    scales, geometry = _geometry(spec, device)
    f, features, _ = _features(spec)
    taps = constant(tuple(weights), torch.float32, device)
    units, inverse = _fixed_point(grad, grad[..., 0].numel() * sum(abs(w) for w in weights))
    sums = torch.zeros((spec.n_entries, f), dtype=torch.int64, device=device)
    blocks, size = _blocks(height * width), height * width
    lattices = _lattices(spec, depth, height, width)
    with torch.cuda.device_of(grad):
        if lattices.levels:
            z, y, x = _axis_tables(axes, scales, lattices)
            numbers = lattices.geometry(device)
            offsets = constant(lattices.planes, torch.int64, device)
            planes = torch.empty((lattices.planes[-1], size, f), device=device)
            rooms_z, rooms_y, rooms_x = lattices.rooms
            kernels.back_along_z_kernel[(max(rooms_z) * blocks, lattices.levels)](
                planes, grad, z.slots, z.fractions, z.begins, z.ends, z.counts, offsets, taps,
                blocks, size, depth, count, stride, start, spec.n_outputs,
                len(weights), f, features, BLOCK, **OPTIONS,
            )  # fmt: skip
            rows = max(a * b for a, b in zip(rooms_z, rooms_y, strict=True))
            kernels.back_to_table_kernel[(rows, -(-max(rooms_x) // 32), lattices.levels)](
                sums, planes, y.slots, x.slots, y.fractions, x.fractions, z.vertices, y.vertices,
                x.vertices, y.begins, x.begins, y.ends, x.ends, z.counts, y.counts, x.counts,
                geometry, numbers, offsets, units, depth, height, width, f, features, 32,
                num_warps=1, enable_fp_fusion=False,
            )  # fmt: skip
        fine = spec.n_levels - lattices.levels
        if fine:
            kernels.scatter_kernel[(count * blocks, fine)](
                sums, grad, *axes, scales, geometry, taps, units, blocks, size, width, stride,
                start, lattices.levels, spec.n_outputs, len(weights), f, features, True, BLOCK,
                **OPTIONS,
            )  # fmt: skip
    return (sums * inverse).to(grad.dtype)


def _geometry(spec: HashGridSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scales [L], float64, and what the kernels call geometry."""
    scales: list[float] = []
    numbers: list[int] = []
    for scale, offset, size, resolution, hashed in levels_of(spec):
        scales.append(scale)
        strides = (2654435761, 805459861) if hashed else (resolution, resolution**2 % 2**32)
        numbers += [offset, size, 2**32 // size, *strides, int(hashed)]
    return (
        constant(tuple(scales), torch.float64, device),
        constant(tuple(numbers), torch.int64, device),
    )


def _features(spec: HashGridSpec) -> tuple[int, int, int]:
    """Features, the power of two that holds them, and the levels that a program encodes."""
    features = 1 << (spec.n_features - 1).bit_length()
    return spec.n_features, features, 8 // features


def _blocks(n: int) -> int:
    return -(-n // BLOCK)


def _fixed_point(
    grad: Tensor, contributions: float, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Units in 1, and 1 unit, which is NaN where a gradient or a position is not finite."""
    largest = torch.linalg.vector_norm(grad, math.inf, dtype=torch.float32).double()
    finite = largest.isfinite()
    exponent = torch.frexp(torch.where(finite, largest, 0.0)).exponent
    bits = math.ceil(math.log2(max(contributions, 1.0)))
    units = torch.ldexp(torch.ones_like(largest), 62 - bits - exponent)
    if positions is not None:
        finite = finite & torch.linalg.vector_norm(positions, math.inf).isfinite()
    return units, torch.where(finite, 1.0 / units, math.nan)


@dataclass(frozen=True)
class _Lattices:
    """The levels that get a lattice, and the vertices they may have: rooms (z, y, x) by level."""

    rooms: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def levels(self) -> int:
        return len(self.rooms[0])

    @property
    def sizes(self) -> list[int]:
        return [math.prod(rooms) for rooms in zip(*self.rooms, strict=True)]

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def largest(self) -> int:
        return max(self.sizes)

    @property
    def planes(self) -> tuple[int, ...]:
        """First lattice plane of each level, and the number of all at the end."""
        return tuple(sum(self.rooms[0][:level]) for level in range(self.levels + 1))

    def geometry(self, device: torch.device) -> Tensor:
        numbers: list[int] = []
        offset = 0
        for size, y, x in zip(self.sizes, *self.rooms[1:], strict=True):
            numbers += [offset, size, 0, x, y * x, 0]
            offset += size
        return constant(tuple(numbers), torch.int64, device)


@lru_cache(maxsize=256)
def _lattices(spec: HashGridSpec, *shape: int) -> _Lattices:
    """A lattice for the levels that have no more vertices than the grid has voxels."""
    rooms = []
    for _, _, _, resolution, _ in levels_of(spec):
        room = tuple(min(2 * n, resolution + 1) for n in shape)
        if math.prod(room) > math.prod(shape):
            break
        rooms.append(room)
    return _Lattices(tuple(zip(*rooms, strict=True)) if rooms else ((), (), ()))  # type: ignore


@dataclass(frozen=True)
class _AxisTables:
    slots: Tensor
    fractions: Tensor
    vertices: Tensor
    begins: Tensor
    ends: Tensor
    counts: Tensor


def _axis_tables(
    axes: Sequence[Tensor], scales: Tensor, lattices: _Lattices
) -> tuple[_AxisTables, ...]:
    tables = []
    for axis, rooms in zip(axes, lattices.rooms, strict=True):
        n, device = axis.shape[0], axis.device
        integers: dict[str, Any] = {"dtype": torch.int32, "device": device}
        table = _AxisTables(
            torch.empty((lattices.levels, n), **integers),
            torch.empty((lattices.levels, n), device=device),
            torch.empty((lattices.levels, 2 * n), dtype=torch.int64, device=device),
            torch.empty((lattices.levels, 2 * n), **integers),
            torch.empty((lattices.levels, 2 * n), **integers),
            torch.empty((lattices.levels,), **integers),
        )
        kernels.axis_kernel[(lattices.levels,)](
            table.slots, table.fractions, table.vertices, table.begins, table.ends, table.counts,
            axis, scales, constant(rooms, torch.int32, device), n,
            max(32, 1 << (n - 1).bit_length()), **OPTIONS,
        )  # fmt: skip
        tables.append(table)
    return tuple(tables)
