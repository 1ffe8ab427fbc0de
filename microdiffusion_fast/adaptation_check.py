"""The check along the true axis: how well a denoiser does on a stack where the truth is known.

Pairs of projections, averaged, make a coarser stack whose halves were acquired. Nothing but
acquired data enters. It works at twice the step length, so it judges the task by a harder one.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoiser
from .forward_model import AxialProjection
from .inference import posterior_mean

WORST = 1e6  # stands for an error that is not a number
FULL_TRUST = 0.8  # the check is harder than the task: a share it finds is worth more than it says


class Check(NamedTuple):
    """What the halves of a coarser stack say about a denoiser.

    `error` is the squared error relative to linear interpolation, `share` the factor of the change
    to interpolation that would make it least (1 for a perfect guess, 0 for an idle one).
    """

    error: float
    share: float

    @property
    def trust(self) -> float:
        """The factor to scale the change by, from 0 to 1."""
        return min(1.0, max(0.0, self.share / FULL_TRUST))


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
    wanted = projections[: 2 * len(stack)] - fine(linear)
    change = fine(guess - linear)
    error, reference = (float(x.square().mean()) for x in (wanted - change, wanted))
    error /= max(reference, 1e-12)
    power = float(change.square().mean())
    share = float((wanted * change).mean()) / power if power > 1e-12 else 1.0
    if not math.isfinite(error):
        return Check(WORST, 0.0)
    return Check(min(error, WORST), share)


def trusted(denoiser: Denoiser, factor: float) -> Denoiser:
    """A copy whose change to interpolation is scaled by a factor; 0 is interpolation."""
    scaled = copy.deepcopy(denoiser)
    with torch.no_grad():
        for parameter in scaled.head.conv_out.parameters():
            # not a product: 0 times NaN is NaN
            parameter.copy_(parameter * factor if factor else torch.zeros_like(parameter))
    return scaled
