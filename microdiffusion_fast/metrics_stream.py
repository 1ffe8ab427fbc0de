"""`metrics.evaluate` for volumes on disk that are larger than memory: the same numbers, bit by bit.

Both volumes are read in slabs of whole slices. Sums of slices merge exactly, SSIM is a mean over
slices, the overlap at thresholds that are known in the end comes from joint counts, and percentiles
from the tails or from counts: no value is estimated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from . import metrics_formulas as formulas
from .errors import InputError
from .kernels.volume_metrics import BINS, VolumeSums
from .metrics import GREY_LEVELS, Evaluation, Window, _grey_scale, _ssim
from .metrics_input import Pair
from .metrics_ranks import stored_percentiles
from .progress import Progress, ProgressCallback
from .store_reader import ahead, chunk_bytes
from .store_source import StoredStack, open_stack
from .tiling import intervals
from .tiling_budget import memory_bytes
from .tiling_windows import Box, Span

_GREYS = (0.0, GREY_LEVELS)
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

    Each volume is read once, the reference before that where no intensities are given (very large
    ones of 32 bits and more: once for every 16 bits), and both once more where one of them does not
    reach both limits of the grey levels. Two threads read the next slabs meanwhile.

    Args:
        test: reconstruction [Z, Y, X]: Zarr store, TIFF or NPY, or one that is open.
        reference: truth [Z, Y, X], in the same units.
        intensity: the two intensities that become 0 and 255; None takes the 0.1 and 99.9
            percentiles of the reference.
        window: of the SSIM.
        memory: what slabs may take, and large chunks while they are decoded, such as "1GiB"; one
            slice of each volume is the least.
        progress: show bars.
        callback: called with a `ProgressEvent` after every slab; returning False cancels.

    Raises:
        InputError: files that cannot be read, shapes that differ, values that are not finite, a
            reference without an intensity range, or chunks that the budget does not hold.

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
            for one, other in _both(x, y, slabs):
                yield Pair.of(one, other).mapped(scale, -low * scale, _GREYS)
                bar.advance(1)

    sums: VolumeSums | None = None
    joint = torch.zeros(2 * BINS, 2 * BINS, dtype=torch.int64)
    ssims = []
    for pair in pairs("compare"):
        part = pair.sums()
        ssims.append(_ssim(pair, part, GREY_LEVELS, window, whole=False))
        joint += pair.joint((_GREYS, _GREYS))
        sums = part if sums is None else sums.merge(part)
    assert sums is not None
    return Evaluation(
        psnr=float(formulas.psnr(sums, GREY_LEVELS, whole=False).mean()),
        ssim=float(torch.cat(ssims).mean()),
        dice=float(formulas.dice(_overlaps(sums, joint, pairs), 1e-6, whole=True)),
    )


def _overlaps(sums: VolumeSums, joint: Tensor, pairs: Callable[[str], Iterator[Pair]]) -> Tensor:
    """Of what is above Otsu's thresholds, from joint counts over all grey levels.

    Otsu's bins lie between the extremes: where those are no limits, the counts are taken again.
    """
    extremes = (
        (float(sums.min_x.min()), float(sums.max_x.max())),
        (float(sums.min_y.min()), float(sums.max_y.max())),
    )
    if extremes != (_GREYS, _GREYS):
        joint = torch.zeros_like(joint)
        for pair in pairs("histograms"):
            joint += pair.joint(extremes)
    histograms = formulas.marginals(joint)
    of_x, of_y = (formulas.otsu(*found) for found in zip(histograms, extremes, strict=True))
    overlaps = formulas.joint_overlaps(joint, (of_x, of_y), extremes)
    if overlaps is None:
        return torch.cat([pair.overlaps((of_x, of_y)) for pair in pairs("overlap")])
    return overlaps


def _both(
    x: StoredStack, y: StoredStack, slabs: Sequence[Box]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The slabs of two stacks; a thread for each reads the next one meanwhile."""
    if x is y:  # a stack is read by one thread at a time
        return ((slab, slab) for slab in ahead(slabs, x.read))
    return zip(ahead(slabs, x.read), ahead(slabs, y.read), strict=True)


def slabs_of(x: StoredStack, y: StoredStack, memory: int) -> list[Box]:
    """Whole slices of two stacks of one shape, in whole chunks, that `memory` bytes hold.

    They are one layer of chunks, or `_ENOUGH` bytes where that is more: larger slabs are slower.

    Raises:
        InputError: the budget does not hold a chunk of each while it is decoded.
    """
    depth, height, width = x.shape
    decoding = chunk_bytes(x, y)
    if decoding > memory:
        expected = f"at least {math.ceil(decoding / 2**20):,} MiB to read a chunk of each volume"
        raise InputError("memory", expected, f"{memory / 2**20:,.0f} MiB")
    memory -= decoding
    each = height * width * (x.dtype.itemsize + y.dtype.itemsize) * _COPIES
    together = math.lcm(x.chunks[0], y.chunks[0])
    slices = max(min(memory // each, max(_ENOUGH // each, together)), 1)
    if slices > together:
        slices -= slices % together
    return [Box(z, Span(0, height), Span(0, width)) for z in intervals(depth, slices)]
