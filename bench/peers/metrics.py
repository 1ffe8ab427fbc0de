"""The same metrics in scikit-image, torchmetrics, pytorch-msssim, fused-ssim and plain torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.formulas import C1, C2, LEVELS, dice
from bench.harness import Contender


def plain_sums(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """PSNR, global SSIM and extremes as reductions in float32 torch, one op each."""
    mse = (x - y).square().mean()
    mean_x, mean_y = x.mean(), y.mean()
    xx, yy, xy = (x * x).mean(), (y * y).mean(), (x * y).mean()
    extremes = (*torch.aminmax(x), *torch.aminmax(y))
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    variances = (xx - mean_x**2) + (yy - mean_y**2)
    contrast = (2 * (xy - mean_x * mean_y) + C2) / (variances + C2)
    return 10 * torch.log10(LEVELS**2 / mse), luminance * contrast, *extremes


def skimage_psnr(x: np.ndarray, y: np.ndarray) -> float:
    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(x, y, data_range=LEVELS))


def skimage_overlap(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Both Otsu thresholds, and DICE by NumPy."""
    from skimage.filters import threshold_otsu

    levels = float(threshold_otsu(x)), float(threshold_otsu(y))
    above_x, above_y = x > levels[0], y > levels[1]
    counts = (int(np.count_nonzero(mask)) for mask in (above_x, above_y, above_x & above_y))
    return *levels, dice(*counts)


def skimage_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """With a uniform window of 7 in as many dimensions as the images have."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(x, y, win_size=7, data_range=LEVELS))


def skimage_ssim_slices(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([skimage_ssim(a, b) for a, b in zip(x, y, strict=True)])


def skimage_gaussian_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """With the window of Wang et al. 2004: 11 wide, sigma 1.5."""
    from skimage.metrics import structural_similarity

    found = structural_similarity(
        x, y, data_range=LEVELS, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(found)


def skimage_evaluate(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """What `metrics.evaluate(y, x)` does: grey levels, PSNR and SSIM per slice, DICE."""
    low, high = np.percentile(x, (0.1, 99.9))
    a, b = (
        np.clip((v.astype(np.float64) - low) * (LEVELS / (high - low)), 0, LEVELS) for v in (x, y)
    )
    psnr = [skimage_psnr(p, q) for p, q in zip(a, b, strict=True)]
    ssim = skimage_ssim_slices(a, b)
    return float(np.mean(psnr)), float(ssim.mean()), skimage_overlap(a, b)[2]


def torchmetrics_psnr(x: Tensor, y: Tensor) -> Tensor:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(y, x, data_range=LEVELS)


def torchmetrics_ssim(x: Tensor, y: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(y[None, None], x[None, None], data_range=LEVELS)
    assert isinstance(found, Tensor)
    return found


def msssim_ssim(x: Tensor, y: Tensor) -> Tensor:
    """pytorch-msssim's SSIM in 3D: Gaussian 11, sigma 1.5."""
    from pytorch_msssim import ssim  # type: ignore[import-untyped]

    return ssim(x[None, None], y[None, None], data_range=LEVELS)


def fused_ssim_3d(x: Tensor, y: Tensor) -> Contender:
    """fused-ssim's 3D kernel, which expects [0, 1]; "valid" leaves the borders out, as all do."""
    from fused_ssim import fused_ssim3d  # type: ignore[import-not-found]

    a, b = x[None, None] / LEVELS, y[None, None] / LEVELS
    return Contender(lambda: fused_ssim3d(a, b, padding="valid", train=False))
