"""A run that several processes divide, without a scheduler: which tiles are whose."""

from __future__ import annotations

import re

from .errors import InputError
from .store_output import Part
from .tiling import TilePlan


def part_of(text: str, plan: TilePlan) -> Part:
    """Read "i/n", the i-th of n parts of these tiles.

    Raises:
        InputError: naming `shard`.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError("shard", "i/n, the i-th of n parts, such as 1/4", repr(text))
    return Part(int(found[1]), int(found[2]), {"tile": plan.core})


def tiles_of(part: Part, plan: TilePlan) -> range:
    """The tiles of a part, neighbours, which share what they read; none where there are fewer."""
    total = len(plan)
    return range((part.number - 1) * total // part.total, part.number * total // part.total)
