"""The INRs as a whole: the time of a fit that is as good as the other one gets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bench.harness import DEVICE, SMOKE, Contender, Measure, Row, choose
from microdiffusion_fast import metrics
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.inr import FourierOptions, INROptions, fit_inr
from microdiffusion_fast.simulate import simulate_volume

SHAPE = choose(smoke=(12, 16, 16), cpu=(60, 64, 64), cuda=(126, 128, 128))
STEP_LENGTH = 6
Options = INROptions | FourierOptions
# Both in ascending order of time; fewer steps are also a learning rate that decays sooner.
HASH = [INROptions(steps=n) for n in ((2, 4) if SMOKE else (30, 60, 120, 240, 480, 960))]
FOURIER = [FourierOptions(steps=n) for n in ((2, 4) if SMOKE else (125, 250, 500, 1000))]


class _Case:
    """A phantom, its projections with intensities in [0, 1], and what a volume scores."""

    def __init__(self) -> None:
        self.truth = torch.from_numpy(simulate_volume("mixed", SHAPE, seed=1)).to(DEVICE)
        self.window = metrics.intensity_window(self.truth.cpu().numpy())
        self.operator = AxialProjection(SHAPE[0], STEP_LENGTH)
        images = self.operator(self.truth)
        self.low, self.high = float(images.min()), float(images.max())
        self.images = (images - self.low) / (self.high - self.low)

    def fit(self, options: Options) -> Tensor:
        """The volume of a fitted INR, in the phantom's units: what is timed."""
        volume = fit_inr(self.images, self.operator, options=options).render()
        return volume * (self.high - self.low) + self.low

    def psnr(self, volume: Tensor) -> float:
        """In dB, averaged over the slices, as `metrics.evaluate` takes it."""
        found, truth = volume.cpu().numpy(), self.truth.cpu().numpy()
        return metrics.evaluate(found, truth, intensity=self.window).psnr

    def reaches(self, target: float, ladder: Sequence[Options]) -> Options:
        """The first of these options whose volume has that many dB; the last one anyway."""
        for options in ladder[:-1]:
            if self.psnr(self.fit(options)) >= target:
                return options
        return ladder[-1]


def bench_to_psnr(measure: Measure) -> None:
    """Each in the fewest steps to the PSNR that the paper's INR ends with, or that the hash grid
    ends with where it stays below.
    """
    case = _Case()
    ends = {"hash grid": case.psnr(case.fit(HASH[-1])), "Fourier": case.psnr(case.fit(FOURIER[-1]))}
    target = min(ends.values())
    hashed, fourier = case.reaches(target, HASH), case.reaches(target, FOURIER)

    row = Row(
        "inr.to-psnr",
        f"INR fitted and rendered, until its volume has {target:.2f} dB",
        "x".join(map(str, SHAPE)) + f", step length {STEP_LENGTH}, mixed phantom",
        Contender(partial(case.fit, hashed)),
        {"the paper's Fourier INR": lambda: Contender(partial(case.fit, fourier), rounds=1)},
        # what is verified is the shortfall, in dB
        exact=lambda: 0.0,
        view=lambda volume: max(0.0, target - case.psnr(volume)),
        rounds=3,
    )
    record = measure(row)
    record["psnr"] = {"target": target, "ends": ends}
    record["steps"] = {"hash grid": hashed.steps, "Fourier": fourier.steps}
