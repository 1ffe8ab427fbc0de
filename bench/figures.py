"""From the times of alternating rounds to the figures of a row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def spread(values: Sequence[float]) -> Json:
    """Median, quartiles and least of some numbers."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if len(ordered) > 3:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    least = {"low": low, "high": high, "least": ordered[0]}
    return {"median": statistics.median(ordered), **least}


def ratios(above: dict[int, float], below: dict[int, float]) -> Json:
    """The spread of `above / below` within rounds, with the ratio of the least of both.

    Something that was part of few rounds takes so long that it averages over the machine's swings,
    and a single short call beside it does not: then the median of all of `below` stands in.
    """
    typical = statistics.median(below.values())
    paired = 2 * len(above) > len(below)
    values = [time / (below[i] if paired else typical) for i, time in above.items()]
    return spread(values) | {"of_least": min(above.values()) / min(below.values())}


def roofline(floor_bytes: float, ours: dict[int, float], copies: dict[int, float]) -> Json:
    """How ours compares with a memcpy of as many bytes: `times_floor` and its inverse."""
    times_floor = ratios(ours, copies)
    return {
        "floor_bytes": int(floor_bytes),
        "gb_per_s": floor_bytes / statistics.median(ours.values()) / 1e9,
        "memcpy_gb_per_s": floor_bytes / statistics.median(copies.values()) / 1e9,
        "times_floor": times_floor,
        "roofline": 1.0 / times_floor["median"],
    }
