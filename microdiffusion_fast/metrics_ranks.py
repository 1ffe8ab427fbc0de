"""Percentiles of volumes on disk, exact: from the two tails, or from counts of leading bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics_input import Range, as_volume
from .store_reader import ahead
from .store_source import StoredStack
from .tiling_windows import Box

_DIGIT = 16  # bits of a value that one reading counts
TAILS = 2**26  # bytes of values that are kept of the tails at most


def stored_percentiles(
    stack: StoredStack, percents: tuple[float, float], slabs: Sequence[Box]
) -> Range:
    """Percentiles of a stack, equal to those of `numpy.percentile`, in bounded memory.

    Args:
        stack: finite values.
        percents: a low and a high one.
        slabs: to read it in.
    """
    count = math.prod(stack.shape)
    place = (count - 1) * (np.asarray(percents) / 100.0)
    rank = np.floor(place).astype(np.int64)
    ranks = [*rank.tolist(), *np.minimum(rank + 1, count - 1).tolist()]
    beyond = ranks[2] + 1 + count - ranks[1]  # values in the two tails
    few = stack.dtype.itemsize > 2 and beyond * stack.dtype.itemsize <= TAILS
    values = (tail_values if few else order_statistics)(stack, ranks, slabs)
    below, above = values[:2], values[2:]
    share = place - rank
    # numpy's "linear" method, with its rounding: from the nearer of the two
    difference = np.subtract(above, below)
    if values.dtype.kind == "u":
        low, high = (below + difference * share).tolist()
    else:
        nearer = np.where(share < 0.5, below + difference * share, above - difference * (1 - share))
        low, high = nearer.tolist()
    return low, high


class _Tail:
    """The least, or the largest, `count` of values that come in parts."""

    def __init__(self, count: int, *, largest: bool) -> None:
        self.count, self.largest = count, largest
        self.parts: list[NDArray[Any]] = []
        self.size = 0
        self.bound: Any = None  # what is beyond it is not among them

    def add(self, values: NDArray[Any]) -> None:
        if self.bound is None:
            values = values.copy()  # of a slab that goes
        else:
            values = values[values >= self.bound if self.largest else values <= self.bound]
        self.parts.append(values)
        self.size += values.size
        if self.size > 2 * self.count:  # not after every part: that would sort them all the time
            self._cut()

    def values(self) -> NDArray[Any]:
        """All of them, in order."""
        self._cut()
        return np.sort(self.parts[0])

    def _cut(self) -> None:
        kept = np.concatenate(self.parts)
        if kept.size > self.count:
            edge = kept.size - self.count if self.largest else self.count - 1
            kept.partition(edge)
            kept = (kept[edge:] if self.largest else kept[: self.count]).copy()
            self.bound = kept[0] if self.largest else kept[self.count - 1]
        self.parts, self.size = [kept], kept.size


def tail_values(stack: StoredStack, ranks: Sequence[int], slabs: Sequence[Box]) -> NDArray[Any]:
    """`order_statistics` of two low and two high ranks in turn, in one reading."""
    count = math.prod(stack.shape)
    low, high = _Tail(ranks[2] + 1, largest=False), _Tail(count - ranks[1], largest=True)
    for slab in ahead(slabs, stack.read):
        for image in as_volume("reference", slab).numpy():
            low.add(image.ravel())
            high.add(image.ravel())
    least, largest = low.values(), high.values()
    places = (rank - count for rank in ranks[1::2])
    above = [largest[place] for place in places]
    return np.array([least[ranks[0]], above[0], least[ranks[2]], above[1]])


def order_statistics(
    stack: StoredStack, ranks: Sequence[int], slabs: Sequence[Box]
) -> NDArray[Any]:
    """The values that would have these ranks if the stack were sorted; exact.

    Values are counted by their leading bits, then those that share the bits of a wanted rank by the
    next ones: one reading for every 16 bits of a value.
    """
    dtype = as_volume("reference", np.empty((1, 1, 1), stack.dtype)).numpy().dtype
    bits = 8 * dtype.itemsize
    left = list(ranks)  # rank among the values that share the prefix
    prefixes = [0] * len(ranks)
    for shift in range(max(bits - _DIGIT, 0), -1, -_DIGIT):
        width = min(bits, _DIGIT)
        counts = {prefix: np.zeros(2**width, np.int64) for prefix in prefixes}
        for slab in ahead(slabs, stack.read):
            for image in as_volume("reference", slab).numpy():
                head = _keys(image.ravel()) >> np.array(shift, f"u{dtype.itemsize}")
                for prefix, found in counts.items():
                    if shift + width < bits:
                        digits = head[head >> width == prefix] & (2**width - 1)
                    else:
                        digits = head
                    found += np.bincount(digits, minlength=2**width)
        for i, prefix in enumerate(prefixes):
            below = counts[prefix].cumsum()
            digit = int(below.searchsorted(left[i], side="right"))
            left[i] -= int(below[digit - 1]) if digit else 0
            prefixes[i] = prefix << width | digit
    return _values(np.array(prefixes, dtype=f"u{dtype.itemsize}"), dtype)


def _keys(values: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers in the order of the values: unsigned integers or floats, none NaN."""
    if values.dtype.kind == "u":
        return values
    raw = values.view(f"u{values.dtype.itemsize}")
    sign = np.array(1 << (8 * values.dtype.itemsize - 1), raw.dtype)
    return np.where(raw & sign, ~raw, raw | sign)


def _values(keys: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """What `_keys` was made from."""
    if dtype.kind == "u":
        return keys.astype(dtype)
    sign = np.array(1 << (8 * dtype.itemsize - 1), keys.dtype)
    return np.where(keys & sign, keys ^ sign, ~keys).view(dtype)
