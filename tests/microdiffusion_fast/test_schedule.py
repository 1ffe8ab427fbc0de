"""Plans: closed forms of every sampler, timesteps, gamma and consistency weights."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.kernels.blended_step import COLUMNS
from microdiffusion_fast.schedule import (
    NoiseLevel,
    NoiseSchedule,
    Prediction,
    Sampler,
    SamplingPlan,
    make_plan,
)
from microdiffusion_fast.schedule_gamma import steps_that_matter

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
T = 1000
TOLERANCE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}

# The published formulas once more, with 50 digits: no cancellation, no shared code.
getcontext().prec = 50


def published_alpha_bar() -> list[Decimal]:
    first, last = Decimal("1e-4"), Decimal("0.02")
    result = [Decimal(1)]
    for t in range(1, T + 1):
        result.append(result[-1] * (1 - (first + (last - first) * (t - 1) / (T - 1))))
    return result


AB = published_alpha_bar()


def ho_posterior(t: int, s: int, v: str) -> tuple[Decimal, Decimal, Decimal]:
    """q(x_s | x_t, x0) of Ho et al. 2020, eqs. 6 and 7: weights of x0 and x_t, and sigma."""
    alpha = AB[t] / AB[s]
    beta = 1 - alpha
    of_x0 = AB[s].sqrt() * beta / (1 - AB[t])
    of_xt = alpha.sqrt() * (1 - AB[s]) / (1 - AB[t])
    tilde = (1 - AB[s]) / (1 - AB[t]) * beta
    mix = Decimal(v)
    sigma = (mix * beta.ln() + (1 - mix) * tilde.ln()).exp().sqrt() if s else Decimal(0)
    return of_x0, of_xt, sigma


def song(t: int, s: int, eta: str) -> tuple[Decimal, Decimal, Decimal]:
    """Song et al. 2021, eq. 12, with eps = (x_t - sqrt(ab) x0) / sqrt(1 - ab), and eq. 16."""
    sigma = Decimal(eta) * ((1 - AB[s]) / (1 - AB[t])).sqrt() * (1 - AB[t] / AB[s]).sqrt()
    direction = (1 - AB[s] - sigma**2).sqrt()
    of_xt = direction / (1 - AB[t]).sqrt()
    return AB[s].sqrt() - of_xt * AB[t].sqrt(), of_xt, sigma


def lu_2m(before: int | None, t: int, s: int) -> tuple[Decimal, Decimal, Decimal]:
    """Lu et al. 2022, algorithm 2: weights of x0, x_t and the x0 before."""

    def log_snr(k: int) -> Decimal:
        return (AB[k].sqrt() / (1 - AB[k]).sqrt()).ln()

    if s == 0:  # h is infinite: exp(-h) = 0, sigma = 0, first order
        return Decimal(1), Decimal(0), Decimal(0)
    h = log_snr(s) - log_snr(t)
    gain = -AB[s].sqrt() * ((-h).exp() - 1)
    of_xt = (1 - AB[s]).sqrt() / (1 - AB[t]).sqrt()
    if before is None:
        return gain, of_xt, Decimal(0)
    r = (log_snr(t) - log_snr(before)) / h
    return gain * (1 + 1 / (2 * r)), of_xt, -gain / (2 * r)


def columns(plan: SamplingPlan, names: str) -> np.ndarray:
    return np.stack([plan.column(name).numpy() for name in names], axis=1)


def transitions(plan: SamplingPlan) -> list[tuple[int, int]]:
    return list(zip(plan.timesteps, [*plan.timesteps[1:], 0], strict=True))


class TestNoiseSchedule:
    def test_alpha_bar(self) -> None:
        expected = np.array([float(a) for a in AB])
        np.testing.assert_allclose(NoiseSchedule().alpha_bar.numpy(), expected, **TOLERANCE)
        assert NoiseSchedule().alpha_bar[0] == 1

    def test_betas(self) -> None:
        schedule = NoiseSchedule(5, 0.1, 0.5)
        np.testing.assert_allclose(schedule.betas.numpy(), [0.1, 0.2, 0.3, 0.4, 0.5], **TOLERANCE)
        product = np.cumprod(1 - schedule.betas.numpy())
        np.testing.assert_allclose(schedule.alpha_bar[1:].numpy(), product, **TOLERANCE)

    def test_level(self) -> None:
        for t in (0, 1, 2, 500, T):
            level = NoiseSchedule().level(t, 0.25)
            exact = float(AB[t].sqrt()), float((1 - AB[t]).sqrt()), 0.25
            np.testing.assert_allclose(level, exact, **TOLERANCE)
        assert NoiseSchedule().level(0) == NoiseLevel(1.0, 0.0, 0.0)

    def test_one_step(self) -> None:
        assert NoiseSchedule(1, 0.5, 0.5).alpha_bar.tolist() == pytest.approx([1.0, 0.5])

    @pytest.mark.parametrize(
        ("arguments", "argument"),
        [
            ({"steps": 0}, "steps"),
            ({"steps": 10.0}, "steps"),
            ({"steps": True}, "steps"),
            ({"beta_start": 0.0}, "beta_start"),
            ({"beta_start": math.nan}, "beta_start"),
            ({"beta_start": 0.03}, "beta_end"),
            ({"beta_end": 1.0}, "beta_end"),
            ({"beta_end": "high"}, "beta_end"),
            ({"beta_end": 0.5}, "beta_end"),
        ],
    )
    def test_refusals(self, arguments: dict[str, Any], argument: str) -> None:
        with pytest.raises(InputError, match=rf"^{argument}: expected .+, got "):
            NoiseSchedule(**arguments)


class TestClosedForms:
    @pytest.mark.parametrize("steps", [T, 50, 7, 2, 1])
    @pytest.mark.parametrize("mix", ["0", "0.3", "1"])
    def test_ddpm(self, steps: int, mix: str) -> None:
        plan = make_plan(steps, sampler="ddpm", variance_mix=float(mix))
        expected = [[float(n) for n in ho_posterior(t, s, mix)] for t, s in transitions(plan)]
        np.testing.assert_allclose(columns(plan, "abd"), expected, **TOLERANCE)
        assert not plan.uses("c")

    @pytest.mark.parametrize("steps", [T, 50, 7, 2, 1])
    @pytest.mark.parametrize("eta", ["0", "0.5", "1"])
    def test_ddim(self, steps: int, eta: str) -> None:
        plan = make_plan(steps, sampler="ddim", eta=float(eta))
        expected = [[float(n) for n in song(t, s, eta)] for t, s in transitions(plan)]
        np.testing.assert_allclose(columns(plan, "abd"), expected, **TOLERANCE)
        assert not plan.uses("c")

    @pytest.mark.parametrize("steps", [T, 50, 7, 3, 2, 1])
    def test_dpm_solver(self, steps: int) -> None:
        plan = make_plan(steps, sampler="dpm++")
        before = [None, *plan.timesteps]
        expected = [
            [float(n) for n in lu_2m(before[k], t, s)] for k, (t, s) in enumerate(transitions(plan))
        ]
        np.testing.assert_allclose(columns(plan, "abc"), expected, **TOLERANCE)
        assert not plan.uses("d")
        assert plan.uses("c") == (steps > 2)

    def test_first_order_solver_is_ddim(self) -> None:
        """Lu et al. 2022, section 4.1: without history DPM-Solver++ is DDIM."""
        for steps in (1, 2):
            a, b = make_plan(steps, sampler="dpm++"), make_plan(steps, sampler="ddim")
            np.testing.assert_allclose(columns(a, "ab"), columns(b, "ab"), **TOLERANCE)

    def test_ddim_with_eta_one_is_ddpm(self) -> None:
        a, b = make_plan(50, eta=1.0), make_plan(50, sampler="ddpm", variance_mix=0.0)
        np.testing.assert_allclose(columns(a, "abd"), columns(b, "abd"), **TOLERANCE)

    def test_authors_variance_is_the_default(self) -> None:
        a, b = make_plan(9, sampler="ddpm"), make_plan(9, sampler="ddpm", variance_mix=0.3)
        assert torch.equal(a.table, b.table)

    @pytest.mark.parametrize("prediction", PREDICTIONS)
    def test_predictions_give_x0(self, prediction: Prediction) -> None:
        """What each network ought to return for a known x0 and eps gives that x0 back."""
        plan = make_plan(T, prediction=prediction)
        x0, eps = 0.37, -1.21
        for level, (p, q) in zip(plan.levels, columns(plan, "pq"), strict=True):
            returned = {
                "x0": x0,
                "eps": eps,
                "v": level.signal * eps - level.noise * x0,
            }[prediction]
            x = level.signal * x0 + level.noise * eps
            assert p * returned + q * x == pytest.approx(x0, abs=1e-12)


class TestChain:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    @given(steps=st.integers(1, 50), gamma=st.floats(0, 1), data=st.data())
    def test_every_number_of_steps(
        self, sampler: Sampler, steps: int, gamma: float, data: st.DataObject
    ) -> None:
        total = data.draw(st.integers(steps, T))
        prediction = data.draw(st.sampled_from(PREDICTIONS))
        schedule = NoiseSchedule(total)
        plan = make_plan(
            steps, schedule=schedule, sampler=sampler, gamma=gamma, prediction=prediction
        )
        assert len(plan) == steps
        assert plan.timesteps[0] == total
        assert all(a > b for a, b in transitions(plan))
        assert steps == 1 or plan.timesteps[-1] == 1
        assert plan.table.shape == (steps, len(COLUMNS))
        assert plan.table.dtype == torch.float64
        finite = columns(plan, "pqabcd")
        assert np.isfinite(finite).all()
        assert np.isfinite(finite.astype(np.float32)).all()
        # Where the chain ends x is x0: no state, history, noise or blend.
        assert columns(plan, "abcd")[-1].tolist() == [1, 0, 0, 0]
        assert plan.column("gamma")[-1] == 0
        assert plan.column("key")[-1] == 0

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_a_state_of_known_x0_keeps_its_level(self, sampler: Sampler) -> None:
        """With the true x0 each update takes signal and noise to those of its end."""
        mix = 0.0 if sampler == "ddpm" else None
        plan = make_plan(37, sampler=sampler, variance_mix=mix)
        ends = [*plan.levels[1:], NoiseLevel(1.0, 0.0, 0.0)]
        for level, end, (a, b, c, d) in zip(plan.levels, ends, columns(plan, "abcd"), strict=True):
            assert a + c + b * level.signal == pytest.approx(end.signal, abs=1e-12)
            assert math.hypot(b * level.noise, d) == pytest.approx(end.noise, abs=1e-12)

    def test_timesteps(self) -> None:
        assert make_plan(1).timesteps == (1000,)
        assert make_plan(2).timesteps == (1000, 1)
        assert make_plan(4).timesteps == (1000, 667, 334, 1)
        assert make_plan(T).timesteps == tuple(range(T, 0, -1))
        assert make_plan(3, first_timestep=9, last_timestep=5).timesteps == (9, 7, 5)

    def test_timesteps_even_in_snr(self) -> None:
        """Every stop is the nearest to its place, but where whole timesteps are too coarse."""
        timesteps = make_plan(10, spacing="snr").timesteps
        assert (timesteps[0], timesteps[-1]) == (1000, 1)
        exact = [0.5 * float((a / (1 - a)).ln()) for a in AB[1:]]
        for target, t in zip(np.linspace(exact[-1], exact[0], 10), timesteps, strict=True):
            assert np.abs(np.array(exact) - target).argmin() + 1 == t
        assert make_plan(T, spacing="snr").timesteps == tuple(range(T, 0, -1))
        assert make_plan(1, spacing="snr").timesteps == (T,)

    @given(last=st.integers(1, 40), span=st.integers(0, 60), data=st.data())
    def test_snr_timesteps_are_distinct(self, last: int, span: int, data: st.DataObject) -> None:
        steps = data.draw(st.integers(1, span + 1))
        plan = make_plan(
            steps, first_timestep=last + span, last_timestep=last, spacing="snr", sampler="dpm++"
        )
        assert plan.timesteps[0] == last + span
        assert steps == 1 or plan.timesteps[-1] == last
        assert all(a > b for a, b in transitions(plan))
        assert np.isfinite(columns(plan, "abcd")).all()

    @given(last=st.integers(1, 40), span=st.integers(0, 60), data=st.data())
    def test_timesteps_are_spread_evenly(self, last: int, span: int, data: st.DataObject) -> None:
        steps = data.draw(st.integers(1, span + 1))
        first = last + span
        plan = make_plan(steps, first_timestep=first, last_timestep=last)
        exact = np.linspace(first, last, steps) if steps > 1 else np.array([first])
        assert np.abs(np.array(plan.timesteps) - exact).max() <= 0.5 + 1e-9
        assert len(set(plan.timesteps)) == steps

    def test_the_last_steps_of_a_chain_are_a_chain(self) -> None:
        """K steps from timestep K are the last K rows of all T: exact truncation."""
        options: dict[str, Any] = {"sampler": "ddpm", "gamma": 0.9, "prediction": "eps"}
        assert torch.equal(
            make_plan(8, first_timestep=8, **options).table, make_plan(T, **options).table[-8:]
        )

    def test_noise_of_a_step_belongs_to_the_timestep_it_ends_in(self) -> None:
        plan = make_plan(5, sampler="ddpm")
        assert plan.column("key").tolist() == [*plan.timesteps[1:], 0]

    def test_start(self) -> None:
        assert make_plan(3).start == (0.0, 1.0)
        signal, noise, _ = NoiseSchedule().level(40)
        assert make_plan(3, first_timestep=40).start == (signal, noise)


class TestGamma:
    def test_scalar_and_sequence(self) -> None:
        gammas = [0.9, 0.5, 0.1]
        plan = make_plan(3, gamma=gammas)
        assert plan.gammas == tuple(gammas)
        assert [level.gamma for level in plan.levels] == gammas
        assert plan.column("gamma").tolist() == [0.5, 0.1, 0.0]
        assert make_plan(3, gamma=0.4).gammas == (0.4,) * 3
        assert make_plan(3).gammas == (0.0,) * 3

    @pytest.mark.parametrize(
        ("gamma", "tol", "steps"),
        [
            (0.9, 6e-8, 8),
            (0.9, 1e-6, 6),
            (0.9, 1 / 255, 3),
            (0.5, 6e-8, 24),
            (0.1, 6e-8, 158),
            (1.0, 1e-9, 1),
        ],
    )
    def test_steps_that_matter(self, gamma: float, tol: float, steps: int) -> None:
        assert steps_that_matter(gamma, tol) == steps
        assert steps_that_matter([gamma] * 1000, tol) == steps

    @given(
        gammas=st.lists(st.floats(0, 1), min_size=1, max_size=30),
        tol=st.floats(1e-12, 0.999),
    )
    def test_steps_that_matter_is_the_least(self, gammas: list[float], tol: float) -> None:
        count = steps_that_matter(gammas, tol)
        left = [math.prod(1 - g for g in gammas[len(gammas) - k :]) for k in range(1, count + 1)]
        assert count == len(gammas) or left[-1] <= tol * (1 + 1e-8)
        assert all(value > tol for value in left[:-1])

    def test_chain_levels_without_gamma_are_nominal(self) -> None:
        plan = make_plan(T, sampler="ddpm", variance_mix=0.0)
        nominal = np.array(plan.levels)
        # Chains start from pure noise, which the schedule ends in to 0.7 % only.
        np.testing.assert_allclose(np.array(plan.chain_levels), nominal, atol=0.007)

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_chain_levels_are_what_a_chain_holds(self, sampler: Sampler) -> None:
        """The shares of x0 and prior, carried through the table by two numbers instead of one."""
        plan = make_plan(12, sampler=sampler, gamma=0.2, first_timestep=600)
        x0, prior = np.array([1.0, 0.0]), np.array([0.0, 1.0])
        state = plan.start[0] * prior
        rows = columns(plan, "abc")
        for gamma, level, (a, b, c) in zip(plan.gammas, plan.chain_levels, rows, strict=True):
            state = (1 - gamma) * state + gamma * prior
            expected = (1 - level.gamma) * level.signal * x0 + level.gamma * prior
            np.testing.assert_allclose(state, expected, **TOLERANCE)
            state = a * x0 + b * state + c * x0
        np.testing.assert_allclose(state, x0, **TOLERANCE)

    def test_chain_level_at_gamma_one(self) -> None:
        assert all(level.gamma == 1 for level in make_plan(4, gamma=1.0).chain_levels)


class TestConsistency:
    def test_off_and_hard(self) -> None:
        assert make_plan(3).column("trust").tolist() == [0, 0, 0]
        assert make_plan(3, consistency="hard").column("trust").tolist() == [1, 1, 1]
        assert make_plan(3, consistency=[0.2, 0.5, 1]).column("trust").tolist() == [0.2, 0.5, 1]

    def test_soft_is_the_wiener_weight(self) -> None:
        """Posterior mean of x0 ~ N(m, u) given y = x0 + N(0, r), from the normal equations."""
        r = 0.03
        plan = make_plan(20, consistency="soft", noise_to_signal=r)
        for t, trust in zip(plan.timesteps, plan.column("trust").tolist(), strict=True):
            u = 1 - float(AB[t])
            m, y = 0.2, 0.7
            posterior = (m / u + y / r) / (1 / u + 1 / r)
            assert m + trust * (y - m) == pytest.approx(posterior, abs=1e-12)
        trusts = plan.column("trust")
        assert (trusts.diff() < 0).all()

    def test_soft_without_noise_is_hard(self) -> None:
        plan = make_plan(9, consistency="soft", noise_to_signal=0.0)
        assert plan.column("trust").tolist() == [1.0] * 9


def test_limits_and_guidance_are_in_the_table() -> None:
    plan = make_plan(2, clamp=(-1, 2), guidance=1.8)
    for name, value in (("low", -1), ("high", 2), ("w", 1.8)):
        assert plan.column(name).tolist() == [value, value]
    assert make_plan(1).column("low").item() == -math.inf
    assert plan.uses("w")
    assert not make_plan(2).uses("w")


@pytest.mark.parametrize(
    ("argument", "steps", "options"),
    [
        ("steps", 0, {}),
        ("steps", 1001, {}),
        ("steps", 2.0, {}),
        ("steps", 5, {"first_timestep": 4}),
        ("steps", 5, {"last_timestep": 997}),
        ("first_timestep", 5, {"first_timestep": 1001}),
        ("first_timestep", 5, {"first_timestep": 0}),
        ("last_timestep", 5, {"last_timestep": 0}),
        ("last_timestep", 5, {"first_timestep": 10, "last_timestep": 11}),
        ("sampler", 5, {"sampler": "euler"}),
        ("prediction", 5, {"prediction": "score"}),
        ("spacing", 5, {"spacing": "log"}),
        ("gamma", 5, {"gamma": 1.1}),
        ("gamma", 5, {"gamma": -0.1}),
        ("gamma", 5, {"gamma": math.nan}),
        ("gamma", 5, {"gamma": [0.1] * 4}),
        ("gamma", 5, {"gamma": "0.5x"}),
        ("variance_mix", 5, {"sampler": "ddpm", "variance_mix": 1.5}),
        ("variance_mix", 5, {"sampler": "ddim", "variance_mix": 0.3}),
        ("eta", 5, {"eta": -0.1}),
        ("eta", 5, {"sampler": "dpm++", "eta": 0.5}),
        ("guidance", 5, {"guidance": math.inf}),
        ("guidance", 5, {"guidance": -2}),
        ("consistency", 5, {"consistency": "firm"}),
        ("consistency", 5, {"consistency": [1.0]}),
        ("consistency", 5, {"consistency": [0.5, 0.5, 0.5, 0.5, 2]}),
        ("noise_to_signal", 5, {"consistency": "soft"}),
        ("noise_to_signal", 5, {"consistency": "soft", "noise_to_signal": -1}),
        ("noise_to_signal", 5, {"consistency": "hard", "noise_to_signal": 0.1}),
        ("clamp", 5, {"clamp": (1, 0)}),
        ("clamp", 5, {"clamp": (0, math.nan)}),
        ("clamp", 5, {"clamp": 1.0}),
    ],
)
def test_refusals(argument: str, steps: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: expected .+, got "):
        make_plan(steps, **options)


@pytest.mark.parametrize(
    ("gammas", "tol", "argument"),
    [(0.0, 0.1, "gammas"), (1.5, 0.1, "gammas"), ([2.0], 0.1, "gammas"), (0.5, 0.0, "tol")],
)
def test_steps_that_matter_refuses(gammas: Any, tol: float, argument: str) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: expected .+, got "):
        steps_that_matter(gammas, tol)
