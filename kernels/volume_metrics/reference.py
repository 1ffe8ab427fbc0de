"""Per-slice moments, extremes and histograms of two volumes, in float64 torch."""

from __future__ import annotations

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


def slice_sums(
    reference: Tensor,
    test: Tensor,
    scale: float,
    offset: float,
    clip: tuple[float, float] | None,
    range_x: tuple[float, float] | None,
    range_y: tuple[float, float] | None,
) -> tuple[Tensor, Tensor]:
    """Sums float64 [Z, 11] (see `COLUMNS`) and histograms int64 [2, 256] of the mapped volumes.

    Slices are summed one by one, so that a row does not depend on the slices that came along with
    it. A range of None leaves that histogram empty.
    """
    columns = []
    histograms = torch.zeros(2, BINS, dtype=torch.int64, device=reference.device)
    for z in range(reference.shape[0]):
        x, y = (_mapped(volume[z], scale, offset, clip) for volume in (reference, test))
        for row, values, limits in ((0, x, range_x), (1, y, range_y)):
            if limits is not None:
                histograms[row] += histogram(values, *limits)
        columns.append(_slice_row(x, y))
    return torch.stack(columns), histograms


def _mapped(
    values: Tensor, scale: float, offset: float, clip: tuple[float, float] | None
) -> Tensor:
    mapped = values.to(torch.float64)
    if scale != 1.0 or offset != 0.0:
        mapped = mapped * scale + offset
    return mapped if clip is None else mapped.clamp(*clip)


def _slice_row(x: Tensor, y: Tensor) -> Tensor:
    difference = x - y
    sums = [x, y, x * x, y * y, x * y, difference * difference]
    count = x.new_tensor(x.numel())
    # Rows first: the order of the additions then does not depend on the number of threads.
    return torch.stack([count, *(s.sum(1).sum() for s in sums), *x.aminmax(), *y.aminmax()])


def bin_edges(low: float, high: float) -> Tensor:
    """The 257 edges as `numpy.histogram` spaces them; a range of no width is widened by 1/2."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    step = (high - low) / BINS
    edges = torch.arange(BINS + 1, dtype=torch.float64) * step + low
    edges[-1] = high
    return edges


def histogram(values: Tensor, low: float, high: float) -> Tensor:
    """Counts int64 [256] over `[low, high]`: bins closed below, the last one also above; values
    outside go to the ends.
    """
    edges = bin_edges(low, high).to(values.device)
    flat = values.flatten()
    index = ((flat - edges[0]) * (BINS / float(edges[-1] - edges[0]))).clamp_(0, BINS - 1).long()
    # The quotient can round across an edge; the edges themselves decide, as in numpy.
    index -= ((flat < edges[index]) & (index > 0)).long()
    index += ((flat >= edges[index + 1]) & (index < BINS - 1)).long()
    return torch.bincount(index, minlength=BINS)
