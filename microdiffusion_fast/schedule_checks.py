"""Checks of a plan's options: the value, or an `InputError` that names the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence

from microdiffusion_fast.errors import InputError


def integer(name: str, value: int, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(name, f"an integer in [{least}, {most}]", repr(value))
    return value


def number(name: str, value: float, least: float, most: float) -> float:
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise InputError(name, "a number", repr(value)) from None
    if not least <= result <= most or math.isinf(result):
        raise InputError(name, f"a finite number in [{least:g}, {most:g}]", result)
    return result


def choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(name, f"one of {', '.join(choices)}", repr(value))


def option(name: str, value: float | None, default: float, *, used: bool) -> float:
    """An option in [0, 1] that only one sampler has."""
    if value is not None and not used:
        raise InputError(name, "None for a sampler that does not use it", value)
    return default if value is None else number(name, value, 0.0, 1.0)


def per_step(name: str, values: float | Sequence[float], steps: int) -> tuple[float, ...]:
    """One number in [0, 1] for every step."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        return (number(name, values, 0.0, 1.0),) * steps
    if len(values) != steps:
        raise InputError(name, f"one number per step, {steps}", f"{len(values)}")
    return tuple(number(name, value, 0.0, 1.0) for value in values)


def limits(clamp: tuple[float, float] | None) -> tuple[float, float]:
    if clamp is None:
        return -math.inf, math.inf
    if not isinstance(clamp, Sequence) or len(clamp) != 2:
        raise InputError("clamp", "(low, high)", repr(clamp))
    low, high = (number("clamp", value, -math.inf, math.inf) for value in clamp)
    if low >= high:
        raise InputError("clamp", "low below high", (low, high))
    return low, high
