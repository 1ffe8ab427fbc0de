"""The largest tiles that a memory budget holds, and what a plan will cost: arithmetic only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from .allocator import SMALL
from .errors import InputError
from .tiling import Reach, TilePlan, axial_part, intervals, lateral_part, plan_tiles
from .tiling_windows import Windows

CHUNK = (32, 128, 128)  # about 2 MB of float32, as `io_zarr` writes whole volumes
SHARD_CHUNKS = 2  # chunks a shard has along each axis: 16 MB a file
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{prefix}i": 2 ** (10 * power) for power, prefix in enumerate("kmgt", start=1)}


@dataclass(frozen=True)
class Footprint:
    """Bytes and arithmetic of a reconstruction, each per unit of what it grows with.

    Attributes:
        fixed: bytes that do not depend on the tile: weights, libraries' buffers.
        image: bytes per pixel read.
        held: bytes per pixel of one image read, of chunks kept from tile to tile.
        encode: bytes per pixel read, of the encoder at work on one window.
        kept: bytes per pixel read that the C library keeps beside those, see `allocator.keeping`:
            gaps between arrays of other sizes; none of arrays that it does not keep.
        features: bytes per pixel computed, of the features of one window.
        keep: whether the features of all windows are kept, which chains of several steps do.
        head: bytes per pixel computed, of the head at work.
        state: bytes per voxel computed.
        core: bytes per voxel written.
        chunk: bytes while one chunk of the projections is read, which may be larger than a tile.
        encode_work: multiplications per pixel read and window.
        head_work: multiplications per voxel computed, over all steps.
    """

    fixed: int
    image: int
    held: int
    encode: int
    kept: int
    features: int
    keep: bool
    head: int
    state: int
    core: int
    chunk: int
    encode_work: int
    head_work: int


class _Axis(NamedTuple):
    """One axis cut one way: sizes of its largest part, and sums over its parts."""

    core: int
    largest_core: int
    largest_state: int
    largest_read: int
    state: int
    read: int
    largest_windows: int = 0
    windows: int = 0
    outputs: int = 0


@dataclass(frozen=True)
class Prediction:
    """What a plan will take.

    Attributes:
        tiles: how many.
        memory: bytes at the peak.
        bytes_in: read from the projections.
        bytes_out: written, before compression.
        reread: how often a pixel of the projections is decoded, on average.
        multiplications: of the network.
        work: the same in units of what the whole volume in one tile would take.
    """

    tiles: int
    memory: int
    bytes_in: int
    bytes_out: int
    reread: float
    multiplications: float
    work: float


def memory_bytes(memory: int | str) -> int:
    """Bytes of "4GiB", "500 MB", "2g" or a number.

    Raises:
        InputError: for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(memory).lower())
    if isinstance(memory, bool) or match is None or match[2] not in _UNITS:
        raise InputError("memory", "a size such as '4GiB' or '500MB'", repr(memory))
    return int(float(match[1]) * _UNITS[match[2]])


def default_layout(
    shape: Sequence[int], stride: int, chunks: Sequence[int] | None = None
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Chunks and shards of an output: a function of the volume alone, not of the memory.

    The default depth is a multiple of the stride, so that tiles end between windows.
    """
    if chunks is None:
        chunks = (max(round(CHUNK[0] / stride), 1) * stride, *CHUNK[1:])
    chunks = [min(n, c) for n, c in zip(shape, chunks, strict=True)]
    shards = [c * min(SHARD_CHUNKS, -(-n // c)) for n, c in zip(shape, chunks, strict=True)]
    return (chunks[0], chunks[1], chunks[2]), (shards[0], shards[1], shards[2])


def fit_tiles(
    shape: Sequence[int],
    windows: Windows,
    reach: Reach,
    *,
    shards: Sequence[int],
    footprint: Footprint,
    memory: int,
) -> TilePlan:
    """The plan with the least arithmetic, halos included, whose tiles fit into `memory` bytes.

    Raises:
        InputError: not even a tile of one shard fits; says how much that takes.
    """
    unit = plan_tiles(shape, windows, reach, shards=shards, core=shards)
    z_axes = [_axial(core, windows, reach) for core in _cuts(shape[0], unit.core[0])]
    y_axes, x_axes = (
        [_lateral(core, size, reach) for core in _cuts(size, shard)]
        for size, shard in zip(shape[1:], unit.shards[1:], strict=True)
    )
    best: tuple[float, float, tuple[int, int, int]] | None = None
    least = math.inf
    for z, y, x in product(z_axes, y_axes, x_axes):
        needed = _peak(z, y, x, footprint)
        least = min(least, needed)
        if needed > memory:
            continue
        # among equals the smallest
        key = (_work(z, y, x, footprint), needed, (z.core, y.core, x.core))
        if best is None or key < best:
            best = key
    if best is None:
        expected = f"at least {math.ceil(least / 2**20):,} MiB for a tile of one shard"
        if footprint.chunk > least / 8:  # smaller shards would not help
            expected += f", {footprint.chunk / 2**20:,.0f} MiB of it to read a chunk of the stack"
        sizes = "x".join(map(str, unit.shards))
        got = f"{memory / 2**20:,.0f} MiB (shards of {sizes} voxels)"
        raise InputError("memory", expected, got)
    return plan_tiles(shape, windows, reach, shards=shards, core=best[2])


def predict(
    plan: TilePlan, footprint: Footprint, *, pixels: int, itemsize: int, written: int = 4
) -> Prediction:
    """Memory, traffic and arithmetic of a plan.

    Args:
        plan: the tiles.
        footprint: what they need.
        pixels: of projections that will be decoded.
        itemsize: of the stored projections.
        written: bytes of a voxel on disk, before compression.
    """

    def axes(core: tuple[int, int, int]) -> tuple[_Axis, _Axis, _Axis]:
        y, x = (
            _lateral(step, size, plan.reach)
            for step, size in zip(core[1:], plan.shape[1:], strict=True)
        )
        return _axial(core[0], plan.windows, plan.reach), y, x

    parts = axes(plan.core)
    work = _work(*parts, footprint)
    return Prediction(
        tiles=len(plan),
        memory=int(_peak(*parts, footprint)),
        bytes_in=pixels * itemsize,
        bytes_out=math.prod(plan.shape) * written,
        reread=pixels / (plan.windows.count * plan.shape[1] * plan.shape[2]),
        multiplications=work,
        work=work / _work(*axes(plan.shape), footprint),
    )


def _cuts(size: int, shard: int) -> list[int]:
    """Every core of whole shards that cuts an axis evenly."""
    count = -(-size // shard)
    return sorted({-(-count // pieces) * shard for pieces in range(1, count + 1)})


def _axial(core: int, windows: Windows, reach: Reach) -> _Axis:
    parts = [axial_part(span, windows, reach) for span in intervals(windows.depth, core)]
    return _Axis(
        core,
        max(part.core.length for part in parts),
        max(part.state.length for part in parts),
        max(part.read.length for part in parts),
        sum(part.state.length for part in parts),
        sum(part.read.length for part in parts),
        max(part.windows.length for part in parts),
        sum(part.windows.length for part in parts),
        sum(span.length for part in parts for span in part.outputs),
    )


def _lateral(core: int, size: int, reach: Reach) -> _Axis:
    parts = [lateral_part(span, size, reach) for span in intervals(size, core)]
    return _Axis(
        core,
        max(part.core.length for part in parts),
        max(part.state.length for part in parts),
        max(part.read.length for part in parts),
        sum(part.state.length for part in parts),
        sum(part.read.length for part in parts),
    )


def _peak(z: _Axis, y: _Axis, x: _Axis, footprint: Footprint) -> float:
    seen, computed = (
        y.largest_read * x.largest_read,
        y.largest_state * x.largest_state,
    )
    windows = z.largest_windows if footprint.keep else 1
    return (
        footprint.fixed
        + footprint.chunk
        + (footprint.image * z.largest_read + footprint.held) * seen
        + footprint.state * z.largest_state * computed
        + footprint.features * windows * computed
        + max(footprint.encode * seen, footprint.head * computed)
        + max(footprint.kept * seen - SMALL, 0)
        + footprint.core * z.largest_core * y.largest_core * x.largest_core
    )


def _work(z: _Axis, y: _Axis, x: _Axis, footprint: Footprint) -> float:
    encoder = footprint.encode_work * z.windows * y.read * x.read
    return encoder + footprint.head_work * z.outputs * y.state * x.state
