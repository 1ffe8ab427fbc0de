"""volume_metrics against scikit-image, torchmetrics and plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.formulas import dice, from_sums, otsu
from bench.harness import (
    Contender,
    Measure,
    Peer,
    Row,
    choose,
    compiled,
    normal,
    on_cpu_only,
    uniform,
)
from bench.peers import metrics as others
from microdiffusion_fast import metrics
from microdiffusion_fast.kernels import evaluate_sums, joint_counts
from microdiffusion_fast.kernels.volume_metrics import reference

SHAPE = choose(smoke=(16, 32, 32), cpu=(256, 256, 256), cuda=(512, 512, 512))
SIZE = "x".join(map(str, SHAPE)) + " float32"
SLOW = 5
Pair = tuple[Tensor, Tensor]


def uniform_pair() -> Pair:
    """Uniform grey levels, and the same with noise."""
    x = uniform(SHAPE, 1, 255.0)
    return x, (x + 10 * normal(SHAPE, 2)).clamp_(0, 255)


def bench_sums(measure: Measure) -> None:
    x, y = uniform_pair()

    def scikit_image() -> Contender:
        on_cpu_only()
        a, b = x.numpy(), y.numpy()
        return Contender(lambda: others.skimage_psnr(a, b), rounds=SLOW, same=False)

    def torch_compile() -> Contender:
        function = compiled(others.plain_sums)
        return Contender(lambda: function(x, y))

    peers: dict[str, Peer] = {
        "scikit-image PSNR": scikit_image,
        "torchmetrics PSNR": lambda: Contender(
            lambda: others.torchmetrics_psnr(x, y), rounds=SLOW, same=False
        ),
        "torch eager": lambda: Contender(lambda: others.plain_sums(x, y), rounds=SLOW),
        "torch.compile": torch_compile,
    }
    row = Row(
        "metrics.sums",
        "PSNR, global SSIM and extremes in one pass",
        SIZE,
        Contender(lambda: from_sums(evaluate_sums(x, y, histograms=False))),
        peers,
        floor_bytes=8 * x.numel(),
        exact=lambda: others.plain_sums(x.double(), y.double()),
        tolerance=2e-6,  # of a PSNR near 28; float32 torch is off by 1e-6
    )
    measure(row)


def bench_overlap(measure: Measure) -> None:
    _overlap(measure, "metrics.overlap", "uniform data", uniform_pair())


def bench_overlap_dark(measure: Measure) -> None:
    """All but one voxel in twenty exactly black: one bin takes nearly all."""
    lit = uniform(SHAPE, 9) > 0.95
    x, y = uniform_pair()
    _overlap(measure, "metrics.overlap-dark", "95 % black", (x * lit, y * lit))


def bench_overlap_constant(measure: Measure) -> None:
    x, y = uniform_pair()
    pair = torch.full_like(x, 40.0), torch.full_like(y, 37.0)
    _overlap(measure, "metrics.overlap-constant", "constant data", pair)


def _overlap(measure: Measure, name: str, kind: str, pair: Pair) -> None:
    x, y = pair
    even = uniform_pair()

    def scikit_image() -> Contender:
        on_cpu_only()
        a, b = x.numpy(), y.numpy()
        return Contender(
            lambda: (others.skimage_psnr(a, b), *others.skimage_overlap(a, b)), rounds=SLOW
        )

    peers: dict[str, Peer] = {
        "scikit-image": scikit_image,
        "ours on uniform data": lambda: Contender(lambda: _all(*even), same=False),
    }
    row = Row(
        name,
        f"PSNR, global SSIM, extremes, both Otsu thresholds and DICE: {kind}",
        SIZE,
        Contender(lambda: _all(x, y)),
        peers,
        floor_bytes=16 * x.numel(),
        exact=lambda: _all_exactly(x, y),
        tolerance=1e-6,
    )
    measure(row)


def bench_joint(measure: Measure) -> None:
    """What `evaluate` gathers from disk for both thresholds and the overlap."""
    x, y = uniform_pair()
    ranges = ((0.0, 255.0), (0.0, 255.0))

    def plain() -> Tensor:
        return reference.joint_counts(x, y, 1.0, 0.0, None, ranges)

    row = Row(
        "metrics.joint",
        "joint counts of half bins, 512 x 512",
        SIZE,
        Contender(lambda: joint_counts(x, y, ranges)),
        {"torch eager": lambda: Contender(plain, rounds=SLOW)},
        floor_bytes=8 * x.numel(),
        exact=plain,
        tolerance=0.0,
    )
    measure(row)


def bench_evaluate(measure: Measure) -> None:
    """What a user calls."""
    x, y = uniform_pair()

    def ours() -> tuple[float, ...]:
        found = metrics.evaluate(y, x)
        return found.psnr, found.ssim, found.dice

    def by_scikit_image() -> tuple[float, ...]:
        return others.skimage_evaluate(x.cpu().numpy(), y.cpu().numpy())

    def scikit_image() -> Contender:
        on_cpu_only()
        return Contender(by_scikit_image, rounds=2)

    row = Row(
        "metrics.evaluate",
        "metrics.evaluate: grey levels from percentiles, PSNR, SSIM per slice, DICE",
        SIZE,
        Contender(ours),
        {"scikit-image": scikit_image},
        exact=by_scikit_image,
        tolerance=1e-6,
        rounds=SLOW,
    )
    measure(row)


def _all(x: Tensor, y: Tensor) -> tuple[float, ...]:
    """PSNR, both thresholds and DICE; global SSIM and extremes come with them."""
    from microdiffusion_fast.kernels.volume_metrics import overlap_counts

    sums = evaluate_sums(x, y)
    levels = otsu(sums.histogram_x, sums.range_x), otsu(sums.histogram_y, sums.range_y)
    counts = overlap_counts(x, y, thresholds=levels).sum(0).tolist()
    return from_sums(sums)[0], *levels, dice(*counts)


def _all_exactly(x: Tensor, y: Tensor) -> tuple[float, ...]:
    """The same in float64 by scikit-image, which is also what our tests hold ours against."""
    a, b = x.cpu().double().numpy(), y.cpu().double().numpy()
    return others.skimage_psnr(a, b), *others.skimage_overlap(a, b)
