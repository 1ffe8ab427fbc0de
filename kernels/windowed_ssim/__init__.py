"""Structural similarity in a moving window, per slice or in 3D, as scikit-image computes it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from . import reference as _reference

__all__ = ["window_size", "windowed_ssim"]


def window_size(window: Literal["uniform", "gaussian"]) -> int:
    """Pixels along each axis of the window: 7 (uniform) or 11 (Gaussian, sigma 1.5)."""
    return len(_reference.window_taps(window))


def windowed_ssim(
    reference: Tensor,
    test: Tensor,
    *,
    data_range: float,
    window: Literal["uniform", "gaussian"] = "uniform",
    ndim: Literal[2, 3] = 2,
) -> Tensor:
    """Mean SSIM of two volumes, never above 1; computed in float64.

    Args:
        reference: Volume [Z, Y, X], any real dtype.
        test: Volume of the same shape.
        data_range: L of the constants C1 = (0.01 L)^2 and C2 = (0.03 L)^2.
        window: "uniform" (7 wide, sample covariance) or "gaussian" (11 wide, sigma 1.5).
        ndim: 2 for a window in each slice, 3 for a cubic window. Only windows that lie fully inside
            count.

    Returns:
        float64 [Z] for `ndim=2`, a float64 scalar for `ndim=3`. Not differentiable.

    Raises:
        ValueError: if shapes differ, the volume is smaller than the window, or an option is
        unknown.

    Source: Wang et al. 2004, IEEE TIP 13(4), equation 13; scikit-image's `structural_similarity`.
    """
    if reference.ndim != 3 or test.shape != reference.shape:
        got = f"{list(reference.shape)} and {list(test.shape)}"
        raise ValueError(f"reference, test: expected two volumes [Z, Y, X] of one shape, got {got}")
    if window not in ("uniform", "gaussian"):
        raise ValueError(f"window: expected 'uniform' or 'gaussian', got {window!r}")
    if ndim not in (2, 3):
        raise ValueError(f"ndim: expected 2 or 3, got {ndim!r}")
    if not (math.isfinite(data_range) and data_range > 0.0):
        raise ValueError(f"data_range: expected a positive number, got {data_range!r}")
    size = window_size(window)
    if min(reference.shape[3 - ndim :]) < size or reference.shape[0] == 0:
        expected = f"at least {size} voxels along the last {ndim} axes for the {window} window"
        raise ValueError(f"reference: expected {expected}, got shape {list(reference.shape)}")
    return _windowed_ssim(reference, test, data_range, window, ndim)


@torch.library.custom_op("microdiffusion_fast::windowed_ssim", mutates_args=())
def _windowed_ssim(
    reference: Tensor, test: Tensor, data_range: float, window: str, ndim: int
) -> Tensor:
    similarity = _reference.ssim_slices if ndim == 2 else _reference.ssim_volume
    return similarity(reference, test, data_range, window)


@_windowed_ssim.register_fake
def _fake(reference: Tensor, test: Tensor, data_range: float, window: str, ndim: int) -> Tensor:
    shape = (reference.shape[0],) if ndim == 2 else ()
    return reference.new_empty(shape, dtype=torch.float64)
