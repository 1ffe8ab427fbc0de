"""The coarser resolutions of a volume, each made from the one before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .errors import InputError
from .store_layout import halved
from .store_shards import ShardWriter


def missing_shards(shards: ShardWriter) -> int:
    """How many shards of the coarser resolutions are to be made."""
    levels = list(enumerate(shards.levels))[1:]
    return sum(not shards.has(box, number) for number, level in levels for box in level.boxes())


def coarsen(shards: ShardWriter, advance: Callable[[int], None]) -> None:
    """Make the coarser resolutions, each from the one before, when the full one is complete.

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
        for shard in level.boxes():
            if not shards.has(shard, number):
                source = tuple(
                    slice(span.start * r, min(span.stop * r, size))
                    for span, r, size in zip(shard, ratio, finer.shape, strict=True)
                )
                data = halved(np.asarray(shards.arrays[number - 1][source]), ratio)
                shards.write(shard, data, [shard], level=number)
                advance(1)
