"""What the parameters of a sweep have to be, in the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.schedule_gamma import GammaSchedule


def sorted_integers(argument: str, values: Sequence[int]) -> list[int]:
    """Step lengths, each once.

    Raises:
        InputError: naming `argument`.
    """
    expected = "whole numbers of at least 2, with commas between them"
    if not values or not all(type(value) is int and value >= 2 for value in values):
        raise InputError(argument, expected, list(values))
    return sorted(set(values))


def sorted_gammas(values: Sequence[float]) -> list[float]:
    """Gammas, each once.

    Raises:
        InputError: naming `--gammas`.
    """
    expected = "numbers from 0 to 1, with commas between them"
    good = all(isinstance(value, int | float) and 0 <= value <= 1 for value in values)
    if not values or not good:
        raise InputError("--gammas", expected, list(values))
    return sorted({float(value) for value in values})


def chosen_schedules(values: Sequence[str]) -> list[GammaSchedule]:
    """Gamma schedules, each once.

    Raises:
        InputError: naming `--gamma-schedules`.
    """
    known = get_args(GammaSchedule)
    for value in values:
        if value not in known:
            raise InputError("--gamma-schedules", f"some of {', '.join(known)}", repr(value))
    if not values:
        raise InputError("--gamma-schedules", f"some of {', '.join(known)}", "none")
    return list(dict.fromkeys(values))  # type: ignore[arg-type]
