"""Where a chain stops, and every sampler's step from one stop to the next.

A step is `x_prev = a * x0 + b * x + c * history + d * noise`; these functions give a, b, c and d.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Coefficients = tuple[float, float, float, float]


class Point(NamedTuple):
    """A timestep of the schedule; the logarithm keeps 1 - alpha_bar exact where it is tiny."""

    t: int
    log: float  # of alpha_bar

    @property
    def signal(self) -> float:
        return math.exp(self.log / 2)

    @property
    def variance(self) -> float:
        return -math.expm1(self.log)

    @property
    def noise(self) -> float:
        return math.sqrt(self.variance)

    @property
    def snr(self) -> float:
        """lambda = log(signal / noise), infinite at t = 0."""
        return (self.log - math.log(self.variance)) / 2 if self.t else math.inf


def even_in_time(steps: int, first: int, last: int) -> tuple[int, ...]:
    """Timesteps from `first` down to `last`, halves rounded down."""
    # In integers: neighbours at least 1 apart stay distinct, which rounded floats need not.
    gaps = max(steps - 1, 1)
    return tuple(first - (2 * i * (first - last) + gaps) // (2 * gaps) for i in range(steps))


def even_in_snr(steps: int, points: Sequence[Point]) -> tuple[int, ...]:
    """The timesteps of these ascending points that lie nearest to even distances in snr."""
    last, first = points[0], points[-1]
    timesteps: list[int] = []
    for i in range(steps):
        target = first.snr + (last.snr - first.snr) * i / max(steps - 1, 1)
        _, nearest = min((abs(point.snr - target), point.t) for point in points)
        # Below the timestep before, and with room for those to come.
        below = timesteps[-1] - 1 if timesteps else first.t
        timesteps.append(max(min(nearest, below), last.t + steps - 1 - i))
    return tuple(timesteps)


def to_x0(prediction: str, now: Point) -> tuple[float, float]:
    """x0 = p * prediction + q * x, from x = signal * x0 + noise * eps."""
    if prediction == "eps":
        return -now.noise / now.signal, 1 / now.signal
    return (-now.noise, now.signal) if prediction == "v" else (1.0, 0.0)


def ddpm(now: Point, end: Point, mix: float) -> Coefficients:
    """Ho et al. 2020, eq. 7, the variance between those of its section 3.2."""
    beta = -math.expm1(now.log - end.log)
    a = end.signal * beta / now.variance
    b = math.exp((now.log - end.log) / 2) * end.variance / now.variance
    tilde = beta * end.variance / now.variance
    # Algorithm 2 adds no noise in the step that ends in the clean volume.
    d = math.sqrt(beta**mix * tilde ** (1 - mix)) if end.t else 0.0
    return a, b, 0.0, d


def ddim(now: Point, end: Point, eta: float) -> Coefficients:
    """Song et al. 2021, eq. 12, sigma of eq. 16; eps written as (x - signal * x0) / noise."""
    beta = -math.expm1(now.log - end.log)
    variance = eta**2 * beta * end.variance / now.variance
    b = math.sqrt(max(end.variance - variance, 0.0)) / now.noise
    return end.signal - b * now.signal, b, 0.0, math.sqrt(variance)


def dpm(before: Point | None, now: Point, end: Point) -> Coefficients:
    """Lu et al. 2022, algorithm 2; first order without a step before, and into the clean volume."""
    h = end.snr - now.snr
    gain = -end.signal * math.expm1(-h)
    extra = 0.0 if before is None or not end.t else h / (now.snr - before.snr) / 2  # 1 / (2 r)
    return gain * (1 + extra), end.noise / now.noise, -gain * extra, 0.0
