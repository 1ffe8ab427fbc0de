"""Gamma as a function of the timestep."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, get_args

import pytest

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.schedule import NoiseSchedule, make_plan
from microdiffusion_fast.schedule_gamma import GammaSchedule, gamma_schedule

KINDS: tuple[GammaSchedule, ...] = get_args(GammaSchedule)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("total", [1, 2, 7, 1000])
def test_falls_from_gamma(kind: GammaSchedule, total: int) -> None:
    values = gamma_schedule(kind, 0.8, total)
    assert len(values) == total
    assert values[0] == pytest.approx(0.8, rel=1e-15)
    assert all(a >= b >= 0 for a, b in pairwise(values))
    if total >= 10 and kind != "constant":
        assert values[-1] == 0


def test_shapes() -> None:
    linear, cosine, late = (
        gamma_schedule(kind, 0.6, 1001) for kind in ("linear", "cosine", "late-release")
    )
    assert set(gamma_schedule("constant", 0.6, 1001)) == {0.6}
    for u in (0.0, 0.25, 0.5, 0.9, 1.0):
        at = round((1 - u) * 1000)
        assert linear[at] == pytest.approx(0.6 * u, abs=1e-15)
        assert cosine[at] == pytest.approx(0.6 * math.sin(math.pi * u / 2) ** 2, abs=1e-15)
    assert late == (0.6,) * 901 + (0.0,) * 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"spacing": "snr"}, {"first_timestep": 600}])
def test_fewer_steps_sample_the_same_function(kind: GammaSchedule, options: Any) -> None:
    values = gamma_schedule(kind, 0.9)
    plan = make_plan(9, gamma=0.9, gamma_schedule=kind, **options)
    assert plan.gammas == tuple(values[1000 - t] for t in plan.timesteps)
    assert [level.gamma for level in plan.levels] == list(plan.gammas)


def test_of_a_shorter_noise_schedule() -> None:
    plan = make_plan(50, schedule=NoiseSchedule(50), gamma=0.5, gamma_schedule="linear")
    assert plan.gammas == gamma_schedule("linear", 0.5, 50)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("gamma_schedule", {"gamma": 0.5, "gamma_schedule": "step"}),
        ("gamma", {"gamma": [0.5] * 4, "gamma_schedule": "linear"}),
        ("gamma", {"gamma_schedule": "cosine"}),
        ("gamma", {"gamma": 1.5, "gamma_schedule": "late-release"}),
    ],
)
def test_refusals(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: expected .+, got "):
        make_plan(4, **options)


@pytest.mark.parametrize("total", [0, 2.0, True])
def test_total(total: Any) -> None:
    with pytest.raises(InputError, match="^total: expected"):
        gamma_schedule("linear", 0.5, total)
