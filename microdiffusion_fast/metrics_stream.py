"""`metrics.evaluate` for volumes on disk that are larger than memory: the same numbers, bit by bit.

Both volumes are read in slabs of whole slices. Sums of slices merge exactly, SSIM is a mean over
slices, and percentiles come from counts: no value is estimated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch

from . import metrics_formulas as formulas
from .errors import InputError
from .kernels.volume_metrics import VolumeSums
from .metrics import GREY_LEVELS, Evaluation, Window, _grey_scale, _ssim
from .metrics_input import Pair
from .metrics_ranks import stored_percentiles
from .progress import Progress, ProgressCallback
from .store_reader import ahead
from .store_source import StoredStack, open_stack
from .tiling import intervals
from .tiling_budget import memory_bytes
from .tiling_windows import Box, Span

_COPIES = 4  # of a slab at once: as read, as the kernels take it, what they make, and the next
# Bytes of a slab in all that are enough: the allocator gives arrays of this size to the next slab
# again, where larger ones come anew from the system each time, page after page set to zero, and
# what one step leaves is partly in the cache for the next. Measured on two cores, with a budget of
# 768 MiB: 1,318 MiB/s, against 790 with slabs that fill it.
_ENOUGH = 64 * 2**20


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

    Each volume is read twice, the reference once more where no intensities are given (very large
    ones of 32 bits and more: once for every 16 bits). A thread reads the next slab meanwhile.

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
            for one, other in ahead(slabs, lambda slab: (x.read(slab), y.read(slab))):
                yield Pair.of(one, other).mapped(scale, -low * scale, (0.0, GREY_LEVELS))
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
    """Whole slices of two stacks of one shape, in whole chunks, that `memory` bytes hold.

    They are one layer of chunks, or `_ENOUGH` bytes where that is more: larger slabs are slower.
    """
    depth, height, width = x.shape
    each = height * width * (x.dtype.itemsize + y.dtype.itemsize) * _COPIES
    together = math.lcm(x.chunks[0], y.chunks[0])
    slices = max(min(memory // each, max(_ENOUGH // each, together)), 1)
    if slices > together:
        slices -= slices % together
    return [Box(z, Span(0, height), Span(0, width)) for z in intervals(depth, slices)]
