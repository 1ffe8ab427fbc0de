"""`metrics.evaluate` for volumes on disk that are larger than memory: the same numbers, bit by bit.

Both volumes are read in slabs of whole slices. Sums of slices merge exactly, SSIM is a mean over
slices, and percentiles come from counts: no value is estimated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import metrics_formulas as formulas
from .errors import InputError
from .kernels.volume_metrics import VolumeSums
from .metrics import GREY_LEVELS, Evaluation, Window, _grey_scale, _ssim
from .metrics_input import Pair, Range, as_volume
from .progress import Progress, ProgressCallback
from .store_source import StoredStack, open_stack
from .tiling import intervals
from .tiling_budget import memory_bytes
from .tiling_windows import Box, Span

_DIGIT = 16  # bits of a value that one reading counts
_COPIES = 3  # of a slab at once: as read, as the kernels take it, and what counting makes of it


def evaluate_stored(
    test: str | os.PathLike[str] | StoredStack,
    reference: str | os.PathLike[str] | StoredStack,
    *,
    intensity: tuple[float, float] | None = None,
    window: Window = "uniform",
    memory: int | str = "1GiB",
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> Evaluation:
    """Compare a reconstruction on disk with the truth on disk; see `metrics.evaluate`.

    Each volume is read twice, the reference up to two times more (8-bit and 16-bit integers once)
    where no intensities are given.

    Args:
        test: reconstruction [Z, Y, X]: Zarr store, TIFF or NPY, or one that is open.
        reference: truth [Z, Y, X], in the same units.
        intensity: the two intensities that become 0 and 255; None takes the 0.1 and 99.9
            percentiles of the reference.
        window: of the SSIM.
        memory: what slabs may take, such as "1GiB"; one slice of each volume is the least.
        progress: show bars.
        callback: called with a `ProgressEvent` after every slab; returning False cancels.

    Raises:
        InputError: files that cannot be read, shapes that differ, values that are not finite, or a
            reference without an intensity range.

    Source: MicroDiffusion (arXiv 2403.10815), supplement, evaluation metrics.
    """
    x, y = (v if isinstance(v, StoredStack) else open_stack(v) for v in (reference, test))
    if x.shape != y.shape:
        expected = f"shape {list(x.shape)}, like the reference"
        raise InputError("test", expected, f"shape {list(y.shape)}")
    slabs = slabs_of(x, y, memory_bytes(memory))
    low, high = intensity or stored_percentiles(x, (0.1, 99.9), slabs)
    if not low < high:
        expected = "a 0.1 percentile below the 99.9 percentile (or give the intensity range)"
        raise InputError("reference", expected, f"{low:g} for both")
    scale = _grey_scale(low, high)

    def pairs(stage: str) -> Iterator[Pair]:
        with Progress(stage, len(slabs), enabled=progress, callback=callback, unit="slab") as bar:
            for slab in slabs:
                pair = Pair.of(x.read(slab), y.read(slab))
                yield pair.mapped(scale, -low * scale, (0.0, GREY_LEVELS))
                bar.advance(1)

    sums: VolumeSums | None = None
    ssims = []
    for pair in pairs("compare"):
        part = pair.sums(histograms=True)
        ssims.append(_ssim(pair, part, GREY_LEVELS, window, whole=False))
        sums = part if sums is None else sums.merge(part)
    assert sums is not None
    thresholds = _thresholds(sums, pairs)
    overlaps = torch.cat([pair.overlaps(thresholds) for pair in pairs("overlap")])
    return Evaluation(
        psnr=float(formulas.psnr(sums, GREY_LEVELS, whole=False).mean()),
        ssim=float(torch.cat(ssims).mean()),
        dice=float(formulas.dice(overlaps, 1e-6, whole=True)),
    )


def _thresholds(sums: VolumeSums, pairs: Any) -> tuple[float, float]:
    """Otsu's, from histograms between the extremes; counted again where those are no limits."""
    extremes = (
        (float(sums.min_x.min()), float(sums.max_x.max())),
        (float(sums.min_y.min()), float(sums.max_y.max())),
    )
    if extremes != (sums.range_x, sums.range_y):
        parts = (pair.sums(histograms=True, ranges=extremes) for pair in pairs("histograms"))
        sums = next(parts)
        for part in parts:
            sums = sums.merge(part)
    of_x = formulas.otsu(sums.histogram_x, sums.range_x)
    return of_x, formulas.otsu(sums.histogram_y, sums.range_y)


def slabs_of(x: StoredStack, y: StoredStack, memory: int) -> list[Box]:
    """Whole slices of two stacks of one shape, as many as `memory` bytes hold, in whole chunks."""
    depth, height, width = x.shape
    each = height * width * (x.dtype.itemsize + y.dtype.itemsize) * _COPIES
    slices = max(memory // each, 1)
    together = math.lcm(x.chunks[0], y.chunks[0])
    if slices > together:
        slices -= slices % together
    return [Box(z, Span(0, height), Span(0, width)) for z in intervals(depth, slices)]


def stored_percentiles(
    stack: StoredStack, percents: tuple[float, float], slabs: Sequence[Box]
) -> Range:
    """Percentiles of a stack, equal to those of `numpy.percentile`, in bounded memory."""
    count = math.prod(stack.shape)
    place = (count - 1) * (np.asarray(percents) / 100.0)
    rank = np.floor(place).astype(np.int64)
    ranks = [*rank.tolist(), *np.minimum(rank + 1, count - 1).tolist()]
    values = order_statistics(stack, ranks, slabs)
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
        for slab in slabs:
            for image in as_volume("reference", stack.read(slab)).numpy():
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
