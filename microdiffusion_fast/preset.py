"""What `reconstruct` asks of a preset, and what a preset makes of a stack before it is sampled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .forward_model import AxialProjection
from .inr import estimate_noise
from .progress import ProgressCallback
from .projections import Projections
from .sampler import Denoise
from .schedule import Consistency, Sampler, SamplingPlan
from .schedule_gamma import GammaSchedule


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """The options of `reconstruct`, which documents them; None is the preset's own choice.

    Attributes:
        stack: the projections.
        prior: [Z, Y, X] where one was given, in the units of the projections.
        device: where the sampling runs.
        timings: seconds of every stage, filled on the way.
    """

    stack: Projections
    steps: int | Literal["exact"] | None
    tol: float
    sampler: Sampler | None
    gamma: float | Sequence[float] | None
    gamma_schedule: GammaSchedule
    guidance: float | None
    variance_mix: float | None
    estimate: Literal["mean", "sample"]
    samples: int
    consistency: Consistency | None
    adapt: bool | None
    adapt_steps: int | None
    axial_blur: float | None
    denoiser: str | Path | None
    prior: Tensor | None
    inr_steps: int | None
    train_steps: int | None
    seed: int
    device: torch.device
    batch_size: int
    progress: bool
    callback: ProgressCallback | None
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds of the block to those of a stage."""
        begun = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - begun


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A stack ready to be sampled.

    Attributes:
        denoise: the network, bound to the stack.
        prior: [Z, Y, X] in units where the projections span about [0, 1], on the device.
        images: projections [K, Y, X], likewise.
        plan: of the chains.
        chain: its last steps that equal it, for an exact chain; else the plan itself.
        chains: how many are asked for.
        stated: gives, after the chain, the standard deviation [Z, Y, X] that the network states
            for it, in network units; None where only several chains can tell.
        parameters: the options that presets resolve differently, as resolved.
        adaptation: as `Reconstruction` has it.
    """

    denoise: Denoise
    prior: Tensor
    images: Tensor
    plan: SamplingPlan
    chain: SamplingPlan
    chains: int
    stated: Callable[[], Tensor] | None = None
    parameters: dict[str, Any]
    adaptation: dict[str, Any] = field(default_factory=dict)


def noise_to_signal(images: Tensor, operator: AxialProjection) -> float:
    """Noise of the projections over what they may still tell, for soft consistency.

    The noise is estimated from the images, the signal from how neighbouring projections differ.
    """
    if len(images) < 2:
        return 0.0
    noise = estimate_noise(images) ** 2
    signal = float((images[1:] - images[:-1]).square().mean()) / 2
    gram = float(operator.weights.square().sum())
    return noise / max(gram * max(signal - noise, 0.01 * signal), 1e-12)


def slice_noise(images: Tensor, operator: AxialProjection) -> float:
    """Noise of single slices that a volume cannot have from its projections, standard deviation.

    A slice recorded by itself is noisier than a weighted mean of many: white noise whose means
    are those of the images [K, Y, X] has their variance over `(w * w).sum()` in every slice. Hard
    consistency takes as much of it from K projections as K is of the slices they cover; the rest
    is missing from the volume, and is an error against slices recorded one by one.
    """
    return estimate_noise(images) * unseen_noise(operator)


def unseen_noise(operator: AxialProjection) -> float:
    """`slice_noise` of projections whose own noise has the standard deviation 1."""
    unseen = 1 - operator.count / int(operator.covered.sum())
    return math.sqrt(unseen / float(operator.weights.square().sum()))
