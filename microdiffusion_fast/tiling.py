"""Which blocks a volume is cut into, and what each of them needs: index arithmetic, no arrays.

A tile owns a core of whole output shards. Around it lie, as far as the network reaches, the voxels
whose states it needs (`state`) and the pixels that the encoder reads for them (`read`). The
volume's own ends are ends of the tiles there, so what the network does at an edge happens at the
same edges. The axes are independent: a plan holds three short lists, and its tiles are their
products, made when they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .errors import InputError
from .tiling_windows import Box, Span, Windows


@dataclass(frozen=True)
class Reach:
    """How far the network sees.

    Attributes:
        halo: pixels from a voxel to the farthest pixel of a projection that it depends on, in one
            step of the chain.
        step: pixels to the farthest voxel of the state that it depends on, likewise: what every
            further step adds.
        context: projections on either side of a window.
        align: the encoder's strides: a block that starts at a multiple keeps their phase.
        steps: length of the longest chain.
    """

    halo: int
    step: int
    context: int
    align: int
    steps: int


class AxialPart(NamedTuple):
    """One interval of the cores along z, and what it needs.

    `outputs` has the slices that the network must give at each step, the first step first.
    """

    core: Span
    state: Span
    outputs: tuple[Span, ...]
    windows: Span
    read: Span


class LateralPart(NamedTuple):
    """One interval of the cores along y or x, and what it needs."""

    core: Span
    state: Span
    read: Span


class Tile(NamedTuple):
    """One block of the volume: what it computes from what, and what it writes.

    Attributes:
        place: of the tile in the grid of the plan.
        core: voxels that it writes, whole shards; every voxel is in one core.
        state: voxels whose states are computed, around the core.
        read: projections (z) and pixels that are read.
        outputs: slices that the network must give at each step of the longest chain.
        windows: windows that the network sees.
    """

    place: tuple[int, int, int]
    core: Box
    state: Box
    read: Box
    outputs: tuple[Span, ...]
    windows: Span


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a volume, see `plan_tiles`, column after column: z changes fastest.

    Within a column a tile reads only the projections that the one before it has not, so along z
    every projection is read once.

    Attributes:
        shape: (Z, Y, X) of the volume.
        windows: where its projections lie.
        reach: how far the network sees.
        shards: (z, y, x) voxels of one output shard.
        core: (z, y, x) voxels of a core, less at the far ends; multiples of the shard.
    """

    shape: tuple[int, int, int]
    windows: Windows
    reach: Reach
    shards: tuple[int, int, int]
    core: tuple[int, int, int]

    @cached_property
    def axial(self) -> list[AxialPart]:
        return [
            axial_part(core, self.windows, self.reach)
            for core in intervals(self.shape[0], self.core[0])
        ]

    @cached_property
    def lateral(self) -> tuple[list[LateralPart], list[LateralPart]]:
        rows, columns = (
            [lateral_part(core, size, self.reach) for core in intervals(size, step)]
            for size, step in zip(self.shape[1:], self.core[1:], strict=True)
        )
        return rows, columns

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles along each axis."""
        return len(self.axial), len(self.lateral[0]), len(self.lateral[1])

    def __len__(self) -> int:
        return math.prod(self.grid)

    def __getitem__(self, number: int) -> Tile:
        if not 0 <= number < len(self):
            raise IndexError(number)
        deep, _, wide = self.grid
        column, i = divmod(number, deep)
        j, k = divmod(column, wide)
        z, y, x = self.axial[i], self.lateral[0][j], self.lateral[1][k]
        return Tile(
            (i, j, k),
            Box(z.core, y.core, x.core),
            Box(z.state, y.state, x.state),
            Box(z.read, y.read, x.read),
            z.outputs,
            z.windows,
        )

    def __iter__(self) -> Iterator[Tile]:
        return (self[number] for number in range(len(self)))

    def halves(self, tile: Tile) -> tuple[Tile, Tile]:
        """A tile cut in two across its longer side; each reads a part of what the tile reads."""
        axis = 1 if tile.core.y.length >= tile.core.x.length else 2
        start, stop = tile.core[axis]
        middle = (start + stop) // 2

        def part(core: Span) -> Tile:
            cut = lateral_part(core, self.shape[axis], self.reach)
            core_box, state, read = (
                Box(*(new if i == axis else old for i, old in enumerate(box)))
                for box, new in zip(
                    (tile.core, tile.state, tile.read), (cut.core, cut.state, cut.read), strict=True
                )
            )
            return tile._replace(core=core_box, state=state, read=read)

        return part(Span(start, middle)), part(Span(middle, stop))

    def shards_of(self, tile: Tile) -> Iterator[Box]:
        """The shards that a tile writes, each once and by no other tile."""
        z, y, x = (
            [Span(core.start + part.start, core.start + part.stop) for part in parts]
            for core, parts in (
                (core, intervals(core.length, shard))
                for core, shard in zip(tile.core, self.shards, strict=True)
            )
        )
        return (Box(a, b, c) for a in z for b in y for c in x)


def plan_tiles(
    shape: Sequence[int],
    windows: Windows,
    reach: Reach,
    *,
    shards: Sequence[int],
    core: Sequence[int],
) -> TilePlan:
    """Cut a volume into tiles of whole shards.

    Cores that end within a window are allowed, and right: both tiles then compute that window.
    Shards whose depth is a multiple of the stride avoid it. Where windows overlap, consistency
    couples all slices of a column, and tiles hold whole columns, whatever `core` says for z.

    Args:
        shape: (Z, Y, X) of the volume.
        windows: where its projections lie.
        reach: how far the network sees.
        shards: (z, y, x) voxels of one output shard.
        core: (z, y, x) voxels of a core, rounded up to whole shards.

    Raises:
        InputError: sizes below 1, or a depth that is not that of the windows.
    """
    for name, sizes in (("shape", shape), ("shards", shards), ("core", core)):
        if len(sizes) != 3 or min(sizes) < 1:
            raise InputError(name, "three sizes (z, y, x) of at least 1", tuple(sizes))
    if shape[0] != windows.depth:
        raise InputError("shape", f"a depth of {windows.depth}, like the windows", tuple(shape))
    limited = [min(shard, size) for shard, size in zip(shards, shape, strict=True)]
    rounded = [-(-c // s) * s for c, s in zip(core, limited, strict=True)]
    if windows.overlap:
        rounded[0] = -(-shape[0] // limited[0]) * limited[0]
    z, y, x = shape
    return TilePlan(
        (z, y, x),
        windows,
        reach,
        (limited[0], limited[1], limited[2]),
        (rounded[0], rounded[1], rounded[2]),
    )


def intervals(size: int, step: int) -> list[Span]:
    """[0, size) in pieces of `step`, the last one shorter."""
    return [Span(start, min(start + step, size)) for start in range(0, size, step)]


def axial_part(core: Span, windows: Windows, reach: Reach) -> AxialPart:
    """What the slices `core` need along z.

    Backwards from the last step: consistency asks for the whole windows of the wanted slices, the
    stack's ends for the slice that they repeat, and the network for the states of the slices
    before and after those that it gives. At the start of the chain every state is noise and prior,
    voxel by voxel; the prior is consistent too, so whole windows again.
    """
    outputs: list[Span] = []
    wanted, inside = core, windows.inside
    for _ in range(reach.steps):
        wanted = windows.whole(wanted)
        ends = (min(max(z, inside.start), inside.stop - 1) for z in (wanted.start, wanted.stop - 1))
        for z in ends:
            wanted = wanted.hull(Span(z, z + 1))
        outputs.append(wanted)
        wanted = Span(max(wanted.start - 1, 0), min(wanted.stop + 1, windows.depth))
    state = windows.whole(wanted)
    seen = windows.nearest(outputs[-1])
    read = Span(max(seen.start - reach.context, 0), min(seen.stop + reach.context, windows.count))
    read = read.hull(windows.interpolating(state)).hull(windows.nearest(state))
    touching = windows.touching(state)
    if touching.length:
        read = read.hull(touching)
    return AxialPart(core, state, tuple(reversed(outputs)), seen, read)


def lateral_part(core: Span, size: int, reach: Reach) -> LateralPart:
    """What the rows, or columns, `core` need of an image of `size`."""
    further = (reach.steps - 1) * reach.step

    def wider(margin: int) -> Span:
        start = max(core.start - margin, 0) // reach.align * reach.align
        return Span(start, min(-(-(core.stop + margin) // reach.align) * reach.align, size))

    return LateralPart(core, wider(reach.step + further), wider(reach.halo + further))
