"""The axial blur of a stack, as the check along the true axis betrays it.

Told a blur that is too weak or too strong, the network restores the halves of a coarser stack with
too much or too little detail. How its change to interpolation fares and grows, when it is told one
blur after another, says which was the right one: a linear regression, fitted to simulated stacks by
`bench/fit_axial_blur.py`. The error alone does not tell; it falls towards strong blurs everywhere.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .adaptation_check import NOISE_LIMIT, halves_along_z, noise_of
from .denoiser import Denoiser
from .forward_model import AxialProjection
from .inr import estimate_noise
from .tensor_files import digest
from .training_data import ASSUMED_BLUR, axial_spread

TOLD = (0.0, 1.5, 3.0, 4.5)  # blurs that the network is told, in slices
FEWEST, MOST = 6, 12  # projections that it was fitted to
FOLLOWED = 0.75  # of the way from the usual blur to the estimate: recorded volumes vary less
STRONGEST = 4.0  # slices: the network has seen few beyond
FITTED = Path(__file__).parent / "weights" / "axial_blur.json"
LEAST = 1e-6


class Regression(NamedTuple):
    """A blur in slices from the numbers of `blur_features`.

    Attributes:
        network: digest of the weights that it holds for.
        intercept: slices.
        coefficients: slices per unit of every number.
    """

    network: str
    intercept: float
    coefficients: tuple[float, ...]


def stack_blur(denoiser: Denoiser, projections: Tensor, operator: AxialProjection) -> float | None:
    """The sigma in slices by which a volume is softer along z than across, estimated.

    Args:
        denoiser: the network that ships for quiet stacks; other weights answer otherwise.
        projections: [K, Y, X] of a part of the stack where something is to be seen, spanning about
            [0, 1].
        operator: the acquisition.

    Returns:
        Between 0 and `STRONGEST`, or None: other weights, fewer than `FEWEST` projections, or noise
        that hides it.
    """
    fitted = _fitted()
    if operator.count < FEWEST or noise_of(projections) >= NOISE_LIMIT:
        return None
    if fitted.network != digest(denoiser.state_dict()):
        return None
    numbers = blur_features(denoiser, _liveliest_run(projections), operator)
    products = (a * b for a, b in zip(fitted.coefficients, numbers, strict=True))
    estimate = fitted.intercept + math.fsum(products)
    told = ASSUMED_BLUR + FOLLOWED * (estimate - ASSUMED_BLUR)
    return round(min(STRONGEST, max(0.0, told)), 2) if math.isfinite(told) else None


def blur_features(
    denoiser: Denoiser, projections: Tensor, operator: AxialProjection
) -> list[float]:
    """What the estimate is made of: of every blur in `TOLD` the logarithms of error and change,
    relative to what there was to add, and the share of `Check`; then noise and geometry."""
    told: list[float] = []
    size = LEAST
    for blur in TOLD:
        change, wanted = halves_along_z(denoiser, projections, operator, blur)
        size, power = _rms(wanted), float(change.square().mean())
        told.append(math.log(_rms(wanted - change) / size))
        told.append(math.log(_rms(change) / size))
        told.append(float((wanted * change).mean()) / max(power, 1e-10))
    noise = max(estimate_noise(projections), 1e-3)  # below, it is that of rounding
    return [
        math.log(size),
        *told,
        math.log(noise),
        math.log2(operator.step_length),
        math.log2(operator.stride / operator.step_length),
        axial_spread(operator.weights) - 1,
    ]


def _liveliest_run(images: Tensor) -> Tensor:
    """The `MOST` successive images [K, Y, X] in which neighbours differ most."""
    if len(images) <= MOST:
        return images
    change = (images[1:] - images[:-1]).square().mean((1, 2))
    start = int(change.unfold(0, MOST - 1, 1).sum(1).argmax())
    return images[start : start + MOST]


def _rms(values: Tensor) -> float:
    return max(LEAST, math.sqrt(float(values.square().mean())))


@cache
def _fitted() -> Regression:
    stored = json.loads(FITTED.read_text(encoding="utf-8"))
    return Regression(stored["network"], stored["intercept"], tuple(stored["coefficients"]))
