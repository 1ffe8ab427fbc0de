"""The coarser resolutions of a volume, each made from the one before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from .errors import InputError
from .store_layout import Layout, Level, halved
from .store_shards import ShardWriter
from .tiling_windows import Box, Span

# Copies that are there at once, by measurement: of a shard while it is written, and of the chunks
# that one of its own is made of while they are read.
WRITTEN, READ = 4.0, 4.5


def missing_shards(shards: ShardWriter) -> int:
    """How many shards of the coarser resolutions are to be made."""
    levels = list(enumerate(shards.levels))[1:]
    return sum(not shards.has(box, number) for number, level in levels for box in level.boxes())


def coarsen(shards: ShardWriter, advance: Callable[[int], None]) -> None:
    """Make the coarser resolutions, each from the one before, when the full one is complete.

    One process does, chunk by chunk, so that shards of any size take little memory beside one.

    Args:
        shards: of the volume.
        advance: told the number of shards made.

    Raises:
        InputError: a shard of the full one is missing: its mean would be kept as if it were
            right, or there is no room.
    """
    full = shards.levels[0]
    left = sum(not shards.has(box) for box in full.boxes())
    if left:
        raise InputError("output", f"all {full.count:,} shards", f"{full.count - left:,}")
    for number, level in list(enumerate(shards.levels))[1:]:
        finer = shards.levels[number - 1]
        ratio = [a // b for a, b in zip(level.factors, finer.factors, strict=True)]
        before = shards.arrays[number - 1]
        for shard in level.boxes():
            if shards.has(shard, number):
                continue
            data = np.empty(shard.shape, before.dtype)
            for chunk in _chunks(shard, level):
                source = tuple(
                    slice(span.start * r, min(span.stop * r, size))
                    for span, r, size in zip(chunk, ratio, finer.shape, strict=True)
                )
                data[chunk.within(shard)] = halved(np.asarray(before[source]), ratio)
            shards.write(shard, data, [shard], level=number)
            advance(1)


def coarsening_bytes(layout: Layout) -> int:
    """Bytes at the peak of `coarsen`, 0 where there are no coarser resolutions."""
    most = 0.0
    for finer, level in pairwise(layout.levels):
        ratio = [a // b for a, b in zip(level.factors, finer.factors, strict=True)]
        source = math.prod(
            -(-min(c * r, size) // whole) * whole
            for c, r, size, whole in zip(
                level.chunks, ratio, finer.shape, finer.chunks, strict=True
            )
        )
        shard = math.prod(level.shards)
        most = max(most, shard + max(WRITTEN * shard, READ * source))
    return int(most * np.dtype(layout.dtype).itemsize)


def _chunks(shard: Box, level: Level) -> Iterator[Box]:
    """The chunks of a shard."""
    z, y, x = (
        [Span(start, min(start + step, span.stop)) for start in range(span.start, span.stop, step)]
        for span, step in zip(shard, level.chunks, strict=True)
    )
    return (Box(a, b, c) for a in z for b in y for c in x)
