"""How far the network may be trusted on a stack, and self-training where that is not far.

The shipped weights are checked along the true axis (`adaptation_check`) and used as they are where
they do well. Where they do not, the structures are new to them, and they are trained on the stack
itself: a lateral axis of the interpolated volume plays the depth, slabs along it are averaged, and
the network learns to undo that on the very structures it will meet (Weigert et al. 2018, CARE).
The lateral axes are sharper than the axial one by an unknown blur, so the network is shown many
blurs and told which. What it learnt is used only if it does better by the check. Either way the
result is drawn towards interpolation as far as the check asks for it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .adaptation_blur import stack_blur
from .adaptation_check import (
    CHECK_SIDE,
    FULL_TRUST,
    NOISE_LIMIT,
    Check,
    check_along_z,
    check_laterally,
    coarser,
    liveliest,
    noise_of,
    trusted,
)
from .allocator import keeping
from .denoiser import ALIGN, Denoiser
from .errors import InputError
from .forward_model import AxialProjection
from .progress import Progress, ProgressCallback
from .schedule import NoiseSchedule
from .training_data import Acquisition, Source, blur_depth, draw_batch, stated_blur
from .training_step import ACTIVATIONS, clip_gradients, fast_bfloat16, training_loss

BLURS = (0.0, 1.0, 1.7, 2.5, 3.5)  # axial blurs that are trained with, in slices
STEPS = 100  # of self-training where it is called for
DOUBT = 0.6  # the trust below which it is: above it training cost time and gained little or lost


@dataclass(frozen=True)
class AdaptOptions:
    """Budget and pace of self-training.

    Attributes:
        steps: optimiser steps; their number, not the clock, is the budget, for the same bits.
            None is `STEPS` where the check trusts less than `DOUBT`, and none elsewhere.
        windows: windows a step sees, each with its slices.
        size: side of a window in pixels.
        learning_rate: peak, after a short warm-up; falls to nothing as a cosine.
        coarse: share of steps at double step length, which the check needs.
    """

    steps: int | None = None
    windows: int = 4
    size: int = 64
    learning_rate: float = 6e-4
    coarse: float = 0.25

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("windows", 1), ("size", ALIGN)):
            value = getattr(self, name)
            if name == "steps" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"adapt {name}", f"an integer of at least {least}", repr(value))


@dataclass(frozen=True)
class Adaptation:
    """The network to use and why.

    Attributes:
        denoiser: adapted, or as given where the check said so, its change to interpolation scaled
            by the trust that the evidence states.
        axial_blur: what to tell it, in slices.
        accepted: whether the adapted weights are used.
        evidence: relative squared errors of the check, 1 being linear interpolation.
    """

    denoiser: Denoiser
    axial_blur: float
    accepted: bool
    evidence: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What became of it, as `Reconstruction.adaptation` and the outputs' metadata have it."""
        return {"accepted": self.accepted, "axial_blur": self.axial_blur, **self.evidence}


def self_train(
    denoiser: Denoiser,
    sources: Sequence[Source],
    operators: Sequence[AxialProjection],
    blurs: Sequence[float],
    *,
    options: AdaptOptions,
    seed: int,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> Denoiser:
    """A copy of the denoiser, trained on mock stacks of the sources."""
    denoiser = copy.deepcopy(denoiser).train()
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    schedule = NoiseSchedule()
    optimiser = torch.optim.AdamW(denoiser.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    steps = STEPS if options.steps is None else options.steps
    sides = [side for source in sources for side in source.volume.shape]
    size = min(options.size, *sides) // ALIGN * ALIGN
    mixed = fast_bfloat16()
    seen = denoiser.feature_bytes(options.windows * size**2)
    with (
        Progress("adapt to the stack", steps, enabled=progress, callback=callback) as bar,
        keeping(seen, ACTIVATIONS),
    ):
        for step in range(steps):
            rate = min((step + 1) / 10, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * rate
            coarse = len(operators) > 1 and rng.random() < options.coarse
            operator = operators[1 if coarse else 0]
            blur = float(blurs[int(rng.integers(len(blurs)))])
            acquisition = Acquisition(
                operator.step_length, operator.stride, operator.weights.float(), blur
            )
            count = max(1, options.windows // (2 if coarse else 1))
            batch = draw_batch(sources, acquisition, rng, count=count, size=size)
            losses = training_loss(
                denoiser, batch, acquisition, schedule, generator, pure_noise=0.7, mixed=mixed
            )
            optimiser.zero_grad(set_to_none=True)
            losses.total.backward()
            clip_gradients(denoiser)
            optimiser.step()
            bar.advance(1, note=f"{losses.gain:+.2f} dB over interpolation")
    return denoiser.eval()


def lateral_sources(volume: Tensor, voxel_size: tuple[float, float, float] | None) -> list[Source]:
    """One source per lateral axis, its voxels resampled so that each axis has its twin's spacing.

    With a lateral axis as the depth, that axis needs the axial spacing, and z the lateral one.
    Without a voxel size, or within 15 % of a cube, the volume is taken as it is.
    """
    z, y, x = voxel_size or (1.0, 1.0, 1.0)
    sources = []
    for axis, lateral in ((1, y), (2, x)):
        factor = z / lateral
        if abs(math.log(factor)) < math.log(1.15):
            sources.append(Source(volume, (axis,)))
            continue
        shape = list(volume.shape)
        shape[0] = max(1, round(shape[0] * factor))
        shape[axis] = max(1, round(shape[axis] / factor))
        softened = volume
        if factor > 1:  # the coarser pixels of the mock depth see what lies between them
            softened = blur_depth(volume.movedim(axis, 0), 0.4 * factor).movedim(0, axis)
        resampled = F.interpolate(
            softened[None, None], size=shape, mode="trilinear", align_corners=False
        )
        sources.append(Source(resampled[0, 0], (axis,)))
    return sources


def _obstacle(sources: Sequence[Source], operator: AxialProjection) -> str | None:
    """Why this stack can neither judge nor teach, or None."""
    if operator.count < 4:
        return f"needs 4 projections for the check, the stack has {operator.count}"
    needed = 2 * (operator.step_length + operator.stride)
    sides = [source.volume.shape[source.depth_axes[0]] for source in sources]
    if min(sides) < needed:
        return (
            f"needs lateral sides of {needed} voxels of the axial size, the stack has {min(sides)}"
        )
    least = min(side for source in sources for side in source.volume.shape)
    if least < 2 * ALIGN:
        return f"needs {2 * ALIGN} voxels along every side at the lateral spacing, has {least}"
    return None


def adapt(
    denoiser: Denoiser,
    projections: Tensor,
    operator: AxialProjection,
    *,
    voxel_size: tuple[float, float, float] | None = None,
    axial_blur: float | None = None,
    train: bool = True,
    options: AdaptOptions | None = None,
    seed: int = 0,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> Adaptation:
    """Choose by the check along z what to use on a stack, adapting a denoiser where it asks for it.

    Args:
        denoiser: where to start; it is not changed.
        projections: [K, Y, X], spanning about [0, 1].
        operator: the acquisition.
        voxel_size: (z, y, x) in micrometres; None takes the voxels as cubes.
        axial_blur: sigma in slices by which the volume is softer along z than across, if known;
            None estimates it (`adaptation_blur`), or assumes `training_data.ASSUMED_BLUR` where
            that cannot be done, and trains with `BLURS`.
        train: False skips the training.
        options: budget.
        seed: of the windows and the noise they are trained with.

    Source: Weigert et al. 2018 (CARE), isotropic restoration.
    """
    options = options or AdaptOptions()
    blur = stated_blur(axial_blur)
    blurs = BLURS if axial_blur is None else (blur,)
    # a number of steps is an order: then they are trained whatever the noise
    noise = noise_of(projections) if options.steps is None else 0.0
    if noise >= NOISE_LIMIT:
        percent = f"{100 * noise:.1f} % of the intensity range"
        obstacle: str | None = f"would take noise of {percent} for structure"
    else:
        volume = operator.consistent(operator.interpolate(projections), projections)
        sources = lateral_sources(volume, voxel_size)
        obstacle = _obstacle(sources, operator)
    if obstacle:
        return Adaptation(denoiser, blur, False, evidence={"skipped": obstacle})
    seen = liveliest(projections, CHECK_SIDE)
    found: float | None = None
    if axial_blur is None:
        with Progress("estimate the axial blur", 1, enabled=progress, callback=callback) as bar:
            found = stack_blur(denoiser, seen, operator)
            bar.advance(1)
        blur = blur if found is None else found

    def check(candidate: Denoiser) -> Check:
        with Progress("check along z", 1, enabled=progress, callback=callback) as bar:
            result = check_along_z(candidate, seen, operator, blur)
            bar.advance(1)
        return result

    candidates = {"as shipped": denoiser}
    checks = {"as shipped": check(denoiser)}
    trust = checks["as shipped"].share / FULL_TRUST
    evidence: dict[str, Any] = {
        "check": "squared error of known halves of a coarser stack; 1 is linear interpolation",
        "blur": "stated" if axial_blur is not None else "assumed" if found is None else "estimated",
    }
    if trust < 1 and math.isfinite(trust):
        # the task of this check is the harder one: distrust needs a second witness
        lateral = [check_laterally(denoiser, source, operator, blur) for source in sources]
        evidence["lateral"] = [round(side.error, 4) for side in lateral]
        trust = max([trust, *(side.share / FULL_TRUST for side in lateral)])
    steps = options.steps
    if steps is None:
        steps = STEPS if trust < DOUBT else 0
    if train and steps > 0:
        operators = [operator, coarser(projections, operator)[1]]
        candidates["adapted"] = self_train(
            denoiser,
            sources,
            operators,
            blurs,
            options=options,
            seed=seed,
            progress=progress,
            callback=callback,
        )
        checks["adapted"] = check(candidates["adapted"])
    winner = min(checks, key=lambda name: checks[name].error)
    if winner == "adapted":  # it has learnt the lateral axes by heart
        trust = checks[winner].share / FULL_TRUST
    trust = min(1.0, max(0.0, trust))
    network = candidates[winner]
    evidence["error"] = {name: round(check.error, 4) for name, check in checks.items()}
    evidence["trust"] = round(trust, 3)
    if trust == 0:
        evidence["fallback"] = "interpolation"
    if trust < 1:
        network = trusted(network, trust)
    return Adaptation(network, blur, winner == "adapted" and trust > 0, evidence=evidence)
