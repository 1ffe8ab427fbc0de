"""PSNR, SSIM and DICE exactly as the paper's supplement defines them, for arrays and tensors.

All metrics compare a `reference` x and a `test` y of one shape, [Z, Y, X] or a single image [Y, X],
of any real dtype, and accumulate in float64, without a copy of the volume. `evaluate` takes volumes
in input units and maps them to grey levels first.

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

from microdiffusion_fast import metrics_formulas as formulas
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.kernels.volume_metrics import VolumeSums
from microdiffusion_fast.kernels.windowed_ssim import window_size
from microdiffusion_fast.metrics_input import Array, Pair, as_volume, percentiles

GREY_LEVELS = 255.0

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

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> truth = rng.random((8, 32, 32))
        >>> found = evaluate(truth + 0.01 * rng.standard_normal(truth.shape), truth)
        >>> round(found.psnr), found.ssim > 0.99
        (40, True)

    Source: MicroDiffusion (arXiv 2403.10815), supplement, evaluation metrics.
    """
    pair = Pair.of(reference, test)
    low, high = intensity_window(reference) if intensity is None else intensity
    scale = _grey_scale(low, high)
    pair = pair.mapped(scale, -low * scale, (0.0, GREY_LEVELS))
    sums = pair.sums(histograms=True)
    overlaps = pair.overlaps(_otsu_thresholds(pair, sums))
    return Evaluation(
        psnr=float(formulas.psnr(sums, GREY_LEVELS, whole=False).mean()),
        ssim=float(_ssim(pair, sums, GREY_LEVELS, window, whole=False).mean()),
        dice=float(formulas.dice(overlaps, 1e-6, whole=True)),
    )


def intensity_window(reference: Array) -> tuple[float, float]:
    """The 0.1 and 99.9 percentiles of a volume, linearly interpolated.

    Raises:
        InputError: if the two are equal (a constant or almost constant volume), or values are not
            finite.
    """
    low, high = percentiles(as_volume("reference", reference), (0.1, 99.9))
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
    scale = _grey_scale(low, high)
    pair = Pair.of(volume, volume, names=("volume", "volume"))
    pair.check_finite()
    return (pair.x.to(torch.float64) - low).mul_(scale).clamp_(0.0, GREY_LEVELS)


def _grey_scale(low: float, high: float) -> float:
    """Grey levels per unit of intensity."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError("intensity", "two finite numbers, the first below the second", (low, high))
    return GREY_LEVELS / (high - low)


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
    pair = Pair.of(reference, test)
    _check_options(data_range, per)
    return _reduced(formulas.psnr(pair.sums(), data_range, whole=per == "volume"), per)


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
    pair = Pair.of(reference, test)
    _check_options(data_range, per)
    return _reduced(_ssim(pair, pair.sums(), data_range, window, whole=per == "volume"), per)


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
    pair = Pair.of(reference, test)
    _check_options(GREY_LEVELS, per)
    if not smooth >= 0.0:
        raise InputError("smooth", "a number of at least 0", smooth)
    overlaps = pair.overlaps(_thresholds(pair, threshold))
    return _reduced(formulas.dice(overlaps, smooth, whole=per == "volume"), per)


def otsu_threshold(volume: Array) -> float:
    """Otsu's threshold from a 256-bin histogram between the extremes; foreground is above it.

    Equals scikit-image's `threshold_otsu` of the volume as float64. A constant volume returns its
    value.

    Raises:
        InputError: if the volume is empty or not finite.

    Source: Otsu 1979, IEEE Trans. SMC 9(1).
    """
    sums = Pair.of(volume, volume, names=("volume", "volume")).sums(histograms=True)
    return formulas.otsu(sums.histogram_x, sums.range_x)


def _otsu_thresholds(pair: Pair, sums: VolumeSums) -> tuple[float, float]:
    """Of both volumes; their sums are taken again if the histograms are not over the extremes."""
    extremes = (
        (float(sums.min_x.min()), float(sums.max_x.max())),
        (float(sums.min_y.min()), float(sums.max_y.max())),
    )
    if extremes != (sums.range_x, sums.range_y):
        sums = pair.sums(histograms=True, ranges=extremes)
    otsu_x = formulas.otsu(sums.histogram_x, sums.range_x)
    return otsu_x, formulas.otsu(sums.histogram_y, sums.range_y)


def _thresholds(pair: Pair, threshold: Threshold) -> tuple[float, float]:
    if threshold == "otsu":
        return _otsu_thresholds(pair, pair.sums(histograms=True))
    pair.check_finite()
    expected = "'otsu', a finite number, or two"
    try:
        low, high = threshold if isinstance(threshold, tuple) else (threshold, threshold)
        levels = float(low), float(high)
    except (TypeError, ValueError):
        raise InputError("threshold", expected, repr(threshold)) from None
    if not (math.isfinite(levels[0]) and math.isfinite(levels[1])):
        raise InputError("threshold", expected, repr(threshold))
    return levels


def _ssim(
    pair: Pair, sums: VolumeSums, data_range: float, window: Window, *, whole: bool
) -> Tensor:
    if window == "global":
        return formulas.global_ssim(sums, data_range, whole=whole)
    if window not in ("uniform", "gaussian"):
        raise InputError("window", "'global', 'uniform' or 'gaussian'", repr(window))
    ndim: Literal[2, 3] = 3 if whole and not pair.is_image else 2
    size = window_size(window)
    if min(pair.x.shape[3 - ndim :]) < size:
        expected = f"at least {size} voxels along the last {ndim} axes for the {window} window"
        raise InputError("reference", expected, f"shape {pair.shape}")
    return pair.windowed_ssim(data_range=data_range, window=window, ndim=ndim).reshape(-1)


def _reduced(values: Tensor, per: Per) -> float | NDArray[np.float64]:
    host = values.cpu().numpy()
    return host if per == "slice" else float(host.mean())


def _check_options(data_range: float, per: Per) -> None:
    if per not in ("mean", "slice", "volume"):
        raise InputError("per", "'mean', 'slice' or 'volume'", repr(per))
    if not (math.isfinite(data_range) and data_range > 0.0):
        raise InputError("data_range", "a positive number", data_range)
