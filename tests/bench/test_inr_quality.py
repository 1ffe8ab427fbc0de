"""The benchmark of whole fits takes the cheapest options that are good enough."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.bench_inr_quality import Options, _Case
from microdiffusion_fast.inr import INROptions

LADDER = [INROptions(steps=n) for n in (1, 2, 4, 8)]


class Graded(_Case):
    """Every step is worth a decibel."""

    def __init__(self) -> None:
        self.fits = 0

    def fit(self, options: Options) -> Tensor:
        self.fits += 1
        return torch.tensor(float(options.steps))

    def psnr(self, volume: Tensor) -> float:
        return float(volume)


@pytest.mark.parametrize(("target", "steps", "fits"), [(0, 1, 1), (2, 2, 2), (3, 4, 3), (8, 8, 3)])
def test_the_first_that_reaches_the_target(target: float, steps: int, fits: int) -> None:
    case = Graded()
    assert case.reaches(target, LADDER).steps == steps
    assert case.fits == fits
