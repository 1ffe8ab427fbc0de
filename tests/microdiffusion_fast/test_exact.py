"""Exact truncation: the last K of 1000 steps against all of them, and what must be refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.exact import exact_plan, probe, remembered, sample_exact
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.sampler import Denoise, sample
from microdiffusion_fast.schedule import NoiseLevel, Prediction, SamplingPlan, make_plan

T = 1000
TOL = 1e-6
SHAPE = (6, 5, 7)
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddpm": {"sampler": "ddpm"},
    "ddim": {"sampler": "ddim"},
    "ddim, eta 0.5": {"sampler": "ddim", "eta": 0.5},
    "ddim, eta 1": {"sampler": "ddim", "eta": 1.0},
    "dpm++": {"sampler": "dpm++"},
}


def volume(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Intensities of a network, [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(SHAPE, generator=generator, dtype=torch.float64).mul(2).sub(1).to(dtype)


class Gaussian:
    """E[x0 | x_t] and the like where voxels are N(mean, sd^2)."""

    def __init__(self, prediction: Prediction, mean: float = 0.3, sd: float = 0.4) -> None:
        self.prediction, self.mean, self.variance = prediction, mean, sd**2

    def __call__(self, x: Tensor, step: int, level: NoiseLevel) -> Tensor:
        signal, noise = level.signal, level.noise
        gain = self.variance * signal / (self.variance * signal**2 + noise**2)
        x0 = self.mean + gain * (x - signal * self.mean)
        eps = (x - signal * x0) / noise
        return {"x0": x0, "eps": eps, "v": signal * eps - noise * x0}[self.prediction]


class Network:
    """Two random convolutions that see the state, its level, and the row of the whole chain."""

    def __init__(self, seed: int = 0, *, guided: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn((6, 1, 3, 3, 3), generator=generator) / 27**0.5
        self.last = torch.randn((1, 6, 3, 3, 3), generator=generator) / (6 * 27) ** 0.5
        self.guided = guided

    def __call__(self, x: Tensor, step: int, level: NoiseLevel) -> Tensor | tuple[Tensor, Tensor]:
        hidden = torch.conv3d(x[None], self.first.to(x), padding=1)
        cond = torch.conv3d((hidden + step / T).tanh(), self.last.to(x), padding=1)[0]
        if not self.guided:
            return cond
        uncond = torch.conv3d((hidden - level.noise).tanh(), self.last.to(x), padding=1)[0]
        return cond, uncond


def share(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the intensity range."""
    return float((a.double() - b.double()).abs().max()) / 2


class TestPlan:
    @pytest.mark.parametrize(
        ("gamma", "tol", "steps"),
        [(0.9, 1 / 255, 3), (0.9, 1e-6, 8), (0.5, 1e-6, 25), (0.1, 1e-6, 171), (1.0, 1e-6, 1)],
    )
    def test_how_many_steps(self, gamma: float, tol: float, steps: int) -> None:
        whole = make_plan(T, sampler="ddpm", gamma=gamma)
        assert len(exact_plan(whole, tol)) == steps
        assert remembered(exact_plan(whole, tol)) <= tol
        # One for the history of a multistep sampler.
        assert len(exact_plan(make_plan(T, sampler="dpm++", gamma=gamma), tol)) == steps + 1

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_is_the_end_of_the_whole(self, sampler: str) -> None:
        whole = make_plan(T, gamma=0.5, guidance=1.8, consistency="hard", **SAMPLERS[sampler])
        short = exact_plan(whole)
        k = len(short)
        assert torch.equal(short.table, whole.table[-k:])
        for name in ("timesteps", "gammas", "levels"):
            assert getattr(short, name) == getattr(whole, name)[-k:]
        assert short.skipped == T - k
        assert short.start == (short.levels[0].signal, short.levels[0].noise)

    def test_of_any_chain(self) -> None:
        """What counts are the gammas of the rows, wherever in the schedule they lie."""
        plan = make_plan(50, gamma=[0.0] * 40 + [0.9] * 9 + [0.0])
        assert len(exact_plan(plan)) == 9
        assert exact_plan(exact_plan(plan), 1 / 255).timesteps == plan.timesteps[-5:]

    def test_all_steps_are_the_plan_itself(self) -> None:
        plan = make_plan(8, gamma=0.9)
        assert plan.last(8) is plan
        assert exact_plan(plan, 2e-6) is plan

    @pytest.mark.parametrize(
        ("options", "tol"),
        [
            pytest.param({}, TOL, id="no gamma"),
            pytest.param({"gamma": 0.005}, TOL, id="small gamma"),
            pytest.param({"gamma": 0.1}, 1e-60, id="small tolerance"),
            pytest.param(
                {"gamma": 0.9, "gamma_schedule": "late-release", "first_timestep": 100},
                TOL,
                id="nothing but the tail",
            ),
        ],
    )
    def test_a_chain_that_remembers(self, options: dict[str, Any], tol: float) -> None:
        plan = make_plan(options.get("first_timestep", T), **options)
        with pytest.raises(InputError, match="^gamma: expected a chain that forgets its start"):
            exact_plan(plan, tol)

    @pytest.mark.parametrize("tol", [0.0, 1.0, -1e-6, math.nan, "small"])
    def test_tolerances(self, tol: Any) -> None:
        with pytest.raises(InputError, match="^tol: expected"):
            exact_plan(make_plan(T, gamma=0.9), tol)

    @pytest.mark.parametrize("count", [0, 9, 2.0])
    def test_last_refuses(self, count: Any) -> None:
        with pytest.raises(InputError, match="^count: expected"):
            make_plan(8).last(count)


class TestEqualsAllSteps:
    @pytest.mark.parametrize("gamma", [0.9, 0.1])
    @pytest.mark.parametrize(
        ("sampler", "prediction"),
        list(zip(SAMPLERS, ["eps", "x0", "x0", "v", "eps"], strict=True)),
    )
    def test_known_posterior(self, sampler: str, gamma: float, prediction: Prediction) -> None:
        """Gaussian data: here algebra and its reserve suffice, without a probe."""
        prior = volume(1, torch.float64)
        whole = make_plan(T, gamma=gamma, prediction=prediction, **SAMPLERS[sampler])
        short = exact_plan(whole, TOL)
        a, b = (sample(Gaussian(prediction), prior, plan, seed=3) for plan in (short, whole))
        assert 0 < share(a, b) <= TOL
        # No luck: a quarter of the steps is not enough.
        fewer = sample(Gaussian(prediction), prior, whole.last(max(len(short) // 4, 1)), seed=3)
        assert share(fewer, b) > TOL

    @pytest.mark.parametrize(
        ("sampler", "gamma"),
        [("ddpm", 0.9), ("ddpm", 0.5), ("ddim, eta 0.5", 0.1), ("dpm++", 0.9), ("dpm++", 0.5)],
    )
    def test_network_with_guidance_and_consistency(self, sampler: str, gamma: float) -> None:
        prior, operator = volume(1), AxialProjection(6, 3)
        case: dict[str, Any] = {"operator": operator, "projections": operator(volume(2)), "seed": 5}
        options = {"guidance": 1.8, "consistency": "hard", "prediction": "eps"}
        whole = make_plan(T, gamma=gamma, **options, **SAMPLERS[sampler])
        found = sample_exact(Network(), prior, whole, TOL, **case)
        assert found.difference <= TOL
        assert share(found.volume, sample(Network(), prior, whole, **case)) <= TOL
        assert len(found.plan) < T / 3
        assert torch.equal(found.volume, sample(Network(), prior, found.plan, **case))

    @pytest.mark.parametrize("kind", ["linear", "cosine", "late-release"])
    def test_gamma_schedules(self, kind: Any) -> None:
        prior = volume(1, torch.float64)
        whole = make_plan(T, sampler="ddpm", gamma=0.9, gamma_schedule=kind)
        short = exact_plan(whole)
        assert 100 < len(short) < 300
        a, b = (sample(Gaussian("x0"), prior, plan) for plan in (short, whole))
        assert share(a, b) <= TOL

    @pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
    def test_the_noise_is_that_of_all_steps(self, sampler: str) -> None:
        """From the very state of the whole chain, the last steps end where it ends."""
        prior, gamma, cut = volume(1, torch.float64), 0.2, 12
        whole = make_plan(T, gamma=gamma, **SAMPLERS[sampler])
        at: list[Tensor] = []

        def keep(step: int, x: Tensor) -> None:
            if step == T - cut - 1:
                at.append(x.clone())

        end = sample(Gaussian("x0"), prior, whole, seed=9, callback=keep)
        start = (at[0] - gamma * prior) / (1 - gamma)  # before its blend
        short = sample(Gaussian("x0"), prior, whole.last(cut), seed=9, start=start)
        torch.testing.assert_close(short, end, rtol=0, atol=1e-14)
        other = sample(Gaussian("x0"), prior, whole.last(cut), seed=8, start=start)
        assert torch.equal(other, end) == (sampler == "ddim")


class TestProbe:
    @pytest.mark.parametrize("gamma", [0.9, 0.3])
    def test_measures_what_is_left(self, gamma: float) -> None:
        """A linear network's chain multiplies differences by a known number."""
        prior, slope = volume(1, torch.float64), 0.7
        plan = make_plan(T, gamma=gamma).last(6)
        factor = math.prod(
            (1 - g) * (a * slope + b)
            for g, a, b in zip(
                plan.gammas, plan.column("a").tolist(), plan.column("b").tolist(), strict=True
            )
        )
        starts: list[Tensor] = []

        def denoise(x: Tensor, step: int, level: NoiseLevel) -> Tensor:
            if step == T - 6:
                starts.append((x - gamma * prior) / (1 - gamma))
            return slope * x + 0.1

        found = probe(denoise, prior, plan, seed=2)
        apart = share(*starts)
        assert apart > 0.5
        assert found.difference == pytest.approx(apart * factor, rel=1e-9)
        assert found.bound == pytest.approx(
            (1 - gamma) ** 6 * (plan.start[0] + 6.77 * plan.start[1]), rel=1e-12
        )

    def test_takes_more_steps_where_the_network_amplifies(self) -> None:
        def steep(x: Tensor, step: int, level: NoiseLevel) -> Tensor:
            return 2 * (4 * x).sin()

        prior = volume(1, torch.float64)
        whole = make_plan(T, sampler="ddpm", gamma=0.9)
        found = sample_exact(steep, prior, whole.last(200), TOL)
        first = exact_plan(whole)
        assert probe(steep, prior, first).difference > TOL >= found.difference
        assert len(first) < len(found.plan) < 40
        assert share(found.volume, sample(steep, prior, whole.last(200))) <= TOL

    @pytest.mark.parametrize(
        "denoise",
        [
            pytest.param(lambda x, step, level: 20 * x, id="amplifies"),
            pytest.param(lambda x, step, level: x * math.nan, id="NaN"),
        ],
    )
    def test_refuses_what_does_not_forget(self, denoise: Denoise) -> None:
        whole = make_plan(T, gamma=0.1, sampler="ddpm")
        with pytest.raises(InputError, match=r"^tol: expected at least .+, by which two starts"):
            sample_exact(denoise, volume(1), whole.last(200), 1e-3)

    def test_sees_both_chains(self) -> None:
        seen: list[int] = []
        plan = make_plan(T, gamma=0.9).last(3)
        probe(
            Network(guided=False),
            volume(1),
            plan,
            callback=lambda step, x: seen.append(step),
        )
        assert seen == [997, 998, 999] * 2


def test_the_network_is_told_the_row_of_the_whole_chain() -> None:
    plan: SamplingPlan = make_plan(20, gamma=0.5)
    told: list[tuple[int, NoiseLevel]] = []

    def denoise(x: Tensor, step: int, level: NoiseLevel) -> Tensor:
        told.append((step, level))
        return 0.5 * x

    sample(denoise, volume(1), plan.last(8).last(3))
    assert told == [(step, plan.levels[step]) for step in (17, 18, 19)]
