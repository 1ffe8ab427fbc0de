"""How well a denoiser does on a stack where the truth is known: along the true axis and laterally.

Pairs of projections, averaged, make a coarser stack whose halves were acquired. Nothing but
acquired data enters. It works at twice the step length, so it judges the task by a harder one.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import Denoiser
from .forward_model import AxialProjection
from .inference import posterior_mean
from .inr import estimate_noise
from .schedule import Consistency
from .training_data import Source, blur_depth

WORST = 1e6  # stands for an error that is not a number
FULL_TRUST = 0.9  # the share of its own change from which a denoiser is followed all the way
LATERAL_SIDE = 64  # pixels of a mock stack
LEAST = 0.05  # share of a difference that is held for the error of a guess whatever the noise
CHECK_SIDE = 96  # pixels of a side that say enough about a stack
NOISE_LIMIT = 0.015  # of the intensity range: from here on noise is removed from projections too


class Check(NamedTuple):
    """What the halves of a coarser stack say about a denoiser.

    `error` is the squared error relative to linear interpolation, `share` the factor of the change
    to interpolation that would make it least (1 for a perfect guess, 0 for an idle one).
    """

    error: float
    share: float


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


def check_along_z(
    denoiser: Denoiser, projections: Tensor, operator: AxialProjection, blur: float
) -> Check:
    """How well a denoiser restores the halves of a coarser stack, [K, Y, X]."""
    return _compare(*halves_along_z(denoiser, projections, operator, blur))


def halves_along_z(
    denoiser: Denoiser, projections: Tensor, operator: AxialProjection, blur: float
) -> tuple[Tensor, Tensor]:
    """What a denoiser adds to interpolation in the halves of a coarser stack, told a blur in
    slices, and what there was to add: both [K, Y, X], K even."""
    stack, coarse = coarser(projections, operator)
    fine = AxialProjection(
        coarse.depth,
        operator.step_length,
        stride=operator.stride,
        weights=operator.weights,
        start=operator.start,
        count=2 * len(stack),
    )
    linear = coarse.consistent(coarse.interpolate(stack), stack)
    guess = coarse.consistent(posterior_mean(denoiser, stack, coarse, axial_blur=blur), stack)
    return fine(guess - linear), projections[: 2 * len(stack)] - fine(linear)


def check_laterally(
    denoiser: Denoiser, source: Source, operator: AxialProjection, blur: float
) -> Check:
    """How well a denoiser restores a volume whose lateral axis plays the depth.

    It is done at the step length itself, unlike the other, but on another axis: it says whether
    the structures are of a kind that the denoiser knows. The depth is blurred by what is stated.
    """
    mock = blur_depth(source.volume.movedim(source.depth_axes[0], 0).float(), blur)
    mock = liveliest(mock[: 2 * LATERAL_SIDE], LATERAL_SIDE).contiguous()
    lateral = AxialProjection(
        len(mock), operator.step_length, stride=operator.stride, weights=operator.weights
    )
    stack = lateral(mock)
    linear = lateral.consistent(lateral.interpolate(stack), stack)
    guess = lateral.consistent(posterior_mean(denoiser, stack, lateral, axial_blur=blur), stack)
    covered = lateral.covered
    return _compare((guess - linear)[covered], (mock - linear)[covered])


def noise_of(projections: Tensor) -> float:
    """Standard deviation of the noise of projections [K, Y, X] where something is to be seen."""
    return estimate_noise(liveliest(projections, CHECK_SIDE))


def follow_noise(projections: Tensor, asked: Consistency | None) -> tuple[Consistency, bool]:
    """How closely a volume agrees with projections [K, Y, X], and whether weights for noisy ones
    restore it: by their noise, as far as it is not asked for."""
    noisy = noise_of(projections) >= NOISE_LIMIT
    kind: Consistency = asked or ("soft" if noisy else "hard")
    return kind, noisy or kind == "soft"


def noise_to_error(
    denoiser: Denoiser, projections: Tensor, operator: AxialProjection, blur: float
) -> float:
    """How noisy projections [K, Y, X] are, over how wrong a denoiser's own guess of them is.

    As variances, which `noise_to_signal` of soft consistency is for a denoiser: the guess and the
    projection differ by both, so the second is what the noise does not explain, `LEAST` of it all:
    a guess that follows some of the noise looks better than it is. Medians keep bright structures
    out, where photons make more noise than is estimated.
    """
    seen = liveliest(projections, CHECK_SIDE)
    guess = posterior_mean(denoiser, seen, operator, axial_blur=blur)
    differs = float((seen - operator(guess)).abs().median() / 0.6745) ** 2
    noise = estimate_noise(seen) ** 2
    if not math.isfinite(differs):
        return 0.0  # the guess is worth nothing
    return noise / max(differs - noise, LEAST * differs, 1e-12)


def _compare(change: Tensor, wanted: Tensor) -> Check:
    """What a denoiser adds to interpolation, against what there was to add."""
    error, reference = (float(x.square().mean()) for x in (wanted - change, wanted))
    error /= max(reference, 1e-12)
    power = float(change.square().mean())
    share = float((wanted * change).mean()) / power if power > 1e-12 else 1.0
    if not math.isfinite(error):
        return Check(WORST, 0.0)
    return Check(min(error, WORST), share)


def liveliest(images: Tensor, side: int) -> Tensor:
    """The square of images [K, Y, X] in which neighbours differ most."""
    height, width = images.shape[1:]
    tall, wide = min(side, height), min(side, width)
    change = (images[1:] - images[:-1]).square().mean(0)
    means = F.avg_pool2d(change[None, None], (tall, wide), stride=8)[0, 0]
    top, left = divmod(int(means.argmax()), means.shape[1])
    return images[:, 8 * top : 8 * top + tall, 8 * left : 8 * left + wide]


def trusted(denoiser: Denoiser, factor: float) -> Denoiser:
    """A copy whose change to interpolation is scaled by a factor; 0 is interpolation."""
    scaled = copy.deepcopy(denoiser)
    with torch.no_grad():
        for parameter in scaled.head.conv_out.parameters():
            # not a product: 0 times NaN is NaN
            parameter.copy_(parameter * factor if factor else torch.zeros_like(parameter))
    return scaled
