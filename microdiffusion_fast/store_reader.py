"""Projections for tiles: read in whole chunks of the file, and kept for the tiles that need them.

Tiles overlap by what the network sees around them, and end where the chunks of the file do not. A
chunk that is decoded for one tile and needed by a later one is kept as far as there is room, those
that are needed soonest first; the plan says when each will be needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise, product, zip_longest
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .store_source import StoredStack
from .tiling import TilePlan, intervals
from .tiling_windows import Box, Span

CELL = (8, 64, 64)  # smaller chunks are read about this many pixels together
# of a cell while it is decoded: measured 2.9 for Zstandard, 4.7 for gzip, 5.5 for strips of a TIFF
COPIES = 6
_FEW = 8 * 2**20  # bytes of chunks being decoded that are no more than libraries' own buffers

T = TypeVar("T")
Place = tuple[int, int, int]


class _Kept(NamedTuple):
    wanted: int  # the number of the tile that needs it next
    data: NDArray[Any]


def cell_of(stack: StoredStack) -> Place:
    """(k, y, x) pixels that are read together: whole chunks, as many as make about `CELL`."""
    y, x = (
        min(chunk * max(least // chunk, 1), size)
        for chunk, least, size in zip(stack.chunks[1:], CELL[1:], stack.shape[1:], strict=True)
    )
    deep = stack.chunks[0]
    room = math.prod(CELL) // (deep * y * x)  # images that are one chunk each are read one by one
    return min(deep * max(min(CELL[0] // deep, room), 1), stack.shape[0]), y, x


def reading_bytes(stack: StoredStack) -> int:
    """Bytes at the peak while a `TileReader` reads a cell, which may be larger than a tile."""
    return COPIES * math.prod(cell_of(stack)) * stack.dtype.itemsize


def chunk_bytes(*stacks: StoredStack) -> int:
    """Bytes at the peak while a chunk of each stack is decoded; few are not counted."""
    each = (COPIES * math.prod(stack.chunks) * stack.dtype.itemsize for stack in stacks)
    return sum(size for size in each if size > _FEW)


class TileReader:
    """Reads the projections of tiles, best in the order of their plan; for one thread.

    Args:
        stack: where they are.
        plan: the tiles.
        keep: bytes of chunks to keep for later tiles.

    Attributes:
        pixels: decoded so far, of whole chunks.
    """

    def __init__(self, stack: StoredStack, plan: TilePlan, *, keep: int) -> None:
        self.stack, self.plan, self.keep = stack, plan, keep
        self.pixels = 0
        self._cell = cell_of(stack)
        self._cells = [intervals(n, c) for n, c in zip(stack.shape, self._cell, strict=True)]
        self._kept: dict[Place, _Kept] = {}
        self._bytes = 0
        # by axis and cell: the parts of the plan that need it
        self._users = [
            [[i for i, read in enumerate(spans) if _meet(read, cell)] for cell in cells]
            for spans, cells in zip(_reads(plan), self._cells, strict=True)
        ]

    def read(self, number: int) -> NDArray[Any]:
        """The pixels of `plan[number].read` in the dtype of the file, a copy.

        Raises:
            InputError: they cannot be read, or are not finite.
        """
        box = self.plan[number].read
        out = np.empty(box.shape, self.stack.dtype.newbyteorder("="))
        for place in self._places(box):
            cell = Box(*(spans[i] for spans, i in zip(self._cells, place, strict=True)))
            data = self._take(place)
            if data is None:
                data = self.stack.read(cell)
                self.pixels += data.size
            shared = Box(*(_common(a, b) for a, b in zip(cell, box, strict=True)))
            out[shared.within(box)] = data[shared.within(cell)]
            self._store(place, data, number)
        return out

    def _places(self, box: Box) -> Iterator[Place]:
        spans = (
            range(span.start // size, -(-span.stop // size))
            for span, size in zip(box, self._cell, strict=True)
        )
        return product(*spans)  # type: ignore[return-value]

    def _take(self, place: Place) -> NDArray[Any] | None:
        kept = self._kept.pop(place, None)
        if kept is None:
            return None
        self._bytes -= kept.data.nbytes
        return kept.data

    def _store(self, place: Place, data: NDArray[Any], number: int) -> None:
        """Keep a chunk, unless there is no room and all others are needed sooner."""
        wanted = self._next_use(place, number)
        if wanted is None or data.nbytes > self.keep:
            return

        def when(other: Place) -> float:  # what was wanted before is with another process
            return due if (due := self._kept[other].wanted) >= number else math.inf

        while self._bytes + data.nbytes > self.keep:
            last = max(self._kept, key=when)
            if when(last) <= wanted:
                return
            self._take(last)
        self._kept[place] = _Kept(wanted, data)
        self._bytes += data.nbytes

    def _next_use(self, place: Place, number: int) -> int | None:
        """The next tile after `number`, in the order of the plan, that needs a chunk."""
        deep, _, wide = self.plan.grid
        z, y, x = (by_cell[i] for by_cell, i in zip(self._users, place, strict=True))
        users = ((j * wide + k) * deep + i for i in z for j in y for k in x)
        return min((user for user in users if user > number), default=None)


def ahead(boxes: Sequence[Box], read: Callable[[Box], T]) -> Iterator[T]:
    """What `read` gives for each box, in order; a thread reads the next one meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as thread:
        following: Future[T] | None = None
        for box, after in zip_longest(boxes, boxes[1:]):
            found = (following or thread.submit(read, box)).result()
            following = None if after is None else thread.submit(read, after)
            yield found
            del found  # whoever took it may drop it before the next one comes


def pixels_to_decode(stack: StoredStack, plan: TilePlan, *, keep: int) -> int:
    """How many pixels a `TileReader` decodes for all tiles, in the order of the plan.

    Exact where what it keeps fits into `keep` bytes, an upper estimate where it fits in part.
    """
    cell = cell_of(stack)
    axes = [
        [_aligned(span, step, size) for span in spans]
        for spans, step, size in zip(_reads(plan), cell, stack.shape, strict=True)
    ]
    seen = [spans[-1].stop - spans[0].start for spans in axes]
    # what two neighbours along an axis share
    deep, tall, wide = (
        max((a.stop - b.start for a, b in pairwise(spans)), default=0) for spans in axes
    )
    height, width = (max(span.length for span in spans) for spans in axes[1:])
    itemsize, total = stack.dtype.itemsize, 1
    needed = 0
    # the next tile of a column, the next column of a row, the next row
    for axis, pixels in (
        (0, deep * height * width),
        (2, seen[0] * height * wide),
        (1, seen[0] * tall * seen[2]),
    ):
        needed += pixels * itemsize
        total *= seen[axis] if needed <= keep else sum(span.length for span in axes[axis])
    return total


def _reads(plan: TilePlan) -> tuple[list[Span], list[Span], list[Span]]:
    """What the parts of a plan read along z, y and x."""
    rows, columns = ([part.read for part in parts] for parts in plan.lateral)
    return [part.read for part in plan.axial], rows, columns


def _aligned(span: Span, step: int, size: int) -> Span:
    return Span(span.start // step * step, min(-(-span.stop // step) * step, size))


def _meet(a: Span, b: Span) -> bool:
    return a.start < b.stop and b.start < a.stop


def _common(a: Span, b: Span) -> Span:
    return Span(max(a.start, b.start), min(a.stop, b.stop))
