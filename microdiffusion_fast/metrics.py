"""PSNR, SSIM and DICE exactly as the paper's supplement defines them, for arrays and tensors.

All metrics compare a `reference` x and a `test` y of one shape, [Z, Y, X] or a single image [Y, X],
of any real dtype, and accumulate in float64. `evaluate` takes volumes in input units and maps them
to grey levels first.

Stated answers: identical images give PSNR inf, SSIM 1, DICE 1, and one identical slice makes the
mean PSNR inf. Two constant volumes have empty Otsu masks and DICE 1. NaN or infinite values, shapes
that differ, images smaller than the SSIM window, and a reference without an intensity range are an
`InputError`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.kernels.volume_metrics import VolumeSums, bin_edges, evaluate_sums
from microdiffusion_fast.kernels.windowed_ssim import window_size, windowed_ssim

GREY_LEVELS = 255.0

Array = NDArray[np.generic] | Tensor
Per = Literal["mean", "slice", "volume"]
Threshold = Literal["otsu"] | float | tuple[float, float]
Window = Literal["global", "uniform", "gaussian"]


@dataclass(frozen=True)
class Evaluation:
    """PSNR in dB and SSIM, both means over slices, and DICE of the volume."""

    psnr: float
    ssim: float
    dice: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers under the names that `metrics.json` uses."""
        return asdict(self)


def evaluate(
    test: Array,
    reference: Array,
    *,
    intensity: tuple[float, float] | None = None,
    window: Window = "uniform",
) -> Evaluation:
    """Compare a reconstruction with the truth in grey levels: PSNR and SSIM (means over slices),
    DICE (volume).

    Both volumes are mapped to [0, 255] by one affine map, which takes the 0.1 and 99.9 percentiles
    of the reference to 0 and 255, and clipped; nothing is rounded. The range of the test volume
    plays no part.

    Args:
        test: Reconstruction [Z, Y, X], in input units.
        reference: Truth [Z, Y, X], in the same units.
        intensity: The two intensities that become 0 and 255; default `intensity_window(reference)`.
        window: Window of the SSIM.

    Raises:
        InputError: see the module.

    Source: MicroDiffusion (arXiv 2403.10815), supplement, evaluation metrics.
    """
    x, y = _pair(reference, test)
    low, high = intensity_window(reference) if intensity is None else intensity
    x, y = to_grey_levels(x, low, high), to_grey_levels(y, low, high)
    return Evaluation(psnr=psnr(x, y), ssim=ssim(x, y, window=window), dice=dice(x, y))


def intensity_window(reference: Array) -> tuple[float, float]:
    """The 0.1 and 99.9 percentiles of a volume, linearly interpolated, computed on the host.

    Raises:
        InputError: if the two are equal (a constant or almost constant volume), or values are not
        finite.
    """
    low, high = np.percentile(_tensor("reference", reference).cpu().numpy(), (0.1, 99.9)).tolist()
    if not low < high:
        expected = "a 0.1 percentile below the 99.9 percentile (or give the intensity range)"
        raise InputError("reference", expected, f"{low:g} for both")
    return low, high


def to_grey_levels(volume: Array, low: float, high: float) -> Tensor:
    """Map intensities affinely, `low` to 0 and `high` to 255, and clip to [0, 255]; float64, not
    rounded.

    Raises:
        InputError: if `low` is not below `high`, or values are not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError("intensity", "two finite numbers, the first below the second", (low, high))
    mapped = _tensor("volume", volume).to(torch.float64) - low
    return mapped.mul_(GREY_LEVELS / (high - low)).clamp_(0.0, GREY_LEVELS)


@overload
def psnr(
    reference: Array, test: Array, *, data_range: float = ..., per: Literal["slice"]
) -> NDArray[np.float64]: ...
@overload
def psnr(
    reference: Array, test: Array, *, data_range: float = ..., per: Literal["mean", "volume"] = ...
) -> float: ...
def psnr(
    reference: Array, test: Array, *, data_range: float = GREY_LEVELS, per: Per = "mean"
) -> float | NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB: `10 log10(data_range^2 / MSE)`; inf for identical images.

    Args:
        reference: x, [Z, Y, X] or [Y, X].
        test: y, of the same shape.
        data_range: L, the largest grey level.
        per: "slice" for float64 [Z], "mean" for its mean (inf if any slice is identical), "volume"
            for the PSNR of the MSE over all voxels.

    Raises:
        InputError: see the module.

    Source: MicroDiffusion, supplement, PSNR.
    """
    x, y = _pair(reference, test)
    _check_options(data_range, per)
    sums = evaluate_sums(x, y, histograms=False)
    mse = (sums.sse.sum() / sums.n.sum())[None] if per == "volume" else sums.mse
    # 1 / 0 is inf, and so is its logarithm: identical images need no case of their own.
    return _reduced(10.0 * torch.log10(data_range**2 / mse), per)


@overload
def ssim(
    reference: Array,
    test: Array,
    *,
    data_range: float = ...,
    window: Window = ...,
    per: Literal["slice"],
) -> NDArray[np.float64]: ...
@overload
def ssim(
    reference: Array,
    test: Array,
    *,
    data_range: float = ...,
    window: Window = ...,
    per: Literal["mean", "volume"] = ...,
) -> float: ...
def ssim(
    reference: Array,
    test: Array,
    *,
    data_range: float = GREY_LEVELS,
    window: Window = "uniform",
    per: Per = "mean",
) -> float | NDArray[np.float64]:
    """Structural similarity, at most 1.

    Args:
        reference: x, [Z, Y, X] or [Y, X].
        test: y, of the same shape.
        data_range: L of the constants C1 = (0.01 L)^2, C2 = (0.03 L)^2, C3 = C2 / 2.
        window: "global" takes the moments over the whole image, as printed in the supplement;
            "uniform" (7 wide) and "gaussian" (11 wide, sigma 1.5) take them in a moving window and
            average the map, as scikit-image does with its defaults and with `gaussian_weights=True,
            use_sample_covariance=False`.
        per: "slice" for float64 [Z], "mean" for its mean, "volume" for moments over the volume or a
            3D window (an image [Y, X] keeps its 2D window).

    Raises:
        InputError: see the module.

    Source: MicroDiffusion, supplement, SSIM; Wang et al. 2004, IEEE TIP 13(4).
    """
    x, y = _pair(reference, test)
    _check_options(data_range, per)
    if window == "global":
        sums = evaluate_sums(x, y, histograms=False)
        return _reduced(_global_ssim(sums, data_range, whole=per == "volume"), per)
    if window not in ("uniform", "gaussian"):
        raise InputError("window", "'global', 'uniform' or 'gaussian'", repr(window))
    ndim: Literal[2, 3] = 3 if per == "volume" and reference.ndim == 3 else 2
    size = window_size(window)
    if min(x.shape[3 - ndim :]) < size:
        expected = f"at least {size} voxels along the last {ndim} axes for the {window} window"
        raise InputError("reference", expected, f"shape {list(reference.shape)}")
    values = windowed_ssim(x, y, data_range=data_range, window=window, ndim=ndim)
    return _reduced(values.reshape(-1), per)


@overload
def dice(
    reference: Array,
    test: Array,
    *,
    threshold: Threshold = ...,
    smooth: float = ...,
    per: Literal["slice"],
) -> NDArray[np.float64]: ...
@overload
def dice(
    reference: Array,
    test: Array,
    *,
    threshold: Threshold = ...,
    smooth: float = ...,
    per: Literal["mean", "volume"] = ...,
) -> float: ...
def dice(
    reference: Array,
    test: Array,
    *,
    threshold: Threshold = "otsu",
    smooth: float = 1e-6,
    per: Per = "volume",
) -> float | NDArray[np.float64]:
    """Overlap of the thresholded volumes: `(2 |X and Y| + smooth) / (|X| + |Y| + smooth)`.

    Args:
        reference: x, [Z, Y, X] or [Y, X].
        test: y, of the same shape.
        threshold: "otsu" (of each whole volume), one number for both, or one for each. Foreground
            is above it.
        smooth: C; makes two empty masks agree.
        per: "volume" (default), "slice" for float64 [Z], "mean" for its mean. The thresholds are
            always the volume's.

    Raises:
        InputError: see the module.

    Source: MicroDiffusion, supplement, DICE.
    """
    x, y = _pair(reference, test)
    _check_options(GREY_LEVELS, per)
    if not smooth >= 0.0:
        raise InputError("smooth", "a number of at least 0", smooth)
    above_x, above_y = (
        volume > level for volume, level in zip((x, y), _thresholds(x, y, threshold), strict=True)
    )
    both, either = ((above_x & above_y).sum((1, 2)), above_x.sum((1, 2)) + above_y.sum((1, 2)))
    if per == "volume":
        both, either = both.sum()[None], either.sum()[None]
    return _reduced((2.0 * both.double() + smooth) / (either.double() + smooth), per)


def otsu_threshold(volume: Array) -> float:
    """Otsu's threshold from a 256-bin histogram between the extremes; foreground is above it.

    Equals scikit-image's `threshold_otsu` of the volume as float64. A constant volume returns its
    value.

    Raises:
        InputError: if the volume is empty or not finite.

    Source: Otsu 1979, IEEE Trans. SMC 9(1).
    """
    x = _tensor("volume", volume)
    sums = evaluate_sums(x, x)
    return _otsu(sums.histogram_x, sums.range_x)


def _otsu(histogram: Tensor, limits: tuple[float, float]) -> float:
    if limits[0] == limits[1]:
        return limits[0]
    edges = bin_edges(*limits)
    centres = (edges[:-1] + edges[1:]) / 2.0
    counts = histogram.cpu().double()
    below, above = counts.cumsum(0), counts.flip(0).cumsum(0).flip(0)
    weighted = counts * centres
    mean_below = weighted.cumsum(0) / below
    mean_above = weighted.flip(0).cumsum(0).flip(0) / above
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[int(between.argmax())])


def _thresholds(x: Tensor, y: Tensor, threshold: Threshold) -> tuple[float, float]:
    if threshold == "otsu":
        sums = evaluate_sums(x, y)
        return _otsu(sums.histogram_x, sums.range_x), _otsu(sums.histogram_y, sums.range_y)
    expected = "'otsu', a finite number, or two"
    try:
        low, high = threshold if isinstance(threshold, tuple) else (threshold, threshold)
        levels = float(low), float(high)
    except (TypeError, ValueError):
        raise InputError("threshold", expected, repr(threshold)) from None
    if not (math.isfinite(levels[0]) and math.isfinite(levels[1])):
        raise InputError("threshold", expected, repr(threshold))
    return levels


def _global_ssim(sums: VolumeSums, data_range: float, *, whole: bool) -> Tensor:
    """The formulas as printed, with population moments: `l * c * s`."""
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


def _reduced(values: Tensor, per: Per) -> float | NDArray[np.float64]:
    host = values.cpu().numpy()
    return host if per == "slice" else float(host.mean())


def _check_options(data_range: float, per: Per) -> None:
    if per not in ("mean", "slice", "volume"):
        raise InputError("per", "'mean', 'slice' or 'volume'", repr(per))
    if not (math.isfinite(data_range) and data_range > 0.0):
        raise InputError("data_range", "a positive number", data_range)


def _pair(reference: Array, test: Array) -> tuple[Tensor, Tensor]:
    x, y = _tensor("reference", reference), _tensor("test", test)
    if x.shape != y.shape or reference.ndim != test.ndim:
        expected = f"shape {list(reference.shape)}, like the reference"
        raise InputError("test", expected, f"shape {list(test.shape)}")
    if x.device != y.device:
        raise InputError("test", f"a tensor on {x.device}, like the reference", str(y.device))
    return x, y


def _tensor(name: str, data: Array) -> Tensor:
    """A finite, non-empty [Z, Y, X] tensor on the device of `data`; an image becomes one slice."""
    if isinstance(data, Tensor):
        tensor = data.detach()
    else:
        array = np.asarray(data)
        if array.dtype.kind not in "buif":
            raise InputError(name, "real numbers", f"dtype {array.dtype}")
        # torch knows neither foreign byte orders nor float128, and warns about read-only memory.
        kind = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
        array = np.ascontiguousarray(array, dtype=kind)
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if tensor.is_complex():
        raise InputError(name, "real numbers", str(tensor.dtype))
    if tensor.ndim not in (2, 3) or tensor.numel() == 0:
        expected = "a volume [Z, Y, X] or an image [Y, X], not empty"
        raise InputError(name, expected, f"shape {list(tensor.shape)}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise InputError(name, "finite values", f"{bad} NaN or infinite voxels")
    return tensor if tensor.ndim == 3 else tensor[None]
