"""One pass over two volumes: all that MSE, PSNR, global SSIM and Otsu's threshold need.

`evaluate_sums` gives sums, extremes and histograms; `overlap_counts` is the second pass of DICE,
and `joint_counts` spares it where reading is what takes long.
The kernels read uint8, int16, uint16, bfloat16, float32 and float64 in any combination, on a GPU
float16 too; other dtypes, and devices without a kernel, are served by the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from . import operators
from . import reference as _reference
from .reference import BINS, Range, bin_centres, bin_edges

__all__ = [
    "BINS",
    "VolumeSums",
    "bin_centres",
    "bin_edges",
    "evaluate_sums",
    "joint_counts",
    "overlap_counts",
]


@dataclass(frozen=True)
class VolumeSums:
    """Mergeable statistics of a reference x and a test volume y, after map and clip.

    Attributes:
        n, sum_x, sum_y, sum_xx, sum_yy, sum_xy, sse, min_x, max_x, min_y, max_y: one float64 value
            a slice, [Z]; `sse` is the sum of `(x - y)^2`.
        histogram_x, histogram_y: int64 [256] counts of the whole volume over `range_x`, `range_y`.
        range_x, range_y: limits of the histograms.
    """

    n: Tensor
    sum_x: Tensor
    sum_y: Tensor
    sum_xx: Tensor
    sum_yy: Tensor
    sum_xy: Tensor
    sse: Tensor
    min_x: Tensor
    max_x: Tensor
    min_y: Tensor
    max_y: Tensor
    histogram_x: Tensor
    histogram_y: Tensor
    range_x: Range
    range_y: Range

    @property
    def mse(self) -> Tensor:
        """Mean squared error of every slice, float64 [Z]."""
        return self.sse / self.n

    def merge(self, other: VolumeSums) -> VolumeSums:
        """Statistics of this block with `other` put below it along z; exact, in any grouping.

        Raises:
            ValueError: if the two histograms were taken over different ranges.
        """
        if (self.range_x, self.range_y) != (other.range_x, other.range_y):
            ranges = f"{(self.range_x, self.range_y)}"
            got = f"{(other.range_x, other.range_y)}"
            raise ValueError(f"other: expected histogram ranges {ranges}, got {got}")
        rows = {
            name: torch.cat([getattr(self, name), getattr(other, name)])
            for name in _reference.COLUMNS
        }
        return VolumeSums(
            **rows,
            histogram_x=self.histogram_x + other.histogram_x,
            histogram_y=self.histogram_y + other.histogram_y,
            range_x=self.range_x,
            range_y=self.range_y,
        )


def evaluate_sums(
    reference: Tensor,
    test: Tensor,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    clip: Range | None = None,
    ranges: tuple[Range, Range] | None = None,
    histograms: bool = True,
) -> VolumeSums:
    """Sums, extremes and 256-bin histograms of two volumes [Z, Y, X] in one read of each.

    Args:
        reference: Volume x [Z, Y, X], any real dtype.
        test: Volume y of the same shape on the same device.
        scale: Both volumes are mapped by `v*scale + offset` in float64 first.
        offset: See `scale`.
        clip: Limits to clip to after the map.
        ranges: Limits of the two histograms; values outside fall into the end bins. Default: `clip`
            for both, and without a clip the extremes of each volume, which costs a second read.
            Blocks merge only if their ranges agree.
        histograms: False leaves both histograms empty, which is several times faster.

    Raises:
        ValueError: if shapes or devices differ, a volume is empty or not 3D (there are no extremes
            of nothing), values or the map are not finite, or limits are out of order.
        TypeError: if a volume is no dense tensor of real numbers, or an option no number.

    Examples:
        >>> x, y = torch.zeros(2, 4, 4), torch.full((2, 4, 4), 0.5)
        >>> sums = evaluate_sums(x, y, histograms=False)
        >>> sums.sse.tolist()  # of each slice
        [4.0, 4.0]
    """
    _check_volumes(reference, test)
    bounds = None if clip is None else checks.limits("clip", clip, _LIMITS)
    arguments = (reference, test, *_map(scale, offset), list(bounds or ()))
    limits = None if bounds is None else (bounds, bounds)
    if ranges is not None:
        limits = _ranges(ranges)
    table, counts = operators.sums(*arguments, _edges(limits) if histograms else [])
    columns = dict(zip(_reference.COLUMNS, table.unbind(1), strict=True))
    low_x, low_y = columns["min_x"].min(), columns["min_y"].min()
    high_x, high_y = columns["max_x"].max(), columns["max_y"].max()
    # One transfer, where the volumes lie on a GPU.
    total, *extremes = torch.stack([table.sum(), low_x, high_x, low_y, high_y]).tolist()
    if not math.isfinite(total):
        raise ValueError("reference, test: expected finite values, got NaN or infinity")
    if limits is None:
        limits = ((extremes[0], extremes[1]), (extremes[2], extremes[3]))
        if histograms:
            counts = operators.sums(*arguments, _edges(limits), moments=False)[1]
    return VolumeSums(
        **columns,
        histogram_x=counts[0],
        histogram_y=counts[1],
        range_x=limits[0],
        range_y=limits[1],
    )


def overlap_counts(
    reference: Tensor,
    test: Tensor,
    thresholds: tuple[float, float],
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    clip: Range | None = None,
) -> Tensor:
    """Voxels above the thresholds in x, in y and in both, of every slice: int64 [Z, 3].

    Args:
        reference: Volume x [Z, Y, X], any real dtype.
        test: Volume y of the same shape on the same device.
        thresholds: One for x and one for y, in mapped units; a voxel has to be above it.
        scale: As in `evaluate_sums`.
        offset: As in `evaluate_sums`.
        clip: As in `evaluate_sums`.

    Raises:
        ValueError: if shapes or devices differ, a volume is empty or not 3D, a threshold is NaN,
            the map is not finite, or the limits are out of order.
        TypeError: if a volume is no dense tensor of real numbers, or an option no number.
    """
    _check_volumes(reference, test)
    of_x, of_y = (
        checks.number("thresholds", threshold, _THRESHOLDS, finite=False)
        for threshold in checks.two("thresholds", thresholds, _THRESHOLDS)
    )
    bounds = [] if clip is None else list(checks.limits("clip", clip, _LIMITS))
    return operators.overlaps(reference, test, of_x, of_y, *_map(scale, offset), bounds)


def joint_counts(
    reference: Tensor,
    test: Tensor,
    ranges: tuple[Range, Range],
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    clip: Range | None = None,
) -> Tensor:
    """Voxels in every pair of half bins of x and y: int64 [512, 512].

    Row 2 b is for bin b of the histogram of x, row 2 b + 1 for what is above the centre of that
    bin; columns likewise for y. Sums over rows and columns give both histograms, and the overlap
    at Otsu's thresholds, which are centres, without another read. Blocks merge by addition.

    Args:
        reference: Volume x [Z, Y, X], any real dtype, finite.
        test: Volume y of the same shape on the same device, finite.
        ranges: Limits of the two histograms, as in `evaluate_sums`.
        scale: As in `evaluate_sums`.
        offset: As in `evaluate_sums`.
        clip: As in `evaluate_sums`.

    Raises:
        ValueError: if shapes or devices differ, a volume is empty or not 3D, the map is not finite,
            or limits are out of order.
        TypeError: if a volume is no dense tensor of real numbers, or an option no number.
    """
    _check_volumes(reference, test)
    bounds = [] if clip is None else list(checks.limits("clip", clip, _LIMITS))
    edges = _edges(_ranges(ranges))
    return operators.joint(reference, test, *_map(scale, offset), bounds, edges)


_LIMITS = "two finite numbers (low, high)"
_THRESHOLDS = "two numbers"


def _check_volumes(reference: Tensor, test: Tensor) -> None:
    for name, volume in (("reference", reference), ("test", test)):
        checks.tensor(name, volume)
        if volume.ndim != 3 or volume.numel() == 0:
            shape = list(volume.shape)
            raise ValueError(f"{name}: expected a volume [Z, Y, X], not empty, got shape {shape}")
    if reference.shape != test.shape:
        expected = f"shape {list(reference.shape)}, like the reference"
        raise ValueError(f"test: expected {expected}, got {list(test.shape)}")
    checks.on_device_of("test", test, "the reference", reference.device)


def _map(scale: float, offset: float) -> tuple[float, float]:
    return checks.number("scale", scale), checks.number("offset", offset)


def _ranges(ranges: tuple[Range, Range]) -> tuple[Range, Range]:
    of_x, of_y = checks.two("ranges", ranges, "two ranges (low, high)")
    return checks.limits("ranges", of_x, _LIMITS), checks.limits("ranges", of_y, _LIMITS)


def _edges(ranges: tuple[Range, Range] | None) -> list[float]:
    return [edge for limits in ranges or () for edge in limits]
