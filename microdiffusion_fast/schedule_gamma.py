"""Weights of the prior over a chain: gamma as a function of the timestep, and what it forgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.schedule_checks import choice, integer, number, per_step

GammaSchedule = Literal["constant", "linear", "cosine", "late-release"]

RELEASE = 0.1  # "late-release" lets go of the prior in this last share of the timesteps


def gamma_schedule(kind: GammaSchedule, gamma: float, total: int = 1000) -> tuple[float, ...]:
    """The weight of the prior at every timestep t = T..1, the noisiest first, [T].

    A function of the timestep, so that a chain of fewer steps samples the same one:

        constant      gamma
        linear        gamma * u
        cosine        gamma * (1 - cos(pi * u)) / 2
        late-release  gamma above t = T / 10, and 0 from there to the end

    with `u = (t - 1) / (T - 1)`: 1 at the noisiest timestep, 0 at the last one.

    Args:
        kind: which function.
        gamma: its largest value, in [0, 1].
        total: T, the timesteps of the noise schedule.

    Raises:
        InputError: an unknown kind, or a number out of range.

    Examples:
        >>> gamma_schedule("linear", 0.4, total=5)
        (0.4, 0.30000000000000004, 0.2, 0.1, 0.0)
    """
    choice("gamma_schedule", kind, get_args(GammaSchedule))
    most = number("gamma", gamma, 0.0, 1.0)
    integer("total", total, 1, 1 << 24)
    values = []
    for t in range(total, 0, -1):
        u = (t - 1) / (total - 1) if total > 1 else 1.0
        values.append(
            {
                "constant": most,
                "linear": most * u,
                "cosine": most * (1 - math.cos(math.pi * u)) / 2,
                "late-release": most if t > RELEASE * total else 0.0,
            }[kind]
        )
    return tuple(values)


def gammas_at(
    timesteps: Sequence[int],
    gamma: float | Sequence[float] | None,
    kind: GammaSchedule,
    total: int,
) -> tuple[float, ...]:
    """The gammas of a chain that visits these timesteps of `total`."""
    choice("gamma_schedule", kind, get_args(GammaSchedule))
    if kind == "constant":
        return per_step("gamma", 0.0 if gamma is None else gamma, len(timesteps))
    if gamma is None or isinstance(gamma, Sequence):
        raise InputError("gamma", f"one number, the largest of gamma_schedule {kind!r}", gamma)
    values = gamma_schedule(kind, gamma, total)
    return tuple(values[total - t] for t in timesteps)


def steps_that_matter(gammas: float | Sequence[float], tol: float) -> int:
    """The least K with `prod(1 - gamma) <= tol` over a chain's last K steps: algebra alone.

    Every blend multiplies the dependence on the state before by 1 - gamma: 8 steps at gamma = 0.9
    and 6e-8 (one float32 rounding), 3 at 1/255. All of them where even the whole chain does not
    forget its start. `exact.exact_plan` adds how far off a start can be, and a reserve for what the
    network amplifies.

    Args:
        gammas: one gamma of a chain of any length, or the gammas of a chain, the noisiest first.
        tol: share of the first state that may be left, in (0, 1).

    Raises:
        InputError: a value is out of range, or a single gamma is 0: such a chain forgets nothing.
    """
    number("tol", tol, math.ulp(0.0), math.nextafter(1.0, 0.0))
    if not isinstance(gammas, Sequence):
        gamma = number("gammas", gammas, math.ulp(0.0), 1.0)
        # Less a rounding, so that 1e-6 at 0.9 is 6 steps and not 7.
        return 1 if gamma == 1 else math.ceil(math.log(tol) / math.log1p(-gamma) - 1e-9)
    left = 1.0
    for count, gamma in enumerate(reversed(per_step("gammas", gammas, len(gammas))), start=1):
        left *= 1 - gamma
        if left <= tol * (1 + 1e-9):
            return count
    return len(gammas)
