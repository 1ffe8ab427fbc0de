"""windowed_ssim against scikit-image, pytorch-msssim, torchmetrics and fused-ssim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bench.formulas import LEVELS
from bench.harness import DEVICE, Contender, Measure, Row, choose, normal, on_cpu_only, uniform
from bench.peers import metrics as others
from microdiffusion_fast.kernels import windowed_ssim
from microdiffusion_fast.kernels.windowed_ssim import reference

SHAPE = choose(smoke=(16, 32, 32), cpu=(256, 256, 256), cuda=(512, 512, 512))
SMALL = choose(smoke=(16, 16, 16), cpu=(64, 64, 64), cuda=(128, 128, 128))
# Rounds of peers that take seconds, and of those that take more than ten.
SLOW, VERY_SLOW = 3, 2
TOLERANCE = 1e-6
Pair = tuple[Tensor, Tensor]


def _pair(shape: tuple[int, int, int]) -> Pair:
    """Structure at the scale of the window, and the same with noise."""
    coarse = uniform(tuple(-(-n // 4) for n in shape), 1, 255.0)
    x = coarse
    for axis in range(3):
        x = x.repeat_interleave(4, axis).narrow(axis, 0, shape[axis])
    x = x.contiguous()
    return x, (x + 20 * normal(shape, 2)).clamp_(0, 255)


def _size(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape)) + " float32"


def _skimage(pair: Pair, function: Callable[..., Any], rounds: int = SLOW) -> Contender:
    on_cpu_only()
    x, y = (volume.numpy() for volume in pair)
    return Contender(lambda: function(x, y), rounds=rounds)


def _on(pair: Pair, function: Callable[..., Any], rounds: int | None = None) -> Contender:
    return Contender(lambda: function(*pair), rounds=rounds)


def bench_uniform_3d(measure: Measure) -> None:
    pair = _pair(SHAPE)
    row = Row(
        "ssim.uniform-3d",
        "SSIM, uniform window 7 in 3D",
        _size(SHAPE),
        Contender(lambda: windowed_ssim(*pair, data_range=LEVELS, window="uniform", ndim=3)),
        {"scikit-image": lambda: _skimage(pair, others.skimage_ssim)},
        floor_bytes=8 * pair[0].numel(),
        exact=lambda: reference.ssim_volume(*pair, LEVELS, "uniform"),
        tolerance=TOLERANCE,
    )
    measure(row)


def bench_gaussian_3d(measure: Measure) -> None:
    pair = _pair(SHAPE)
    cpu = DEVICE.type == "cpu"
    row = Row(
        "ssim.gaussian-3d",
        "SSIM, Gaussian window 11 in 3D",
        _size(SHAPE),
        Contender(lambda: windowed_ssim(*pair, data_range=LEVELS, window="gaussian", ndim=3)),
        {
            "pytorch-msssim": lambda: _on(pair, others.msssim_ssim, VERY_SLOW if cpu else SLOW),
            "scikit-image": lambda: _skimage(pair, others.skimage_gaussian_ssim, VERY_SLOW),
            "fused-ssim": lambda: others.fused_ssim_3d(*pair),
        },
        floor_bytes=8 * pair[0].numel(),
        exact=lambda: reference.ssim_volume(*pair, LEVELS, "gaussian"),
        tolerance=TOLERANCE,
    )
    measure(row)


def bench_gaussian_3d_small(measure: Measure) -> None:
    """A size at which torchmetrics, which convolves with the dense 11^3 window, comes to an end."""
    pair = _pair(SMALL)
    row = Row(
        "ssim.gaussian-3d-small",
        "SSIM, Gaussian window 11 in 3D, a volume that fits the cache",
        _size(SMALL),
        Contender(lambda: windowed_ssim(*pair, data_range=LEVELS, window="gaussian", ndim=3)),
        {
            "torchmetrics": lambda: _on(pair, others.torchmetrics_ssim, SLOW),
            "pytorch-msssim": lambda: _on(pair, others.msssim_ssim, SLOW),
        },
        floor_bytes=8 * pair[0].numel(),
        exact=lambda: reference.ssim_volume(*pair, LEVELS, "gaussian"),
        tolerance=TOLERANCE,
    )
    measure(row)


def bench_slices(measure: Measure) -> None:
    """Per slice with a 7x7 window, as the authors evaluated."""
    pair = _pair(SHAPE)
    row = Row(
        "ssim.slices",
        "SSIM of every slice, uniform window 7x7",
        f"{SHAPE[0]} slices of {SHAPE[1]}x{SHAPE[2]} float32",
        Contender(lambda: windowed_ssim(*pair, data_range=LEVELS, window="uniform", ndim=2)),
        {"scikit-image": lambda: _skimage(pair, others.skimage_ssim_slices)},
        floor_bytes=8 * pair[0].numel(),
        exact=lambda: reference.ssim_slices(*pair, LEVELS, "uniform"),
        tolerance=TOLERANCE,
    )
    measure(row)
