"""Every quantity of the schedule against the printed formulas, for every timestep, in float64.

Written anew, in the papers' notation and with indices t = 1..T, from nothing but the betas. The one
liberty: 1 - alpha_bar comes from its own recursion, which cancels nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from microdiffusion_fast.kernels.blended_step.reference import blended_step_reference
from microdiffusion_fast.schedule import NoiseSchedule, SamplingPlan, make_plan

RELATIVE = 1e-12
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ho:
    """Ho et al. 2020; arrays over t = 0..T, index 0 the clean volume (beta_0 = 0)."""

    beta: Array

    @classmethod
    def linear(cls, total: int, first: float, last: float) -> Ho:
        step = (last - first) / (total - 1)
        return cls(np.array([0.0] + [first + step * (t - 1) for t in range(1, total + 1)]))

    @property
    def t(self) -> NDArray[np.int64]:
        return np.arange(1, len(self.beta))

    @property
    def alpha(self) -> Array:
        return 1 - self.beta

    @property
    def alpha_bar(self) -> Array:
        return np.cumprod(self.alpha)

    @property
    def noise_variance(self) -> Array:
        """1 - alpha_bar: one step keeps alpha of the variance that was there and adds beta."""
        variance = [0.0]
        for beta in self.beta[1:]:
            variance.append((1 - beta) * variance[-1] + beta)
        return np.array(variance)

    @property
    def beta_tilde(self) -> Array:
        """Eq. 7, over t = 1..T."""
        v = self.noise_variance
        return v[self.t - 1] / v[self.t] * self.beta[self.t]

    @property
    def log_snr(self) -> Array:
        """lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), over t = 1..T."""
        log_alpha_bar = [math.fsum(np.log1p(-self.beta[: t + 1])) for t in self.t]
        return np.array(log_alpha_bar) / 2 - np.log(self.noise_variance[1:]) / 2


CASES = {
    "T = 1000": (1000, 1e-4, 0.02),
    "T = 7": (7, 0.03, 0.4),
}


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> tuple[NoiseSchedule, Ho]:
    numbers = CASES[request.param]
    return NoiseSchedule(*numbers), Ho.linear(*numbers)


def column(plan: SamplingPlan, name: str) -> Array:
    """A column of a plan of all timesteps, over t = 1..T."""
    assert plan.timesteps == tuple(range(len(plan), 0, -1))
    values: Array = plan.column(name).numpy()[::-1]
    return values


def check(found: object, expected: Array) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=RELATIVE, atol=0)


Case = tuple[NoiseSchedule, Ho]


class TestSchedule:
    def test_beta_alpha_and_alpha_bar(self, case: Case) -> None:
        schedule, ho = case
        check(schedule.betas, ho.beta[1:])
        check(1 - schedule.betas, ho.alpha[1:])
        check(schedule.alpha_bar, ho.alpha_bar)

    def test_signal_and_noise(self, case: Case) -> None:
        """q(x_t | x_0) of eq. 4."""
        schedule, ho = case
        levels = np.array([schedule.level(t)[:2] for t in range(schedule.steps + 1)])
        check(levels[:, 0], np.sqrt(ho.alpha_bar))
        check(levels[:, 1], np.sqrt(ho.noise_variance))


class TestPosterior:
    """q(x_t-1 | x_t, x_0)."""

    def test_mean(self, case: Case) -> None:
        schedule, ho = case
        t, v = ho.t, ho.noise_variance
        plan = make_plan(schedule.steps, schedule=schedule, sampler="ddpm")
        check(column(plan, "a"), np.sqrt(ho.alpha_bar[t - 1]) * ho.beta[t] / v[t])
        check(column(plan, "b"), np.sqrt(ho.alpha[t]) * v[t - 1] / v[t])

    @pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
    def test_variance(self, case: Case, mix: float) -> None:
        """beta_tilde, beta, and what lies between in the logarithm; none in the last step."""
        schedule, ho = case
        plan = make_plan(schedule.steps, schedule=schedule, sampler="ddpm", variance_mix=mix)
        log_variance = mix * np.log(ho.beta[2:]) + (1 - mix) * np.log(ho.beta_tilde[1:])
        check(column(plan, "d")[1:] ** 2, np.exp(log_variance))
        assert column(plan, "d")[0] == 0


class TestPredictions:
    def test_x0_from_eps(self, case: Case) -> None:
        """Eq. 15 of Ho et al.: x0 = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)."""
        schedule, ho = case
        plan = make_plan(schedule.steps, schedule=schedule, prediction="eps")
        check(column(plan, "p"), -np.sqrt(ho.noise_variance[1:] / ho.alpha_bar[1:]))
        check(column(plan, "q"), 1 / np.sqrt(ho.alpha_bar[1:]))

    def test_x0_from_v(self, case: Case) -> None:
        """Salimans and Ho 2022, section 4: x0 = alpha z - sigma v."""
        schedule, ho = case
        plan = make_plan(schedule.steps, schedule=schedule, prediction="v")
        check(column(plan, "p"), -np.sqrt(ho.noise_variance[1:]))
        check(column(plan, "q"), np.sqrt(ho.alpha_bar[1:]))

    def test_mean_in_eps(self, case: Case) -> None:
        """Algorithm 2, line 4: (x_t - beta / sqrt(1 - alpha_bar) eps) / sqrt(alpha)."""
        schedule, ho = case
        plan = make_plan(schedule.steps, schedule=schedule, sampler="ddpm", prediction="eps")
        a, b, p, q = (column(plan, name) for name in "abpq")
        root = np.sqrt(ho.alpha[1:])
        check(a * q + b, 1 / root)
        check(a * p, -ho.beta[1:] / np.sqrt(ho.noise_variance[1:]) / root)


class TestOtherSamplers:
    @pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
    def test_ddim(self, case: Case, eta: float) -> None:
        """Song et al. 2021, eqs. 12 and 16; eps = (x_t - sqrt(alpha_bar) x0) / sqrt(1 - ...)."""
        schedule, ho = case
        t, v, bar = ho.t, ho.noise_variance, ho.alpha_bar
        sigma = eta * np.sqrt(v[t - 1] / v[t]) * np.sqrt(ho.beta[t])
        of_eps = np.sqrt(v[t - 1] - sigma**2)
        plan = make_plan(schedule.steps, schedule=schedule, sampler="ddim", eta=eta)
        check(column(plan, "d"), sigma)
        check(column(plan, "b"), of_eps / np.sqrt(v[t]))
        check(column(plan, "a"), np.sqrt(bar[t - 1]) - of_eps * np.sqrt(bar[t]) / np.sqrt(v[t]))

    def test_dpm_solver(self, case: Case) -> None:
        """Lu et al. 2022, algorithm 2: from t with h, and r to the step before, to t - 1."""
        schedule, ho = case
        total = schedule.steps
        plan = make_plan(total, schedule=schedule, sampler="dpm++")
        a, b, c = (column(plan, name) for name in "abc")
        lam = ho.log_snr
        noise, signal = np.sqrt(ho.noise_variance[1:]), np.sqrt(ho.alpha_bar[1:])
        h = lam[:-1] - lam[1:]  # of the steps that start at t = 2..T
        gain = -signal[:-1] * np.expm1(-h)
        check(b[1:], noise[:-1] / noise[1:])
        # The first step has no step before it, all others one from t + 1.
        check([a[-1], c[-1]], np.array([gain[-1], 0.0]))
        half = 1 / (2 * (h[1:] / h[:-1]))
        check(a[1:-1], gain[:-1] * (1 + half))
        check(c[1:-1], -gain[:-1] * half)
        # Into the clean volume lambda is infinite: x0 itself.
        assert [a[0], b[0], c[0]] == [1, 0, 0]


@pytest.mark.parametrize("t", [1000, 999, 500, 2, 1])
def test_one_step_is_the_printed_one(t: int) -> None:
    """MicroDiffusion's step: blend, guided eps, the mean and the mixed variance of Ho et al."""
    w, v, gamma = 1.8, 0.3, 0.9
    ho = Ho.linear(1000, 1e-4, 0.02)
    generator = np.random.default_rng(t)
    state, prior, eps_cond, eps_uncond, z = generator.standard_normal((5, 3, 4, 5))

    blended = (1 - gamma) * state + gamma * prior
    eps = (1 + w) * eps_cond - w * eps_uncond
    alpha, beta, alpha_bar = ho.alpha[t], ho.beta[t], ho.alpha_bar[t]
    mean = (blended - beta / math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha)
    expected = mean
    if t > 1:
        tilde = (1 - ho.alpha_bar[t - 1]) / (1 - alpha_bar) * beta
        sigma = math.sqrt(math.exp(v * math.log(beta) + (1 - v) * math.log(tilde)))
        expected = (1 - gamma) * (mean + sigma * z) + gamma * prior  # as the next call sees it

    plan = make_plan(
        1000, sampler="ddpm", prediction="eps", guidance=w, variance_mix=v, gamma=gamma
    )
    x = torch.from_numpy(blended.copy())
    blended_step_reference(
        x,
        torch.from_numpy(prior),
        torch.from_numpy(eps_cond),
        plan.table,
        torch.tensor(1000 - t),
        uncond=torch.from_numpy(eps_uncond),
        noise=torch.from_numpy(z),
    )
    np.testing.assert_allclose(x.numpy(), expected, rtol=RELATIVE, atol=RELATIVE)
