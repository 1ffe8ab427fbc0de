"""Structural similarity in a moving window, per slice or in 3D, as scikit-image computes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .. import _backend, checks
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
    scale: float = 1.0,
    offset: float = 0.0,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """Mean SSIM of two volumes, never above 1.

    The arithmetic is float64 on a CPU: within 1e-9 of exact SSIM as long as no value is more than
    1e4 data ranges from the mean. It is float32 on a GPU, about a local mean: within 1e-6 times the
    square of (the range of the values in a tile of 32 x 32 / data_range), where that is above 1.

    Args:
        reference: Volume [Z, Y, X], any real dtype. float32, float64, bfloat16, uint8 and uint16
            are read as they are; a CPU copies the others into float32 or float64 first.
        test: Volume of the same shape on the same device.
        data_range: L of the constants C1 = (0.01 L)^2 and C2 = (0.03 L)^2, in [1e-30, 1e30].
        window: "uniform" (7 wide, sample covariance) or "gaussian" (11 wide, sigma 1.5).
        ndim: 2 for a window in each slice, 3 for a cubic window. Only windows that lie fully inside
            count.
        scale: Both volumes are mapped by `v*scale + offset` first, as in `evaluate_sums`.
        offset: See `scale`.
        clip: Limits (low, high) to clip to after the map.

    Returns:
        float64 [Z] for `ndim=2` (empty for no slices), a float64 scalar for `ndim=3`. Not
        differentiable.

    Raises:
        ValueError: if shapes or devices differ, the volume is smaller than the window (so the mean
            would be one of nothing), or an option is unknown or out of range.
        TypeError: if a volume is no dense tensor of real numbers or boolean, or an option is of
            another kind.

    Examples:
        >>> x = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> windowed_ssim(x, x, data_range=1.0).tolist()
        [1.0, 1.0]

    Source: Wang et al. 2004, IEEE TIP 13(4), equation 13; scikit-image's `structural_similarity`.
    """
    for name, volume in (("reference", reference), ("test", test)):
        checks.tensor(name, volume)
        if volume.dtype == torch.bool:
            raise TypeError(f"{name}: expected a real dtype, got {volume.dtype}")
    if reference.ndim != 3 or test.shape != reference.shape:
        got = f"{list(reference.shape)} and {list(test.shape)}"
        raise ValueError(f"reference, test: expected two volumes [Z, Y, X] of one shape, got {got}")
    checks.on_device_of("test", test, "the reference", reference.device)
    if window not in ("uniform", "gaussian"):
        raise ValueError(f"window: expected 'uniform' or 'gaussian', got {window!r}")
    if checks.integer("ndim", ndim, expected="2 or 3") not in (2, 3):
        raise ValueError(f"ndim: expected 2 or 3, got {ndim!r}")
    # Beyond these the constants leave float64, or what a GPU scales the volumes by float32.
    expected = "a number in [1e-30, 1e30]"
    data_range = checks.number("data_range", data_range, expected)
    if not 1e-30 <= data_range <= 1e30:
        raise ValueError(f"data_range: expected {expected}, got {data_range!r}")
    scale, offset = checks.number("scale", scale), checks.number("offset", offset)
    bounds: list[float] = []
    if clip is not None:
        bounds += checks.limits("clip", clip, "limits (low, high), low <= high", finite=False)
    size = window_size(window)
    if min(reference.shape[3 - ndim :]) < size:
        expected = f"at least {size} voxels along the last {ndim} axes for the {window} window"
        raise ValueError(f"reference: expected {expected}, got shape {list(reference.shape)}")
    if reference.shape[0] == 0:
        return reference.new_empty(0, dtype=torch.float64)
    return _windowed_ssim(reference, test, data_range, window, ndim, scale, offset, bounds)


@torch.library.custom_op("microdiffusion_fast::windowed_ssim", mutates_args=())
def _windowed_ssim(
    reference: Tensor,
    test: Tensor,
    data_range: float,
    window: str,
    ndim: int,
    scale: float,
    offset: float,
    clip: Sequence[float],
) -> Tensor:
    # A list of floats, empty for None: operator schemas have no pairs.
    similarity = _reference.ssim_slices if ndim == 2 else _reference.ssim_volume
    return similarity(reference, test, data_range, window, scale, offset, clip or None)


@_windowed_ssim.register_fake
def _fake(
    reference: Tensor, test: Tensor, data_range: float, window: str, ndim: int, *_: Any
) -> Tensor:
    shape = (reference.shape[0],) if ndim == 2 else ()
    return reference.new_empty(shape, dtype=torch.float64)


if _backend.native is not None:
    _native_ssim = _backend.native.windowed_ssim
    _NATIVE_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.uint16)

    def _native_view(volume: Tensor) -> Tensor:
        """The volume with contiguous rows in a type that the native kernel reads; exact."""
        if volume.dtype in (torch.float16, torch.int8, torch.int16):
            volume = volume.to(torch.float32)
        elif volume.dtype not in _NATIVE_TYPES:
            volume = volume.to(torch.float64)
        return volume.detach() if volume.stride(2) == 1 else volume.detach().contiguous()

    @_windowed_ssim.register_kernel("cpu")
    def _native(
        reference: Tensor,
        test: Tensor,
        data_range: float,
        window: str,
        ndim: int,
        scale: float,
        offset: float,
        clip: Sequence[float],
    ) -> Tensor:
        taps = _reference.window_taps(window)
        size = len(taps)
        planes, height, width = (n - size + 1 for n in reference.shape)
        sums = torch.empty(reference.shape[0] if ndim == 2 else planes, dtype=torch.float64)
        constants = _reference.constants(data_range, window, ndim)
        _native_ssim(
            sums,
            _native_view(reference),
            _native_view(test),
            window == "gaussian",
            ndim == 3,
            (taps + [0.0] * 11)[:11],
            constants,
            (scale, offset, *(clip or (-math.inf, math.inf))),
            # torch's own thread count: its settings are the user's, ours would be a second set.
            torch.get_num_threads(),
        )
        if ndim == 2:
            return sums / (height * width)
        # Exactly rounded: no order of additions to depend on.
        mean = math.fsum(sums.tolist()) / (planes * height * width)
        return torch.tensor(mean, dtype=torch.float64)


if _backend.triton_missing is None:

    @_windowed_ssim.register_kernel("cuda")
    def _triton(reference: Tensor, *others: Any) -> Tensor:
        from .triton_kernel import windowed_ssim_triton

        with torch.cuda.device(reference.device):
            return windowed_ssim_triton(reference, *others)
