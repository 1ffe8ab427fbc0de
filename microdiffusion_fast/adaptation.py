"""Self-training on the user's own stack, and the check along the true axis that admits it.

A lateral axis of the interpolated volume plays the depth: slabs along it are averaged, and the
network learns to undo that on the very structures it will meet (Weigert et al. 2018, CARE). The
lateral axes are sharper than the axial one by an unknown blur, so the network is shown many
blurs and told which. What it learnt is used only if it does better where the truth is known:
pairs of projections, averaged, make a coarser stack whose halves were acquired.
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

from .denoiser import ALIGN, Denoiser
from .errors import InputError
from .forward_model import AxialProjection
from .inference import posterior_mean
from .progress import Progress, ProgressCallback
from .schedule import NoiseSchedule
from .training_data import Acquisition, Source, blur_depth, draw_batch
from .training_step import fast_bfloat16, training_loss

WORST = 1e6  # stands for an error that is not a number
CHECK_SIDE = 96  # the check needs no more columns than this square holds
BLURS = (0.0, 1.0, 1.7, 2.5, 3.5)  # axial blurs that are trained with, in slices
ASSUMED_BLUR = 1.5  # in slices, where none is stated: microscopes are softer along z than across


@dataclass(frozen=True)
class AdaptOptions:
    """Budget and pace of self-training.

    Attributes:
        steps: optimiser steps; their number, not the clock, is the budget, for the same bits.
        windows: windows a step sees, each with its slices.
        size: side of a window in pixels.
        learning_rate: peak, after a short warm-up; falls to nothing as a cosine.
        coarse: share of steps at double step length, which the check needs.
    """

    steps: int = 100
    windows: int = 4
    size: int = 64
    learning_rate: float = 6e-4
    coarse: float = 0.25

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("windows", 1), ("size", ALIGN)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"adapt {name}", f"an integer of at least {least}", repr(value))


@dataclass(frozen=True)
class Adaptation:
    """The network to use and why.

    Attributes:
        denoiser: adapted, or as given where the check said so.
        axial_blur: what to tell it, in slices.
        accepted: whether the adapted weights are used.
        evidence: relative squared errors of the check, 1 being linear interpolation.
    """

    denoiser: Denoiser
    axial_blur: float
    accepted: bool
    evidence: dict[str, Any] = field(default_factory=dict)


def coarser(projections: Tensor, operator: AxialProjection) -> tuple[Tensor, AxialProjection]:
    """Pairs of projections averaged: about twice the step length, with halves that are known."""
    pairs = len(projections) // 2
    stack = (projections[0 : 2 * pairs : 2] + projections[1 : 2 * pairs : 2]) / 2
    s, stride = operator.step_length, operator.stride
    weights = torch.zeros(s + stride, dtype=torch.float64)
    weights[:s] += operator.weights / 2
    weights[stride:] += operator.weights / 2
    depth = operator.start + 2 * stride * (pairs - 1) + s + stride
    return stack, AxialProjection(
        depth, s + stride, stride=2 * stride, weights=weights, start=operator.start
    )


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
    sides = [side for source in sources for side in source.volume.shape]
    size = min(options.size, *sides) // ALIGN * ALIGN
    mixed = fast_bfloat16()
    with Progress("adapt to the stack", options.steps, enabled=progress, callback=callback) as bar:
        for step in range(options.steps):
            rate = min((step + 1) / 10, 0.5 + 0.5 * math.cos(math.pi * step / options.steps))
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
            error, reference = training_loss(
                denoiser, batch, acquisition, schedule, generator, pure_noise=0.7, mixed=mixed
            )
            loss = error / (reference.detach() + 1e-5)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimiser.step()
            bar.advance(1, note=f"error {float(loss.detach()):.2f} of interpolation")
    return denoiser.eval()


def axial_error(
    denoiser: Denoiser, projections: Tensor, operator: AxialProjection, blur: float
) -> float:
    """Squared error of the halves of a coarser stack, relative to linear interpolation."""
    stack, coarse = coarser(projections, operator)
    fine = AxialProjection(
        coarse.depth,
        operator.step_length,
        stride=operator.stride,
        weights=operator.weights,
        start=operator.start,
        count=2 * len(stack),
    )
    truth = projections[: 2 * len(stack)]
    base = coarse.consistent(coarse.interpolate(stack), stack)
    guess = coarse.consistent(posterior_mean(denoiser, stack, coarse, axial_blur=blur), stack)
    error, reference = (float((fine(volume) - truth).square().mean()) for volume in (guess, base))
    return error / max(reference, 1e-12)


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
    """Why this stack cannot teach, or None."""
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


def _liveliest(images: Tensor, side: int) -> Tensor:
    """The square of images [K, Y, X] in which neighbouring projections differ most."""
    height, width = images.shape[1:]
    tall, wide = min(side, height), min(side, width)
    change = (images[1:] - images[:-1]).square().mean(0)
    means = F.avg_pool2d(change[None, None], (tall, wide), stride=8)[0, 0]
    top, left = divmod(int(means.argmax()), means.shape[1])
    return images[:, 8 * top : 8 * top + tall, 8 * left : 8 * left + wide]


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
    """Adapt a denoiser to a stack, and choose its weights by the check along z.

    Args:
        denoiser: where to start; it is not changed.
        projections: [K, Y, X], spanning about [0, 1].
        operator: the acquisition.
        voxel_size: (z, y, x) in micrometres; None takes the voxels as cubes.
        axial_blur: sigma in slices by which the volume is softer along z than across, if known;
            None trains with `BLURS` and assumes `ASSUMED_BLUR`.
        train: False skips the training.
        options: budget.
        seed: of the windows and the noise they are trained with.

    Source: Weigert et al. 2018 (CARE), isotropic restoration.
    """
    options = options or AdaptOptions()
    blur = ASSUMED_BLUR if axial_blur is None else float(axial_blur)
    blurs = BLURS if axial_blur is None else (blur,)
    volume = operator.consistent(operator.interpolate(projections), projections)
    sources = lateral_sources(volume, voxel_size)
    obstacle = _obstacle(sources, operator)
    if obstacle:
        return Adaptation(denoiser, blur, False, {"skipped": obstacle})
    candidates = {"as shipped": denoiser}
    if train and options.steps > 0:
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
    seen = _liveliest(projections, CHECK_SIDE)
    errors: dict[str, float] = {}
    with Progress("check along z", len(candidates), enabled=progress, callback=callback) as bar:
        for name, network in candidates.items():
            error = axial_error(network, seen, operator, blur)
            errors[name] = min(error, WORST) if math.isfinite(error) else WORST
            bar.advance(1)
    winner = min(errors, key=lambda name: errors[name])
    evidence = {
        "check": "squared error of known halves of a coarser stack; 1 is linear interpolation",
        "error": {name: round(error, 4) for name, error in errors.items()},
    }
    if errors[winner] > 1.001:
        # worse than interpolation where the truth is known: an untrained network is interpolation
        untrained = Denoiser(denoiser.config).to(projections.device).eval()
        return Adaptation(untrained, 0.0, False, {**evidence, "fallback": "interpolation"})
    return Adaptation(candidates[winner], blur, winner == "adapted", evidence)
