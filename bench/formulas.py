"""The metrics from the sums and counts of `volume_metrics`, as a user of that kernel has them."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from microdiffusion_fast.kernels import VolumeSums
from microdiffusion_fast.kernels.volume_metrics import bin_edges

LEVELS = 255.0
C1, C2 = (0.01 * LEVELS) ** 2, (0.03 * LEVELS) ** 2


def psnr(mse: float) -> float:
    return 10.0 * math.log10(LEVELS**2 / mse)


def global_ssim(mean_x: float, mean_y: float, xx: float, yy: float, xy: float) -> float:
    """From means of x, y, x^2, y^2, xy; with C3 = C2 / 2 the product of three is one of two."""
    covariance = xy - mean_x * mean_y
    variances = (xx - mean_x**2) + (yy - mean_y**2)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance * (2 * covariance + C2) / (variances + C2)


def from_sums(sums: VolumeSums) -> tuple[float, ...]:
    """PSNR and global SSIM of the volume, and the extremes of both."""
    names = ("n", "sum_x", "sum_y", "sum_xx", "sum_yy", "sum_xy", "sse")
    n, x, y, xx, yy, xy, sse = (float(getattr(sums, name).sum()) for name in names)
    extremes = (sums.min_x.min(), sums.max_x.max(), sums.min_y.min(), sums.max_y.max())
    similarity = global_ssim(x / n, y / n, xx / n, yy / n, xy / n)
    return psnr(sse / n), similarity, *(float(value) for value in extremes)


def otsu(counts: Tensor, limits: tuple[float, float]) -> float:
    """Otsu's threshold from 256 counts between the limits; that of constant data is its value."""
    if limits[0] == limits[1]:
        return limits[0]
    edges = bin_edges(*limits).numpy()
    centres = (edges[:-1] + edges[1:]) / 2
    weights = counts.cpu().numpy().astype(np.float64)
    below, above = np.cumsum(weights), np.cumsum(weights[::-1])[::-1]
    mean_below = np.cumsum(weights * centres) / below
    mean_above = (np.cumsum((weights * centres)[::-1]) / above[::-1])[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[int(between.argmax())])


def dice(x: float, y: float, both: float) -> float:
    """From the voxels above the threshold in one, in the other, and in both."""
    return (2 * both + 1e-6) / (x + y + 1e-6)
