"""SSIM in a moving window, in float64 torch, one in-plane pass a slice and a short march along z in
3D.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

K1, K2 = 0.01, 0.03


def window_taps(window: str) -> list[float]:
    """Separable weights, summing to 1: 7 equal ones, or 11 of a Gaussian with sigma 1.5."""
    if window == "uniform":
        return [1.0 / 7.0] * 7
    taps = [math.exp(-0.5 * (offset / 1.5) ** 2) for offset in range(-5, 6)]
    return [tap / math.fsum(taps) for tap in taps]


def covariance_norm(window: str, ndim: int) -> float:
    """scikit-image's defaults: sample covariance (n / (n - 1)) for the uniform window, as is for
    the Gaussian.
    """
    n = len(window_taps(window)) ** ndim
    return n / (n - 1) if window == "uniform" else 1.0


def constants(data_range: float, window: str, ndim: int) -> tuple[float, float, float]:
    """C1, C2 and the covariance norm."""
    return (K1 * data_range) ** 2, (K2 * data_range) ** 2, covariance_norm(window, ndim)


def mapped(values: Tensor, scale: float, offset: float, clip: Sequence[float] | None) -> Tensor:
    """`values * scale + offset` in float64, then clipped."""
    result = values.to(torch.float64)
    if scale != 1.0 or offset != 0.0:
        result = result * scale + offset
    return result.clamp(clip[0], clip[1]) if clip else result


def _slide(values: Tensor, taps: Sequence[float], dim: int) -> Tensor:
    """Weighted sums of `len(taps)` neighbours along `dim`; only windows that lie fully inside."""
    length = values.shape[dim] - len(taps) + 1
    result = values.narrow(dim, 0, length) * taps[0]
    for i, tap in enumerate(taps[1:], 1):
        result.add_(values.narrow(dim, i, length), alpha=tap)
    return result


def _plane_moments(x: Tensor, y: Tensor, taps: Sequence[float]) -> Tensor:
    """Windowed means of x, y, x^2, y^2, xy in the plane. [Y, X] -> [5, Y', X']."""
    moments = torch.stack([x, y, x * x, y * y, x * y])
    return _slide(_slide(moments, taps, 1), taps, 2)


def _ssim_map(moments: Tensor, shift: Tensor, norm: float, data_range: float) -> Tensor:
    """SSIM from the windowed moments of volumes that had `shift` subtracted.

    The variances come from shifted values (no cancellation of large means), the luminance from the
    true means.
    """
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = moments
    var_x = norm * (mean_xx - mean_x * mean_x).clamp_(min=0.0)
    var_y = norm * (mean_yy - mean_y * mean_y).clamp_(min=0.0)
    cov = norm * (mean_xy - mean_x * mean_y)
    ux, uy = mean_x + shift, mean_y + shift
    top = (2.0 * ux * uy + c1) * (2.0 * cov + c2)
    bottom = (ux * ux + uy * uy + c1) * (var_x + var_y + c2)
    # |cov| <= sqrt(var_x var_y), so the quotient is at most 1 but for rounding.
    return (top / bottom).clamp_(max=1.0)


def ssim_slices(
    reference: Tensor,
    test: Tensor,
    data_range: float,
    window: str,
    scale: float = 1.0,
    offset: float = 0.0,
    clip: Sequence[float] | None = None,
) -> Tensor:
    """Mean SSIM of every slice with a 2D window. [Z, Y, X] -> float64 [Z].

    Source: Wang et al. 2004, equation 13; borders cropped as scikit-image does.
    """
    taps, norm = window_taps(window), covariance_norm(window, 2)
    means = []
    for x, y in zip(reference, test, strict=True):
        x, y = mapped(x, scale, offset, clip), mapped(y, scale, offset, clip)
        shift = x.mean()
        moments = _plane_moments(x - shift, y - shift, taps)
        means.append(_ssim_map(moments, shift, norm, data_range).mean())
    return torch.stack(means)


def ssim_volume(
    reference: Tensor,
    test: Tensor,
    data_range: float,
    window: str,
    scale: float = 1.0,
    offset: float = 0.0,
    clip: Sequence[float] | None = None,
) -> Tensor:
    """Mean SSIM with a 3D window. [Z, Y, X] -> float64 scalar.

    Marches along z with the in-plane moments of one window's depth: no workspace the size of the
    volume.
    """
    taps, norm = window_taps(window), covariance_norm(window, 3)
    shift = torch.stack([mapped(x, scale, offset, clip).mean() for x in reference]).mean()
    recent: deque[Tensor] = deque(maxlen=len(taps))
    means = []
    for x, y in zip(reference, test, strict=True):
        x, y = mapped(x, scale, offset, clip) - shift, mapped(y, scale, offset, clip) - shift
        recent.append(_plane_moments(x, y, taps))
        if len(recent) == len(taps):
            moments = recent[0] * taps[0]
            for plane, tap in zip(list(recent)[1:], taps[1:], strict=True):
                moments.add_(plane, alpha=tap)
            means.append(_ssim_map(moments, shift, norm, data_range).mean())
    return torch.stack(means).mean()
