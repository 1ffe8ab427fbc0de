"""One pass over two volumes: all that MSE, PSNR, global SSIM and Otsu's threshold need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import reference as _reference
from .reference import BINS, bin_edges

__all__ = ["BINS", "VolumeSums", "bin_edges", "evaluate_sums"]

Range = tuple[float, float]


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
        ValueError: if the shapes differ, a volume is empty or not 3D, or values are not finite.
    """
    for name, volume in (("reference", reference), ("test", test)):
        if volume.ndim != 3 or volume.numel() == 0:
            shape = list(volume.shape)
            raise ValueError(f"{name}: expected a volume [Z, Y, X], not empty, got shape {shape}")
    if reference.shape != test.shape:
        expected = f"shape {list(reference.shape)}, like the reference"
        raise ValueError(f"test: expected {expected}, got {list(test.shape)}")
    limits = (clip, clip) if ranges is None and clip is not None else ranges
    bounds = list(clip or ())
    edges = [edge for pair in limits or () for edge in pair] if histograms else []
    table, counts = _evaluate_sums(reference, test, scale, offset, bounds, edges)
    columns = dict(zip(_reference.COLUMNS, table.unbind(1), strict=True))
    if not math.isfinite(float(table.sum())):
        raise ValueError("reference, test: expected finite values, got NaN or infinity")
    if limits is None:
        limits = (
            (float(columns["min_x"].min()), float(columns["max_x"].max())),
            (float(columns["min_y"].min()), float(columns["max_y"].max())),
        )
        if histograms:
            edges = [edge for pair in limits for edge in pair]
            counts = _evaluate_sums(reference, test, scale, offset, bounds, edges)[1]
    return VolumeSums(
        **columns,
        histogram_x=counts[0],
        histogram_y=counts[1],
        range_x=limits[0],
        range_y=limits[1],
    )


@torch.library.custom_op("microdiffusion_fast::volume_metrics", mutates_args=())
def _evaluate_sums(
    reference: Tensor,
    test: Tensor,
    scale: float,
    offset: float,
    clip: Sequence[float],
    ranges: Sequence[float],
) -> tuple[Tensor, Tensor]:
    # Lists of floats, empty for None: operator schemas have no pairs.
    return _reference.slice_sums(
        reference,
        test,
        scale,
        offset,
        (clip[0], clip[1]) if clip else None,
        (ranges[0], ranges[1]) if ranges else None,
        (ranges[2], ranges[3]) if ranges else None,
    )


@_evaluate_sums.register_fake
def _fake(
    reference: Tensor,
    test: Tensor,
    scale: float,
    offset: float,
    clip: Sequence[float],
    ranges: Sequence[float],
) -> tuple[Tensor, Tensor]:
    table = reference.new_empty((reference.shape[0], len(_reference.COLUMNS)), dtype=torch.float64)
    return table, reference.new_empty((2, BINS), dtype=torch.int64)
