"""The printed formulas, applied to what the kernels summed and counted.

Source: MicroDiffusion (arXiv 2403.10815), supplement, evaluation metrics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microdiffusion_fast.kernels.volume_metrics import VolumeSums, bin_centres

Range = tuple[float, float]


def psnr(sums: VolumeSums, data_range: float, *, whole: bool) -> Tensor:
    """PSNR in dB, float64 [Z], or [1] of all voxels as one image."""
    mse = (sums.sse.sum() / sums.n.sum())[None] if whole else sums.mse
    # 1 / 0 is inf, and so is its logarithm: identical images need no case of their own.
    return 10.0 * torch.log10(data_range**2 / mse)


def global_ssim(sums: VolumeSums, data_range: float, *, whole: bool) -> Tensor:
    """SSIM `l * c * s` with population moments, float64 [Z], or [1] of the volume as one image."""
    names = ("n", "sum_x", "sum_y", "sum_xx", "sum_yy", "sum_xy", "sse")
    n, sx, sy, sxx, syy, sxy, sse = (getattr(sums, name) for name in names)
    if whole:
        n, sx, sy, sxx, syy, sxy, sse = (t.sum()[None] for t in (n, sx, sy, sxx, syy, sxy, sse))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    c3 = c2 / 2.0
    mean_x, mean_y = sx / n, sy / n
    var_x = (sxx / n - mean_x**2).clamp(min=0.0)
    var_y = (syy / n - mean_y**2).clamp(min=0.0)
    cov = sxy / n - mean_x * mean_y
    sd_x, sd_y = var_x.sqrt(), var_y.sqrt()
    luminance = (2.0 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2.0 * sd_x * sd_y + c2) / (var_x + var_y + c2)
    structure = (cov + c3) / (sd_x * sd_y + c3)
    result = (luminance * contrast * structure).clamp(max=1.0)
    return torch.where(sse == 0.0, 1.0, result)


def dice(overlaps: Tensor, smooth: float, *, whole: bool) -> Tensor:
    """DICE of the counts of `overlap_counts`, float64 [Z], or [1] of the volume."""
    above_x, above_y, both = (overlaps.sum(0, keepdim=True) if whole else overlaps).double().T
    return (2.0 * both + smooth) / (above_x + above_y + smooth)


def otsu(histogram: Tensor, limits: tuple[float, float]) -> float:
    """Otsu's threshold from a 256-bin histogram between `limits`, the extremes; as scikit-image."""
    if limits[0] == limits[1]:
        return limits[0]
    centres = bin_centres(*limits)
    counts = histogram.cpu().double()
    below, above = counts.cumsum(0), counts.flip(0).cumsum(0).flip(0)
    weighted = counts * centres
    mean_below = weighted.cumsum(0) / below
    mean_above = weighted.flip(0).cumsum(0).flip(0) / above
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[int(between.argmax())])


def marginals(joint: Tensor) -> tuple[Tensor, Tensor]:
    """The histograms int64 [256] of x and y in the counts of `joint_counts`."""
    return joint.sum(1).view(-1, 2).sum(1), joint.sum(0).view(-1, 2).sum(1)


def joint_overlaps(
    joint: Tensor, thresholds: tuple[float, float], extremes: tuple[Range, Range]
) -> Tensor | None:
    """`overlap_counts` at Otsu's thresholds, int64 [1, 3], from `joint_counts` over the extremes.

    None where a range is so narrow that float64 hardly tells its bins apart.
    """
    starts = []  # the first half bin above each threshold
    for threshold, (low, high) in zip(thresholds, extremes, strict=True):
        if low == high:
            starts.append(len(joint))  # the threshold of a constant volume is its value
        elif high - low < 2.0**-32 * max(abs(low), abs(high)):
            return None
        else:
            starts.append(2 * bin_centres(low, high).tolist().index(threshold) + 1)
    of_x, of_y = starts
    parts = (joint[of_x:], joint[:, of_y:], joint[of_x:, of_y:])
    return torch.stack([part.sum() for part in parts])[None]
