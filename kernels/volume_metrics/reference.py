"""Per-slice moments, extremes, histograms and overlaps of two volumes, in float64 torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 256

# Columns of the table of sums, one row a slice.
COLUMNS = (
    "n",
    "sum_x",
    "sum_y",
    "sum_xx",
    "sum_yy",
    "sum_xy",
    "sse",
    "min_x",
    "max_x",
    "min_y",
    "max_y",
)

Range = tuple[float, float]


def slice_sums(
    reference: Tensor, test: Tensor, scale: float, offset: float, clip: Range | None
) -> Tensor:
    """Sums float64 [Z, 11] (see `COLUMNS`) of the mapped volumes; NaN where a slice is not finite.

    Slices are summed one by one, so that a row does not depend on the slices that came along with
    it.
    """
    rows = []
    for slices in zip(reference, test, strict=True):
        x, y = (_mapped(values, scale, offset, clip) for values in slices)
        rows.append(_slice_row(x, y))
    return torch.stack(rows)


def histograms(
    reference: Tensor,
    test: Tensor,
    scale: float,
    offset: float,
    clip: Range | None,
    ranges: tuple[Range, Range],
) -> Tensor:
    """Histograms int64 [2, 256] of the mapped volumes over their `ranges`, see `histogram`."""
    counts = torch.zeros(2, BINS, dtype=torch.int64, device=reference.device)
    for slices in zip(reference, test, strict=True):
        for row, values, limits in zip(counts, slices, ranges, strict=True):
            row += histogram(_mapped(values, scale, offset, clip), *limits)
    return counts


def overlap_counts(
    reference: Tensor,
    test: Tensor,
    threshold_x: float,
    threshold_y: float,
    scale: float,
    offset: float,
    clip: Range | None,
) -> Tensor:
    """Voxels of every slice above the thresholds in x, in y and in both, int64 [Z, 3]."""
    rows = []
    for slices in zip(reference, test, strict=True):
        x, y = (_mapped(values, scale, offset, clip) for values in slices)
        above_x, above_y = x > threshold_x, y > threshold_y
        rows.append(torch.stack([m.sum() for m in (above_x, above_y, above_x & above_y)]))
    return torch.stack(rows)


def joint_counts(
    reference: Tensor,
    test: Tensor,
    scale: float,
    offset: float,
    clip: Range | None,
    ranges: tuple[Range, Range],
) -> Tensor:
    """Voxels in every pair of half bins of x and y, int64 [512, 512]; see `half_bins`."""
    counts = torch.zeros((2 * BINS) ** 2, dtype=torch.int64, device=reference.device)
    for slices in zip(reference, test, strict=True):
        of_x, of_y = (
            half_bins(_mapped(values, scale, offset, clip), *limits)
            for values, limits in zip(slices, ranges, strict=True)
        )
        counts += torch.bincount(2 * BINS * of_x + of_y, minlength=counts.numel())
    return counts.view(2 * BINS, 2 * BINS)


def _mapped(values: Tensor, scale: float, offset: float, clip: Range | None) -> Tensor:
    mapped = values.to(torch.float64)
    if scale != 1.0 or offset != 0.0:
        mapped = mapped * scale + offset
    if clip is None:
        return mapped
    # Clipping would hide an infinite voxel.
    return torch.where(mapped.isinf(), math.nan, mapped.clamp(*clip))


def _slice_row(x: Tensor, y: Tensor) -> Tensor:
    difference = x - y
    sums = [x, y, x * x, y * y, x * y, difference * difference]
    count = x.new_tensor(x.numel())
    # Rows first: the order of the additions then does not depend on the number of threads.
    return torch.stack([count, *(s.sum(1).sum() for s in sums), *x.aminmax(), *y.aminmax()])


def widened(low: float, high: float) -> Range:
    """The range itself; one of no width is widened by 1/2 on both sides, as in numpy."""
    return (low, high) if low != high else (low - 0.5, high + 0.5)


def bin_edges(low: float, high: float) -> Tensor:
    """The 257 edges as `numpy.histogram` spaces them; a range of no width is widened by 1/2."""
    low, high = widened(low, high)
    step = (high - low) / BINS
    edges = torch.arange(BINS + 1, dtype=torch.float64) * step + low
    edges[-1] = high
    return edges


def bin_centres(low: float, high: float) -> Tensor:
    """The middles of the 256 bins, of which one is Otsu's threshold."""
    edges = bin_edges(low, high)
    return (edges[:-1] + edges[1:]) / 2.0


def histogram(values: Tensor, low: float, high: float) -> Tensor:
    """Counts int64 [256] over `[low, high]`: bins closed below, the last one also above; values
    outside go to the ends.
    """
    return torch.bincount(_bins(values.flatten(), low, high), minlength=BINS)


def half_bins(values: Tensor, low: float, high: float) -> Tensor:
    """Bin b of every value as 2 b, or as 2 b + 1 above its centre; flat, int64."""
    flat = values.flatten()
    bins = _bins(flat, low, high)
    return 2 * bins + (flat > bin_centres(low, high).to(values.device)[bins]).long()


def _bins(flat: Tensor, low: float, high: float) -> Tensor:
    edges = bin_edges(low, high).to(flat.device)
    quotient = (flat - edges[0]) * (BINS / float(edges[-1] - edges[0]))
    index = quotient.nan_to_num_(0.0).clamp_(0, BINS - 1).long()
    # The quotient can round across an edge; the edges themselves decide, as in numpy.
    index -= ((flat < edges[index]) & (index > 0)).long()
    index += ((flat >= edges[index + 1]) & (index < BINS - 1)).long()
    return index
