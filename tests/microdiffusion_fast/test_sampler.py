"""The sampling loop: known posteriors, consistency, keyed noise, contraction, blocks."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.kernels.counter_noise import counter_noise
from microdiffusion_fast.sampler import Denoise, sample
from microdiffusion_fast.schedule import (
    NoiseLevel,
    NoiseSchedule,
    Prediction,
    Sampler,
    Spacing,
    make_plan,
)

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
SHAPE = (13, 6, 11)


def volume(seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def constant(value: Tensor) -> Denoise:
    """A network that returns the same volume whatever it sees."""
    return lambda x, step, level: value


def squash(prior: Tensor) -> Denoise:
    """A pointwise network with slope at most 1 that depends on everything it is told.

    Without transcendental functions: torch's differ in the last bit with the place in memory.
    """

    def denoise(x: Tensor, step: int, level: NoiseLevel) -> Tensor:
        return 0.3 * prior + 0.6 * (x / (1 + x.abs())) + 0.05 * step + 0.1 * level.noise

    return denoise


class Gaussian:
    """The exact network for voxels that are independently N(mean, sd^2): E[x0 | x_t]."""

    def __init__(self, mean: float, sd: float, prediction: Prediction = "x0") -> None:
        self.mean, self.variance, self.prediction = mean, sd**2, prediction

    def __call__(self, x: Tensor, step: int, level: NoiseLevel) -> Tensor:
        signal, noise = level.signal, level.noise
        gain = self.variance * signal / (self.variance * signal**2 + noise**2)
        x0 = self.mean + gain * (x - signal * self.mean)
        eps = (x - signal * x0) / noise
        return {"x0": x0, "eps": eps, "v": signal * eps - noise * x0}[self.prediction]


class TestKnownPosterior:
    @pytest.mark.parametrize(
        ("sampler", "steps", "prediction", "options"),
        [
            pytest.param("ddpm", 1000, "eps", {"variance_mix": 0.0}, id="ddpm, least variance"),
            pytest.param("ddpm", 1000, "x0", {"variance_mix": 0.3}, id="ddpm, authors' variance"),
            pytest.param("ddpm", 300, "v", {"spacing": "snr"}, id="ddpm, subset"),
            pytest.param("ddim", 300, "x0", {"spacing": "snr"}, id="ddim"),
            pytest.param("ddim", 300, "eps", {"spacing": "snr"}, id="ddim, eps"),
            pytest.param("ddim", 300, "v", {"spacing": "snr"}, id="ddim, v"),
            pytest.param("ddim", 300, "v", {"eta": 1.0, "spacing": "snr"}, id="ddim, ancestral"),
            pytest.param("dpm++", 20, "x0", {"spacing": "snr"}, id="dpm++"),
            pytest.param("dpm++", 20, "eps", {"spacing": "snr"}, id="dpm++, eps"),
            pytest.param("dpm++", 20, "v", {"spacing": "snr"}, id="dpm++, v"),
        ],
    )
    def test_samples_have_the_mean_and_variance_of_the_data(
        self, sampler: Sampler, steps: int, prediction: Prediction, options: dict[str, Any]
    ) -> None:
        mean, sd = 0.4, 0.3
        shape = (8, 32, 64)
        plan = make_plan(steps, sampler=sampler, prediction=prediction, **options)
        x = sample(Gaussian(mean, sd, prediction), torch.zeros(shape), plan, seed=3)
        n = math.prod(shape)
        assert x.mean().item() == pytest.approx(mean, abs=0.006 + 4 * sd / math.sqrt(n))
        assert x.std().item() == pytest.approx(sd, rel=0.03)
        kurtosis = ((x - x.mean()) / x.std()).pow(4).mean().item()
        assert kurtosis == pytest.approx(3, abs=0.2)

    def test_order_of_convergence(self) -> None:
        """Against a Gaussian's exact flow: DDIM is of first order, DPM-Solver++(2M) of second."""
        mean, sd = 0.4, 0.3
        noise = counter_noise(SHAPE, seed=0, step=1000).double()
        signal, sigma, _ = NoiseSchedule().level(1000)
        # The probability flow of a Gaussian keeps every voxel's quantile.
        spread = math.sqrt(sd**2 * signal**2 + sigma**2)
        exact = mean + sd * (noise - signal * mean) / spread
        prior = torch.zeros(SHAPE, dtype=torch.float64)

        def error(sampler: Sampler, steps: int, spacing: Spacing = "time") -> float:
            plan = make_plan(steps, sampler=sampler, spacing=spacing)
            return (sample(Gaussian(mean, sd), prior, plan) - exact).abs().max().item()

        assert 1.7 < error("ddim", 100) / error("ddim", 200) < 2.3
        assert 3.5 < error("dpm++", 100) / error("dpm++", 200)
        assert error("dpm++", 20, "snr") < error("ddim", 100, "snr")

    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("steps", [1, 2, 5, 20])
    def test_the_true_x0_is_returned(self, sampler: Sampler, steps: int) -> None:
        truth, prior = volume(1), volume(2)
        for gamma in (None, 0.3, 1.0):
            plan = make_plan(steps, sampler=sampler, gamma=gamma)
            assert torch.equal(sample(constant(truth), prior, plan), truth)

    def test_intermediate_states_are_noised_truth(self) -> None:
        """Along DDIM of the true x0 the state is signal * x0 + noise * (the eps of the start)."""
        truth, prior = volume(1, dtype=torch.float64), volume(2, dtype=torch.float64)
        plan = make_plan(10, first_timestep=700)
        eps = counter_noise(SHAPE, seed=5, step=700).double()
        first = plan.levels[0]
        states: list[Tensor] = []
        sample(
            constant(truth),
            prior,
            plan,
            start=first.signal * truth + first.noise * eps,
            callback=lambda step, x: states.append(x.clone()),
        )
        for level, state in zip(plan.levels[1:], states, strict=False):
            torch.testing.assert_close(state, level.signal * truth + level.noise * eps)


class TestBlend:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_gamma_one_shows_the_network_the_prior(self, sampler: Sampler) -> None:
        prior = volume(2)
        seen: list[Tensor] = []

        def denoise(x: Tensor, step: int, level: NoiseLevel) -> Tensor:
            seen.append(x.clone())
            return 2 * x + 1

        plan = make_plan(7, sampler=sampler, gamma=1.0)
        assert torch.equal(sample(denoise, prior, plan), 2 * prior + 1)
        assert len(seen) == 7
        assert all(torch.equal(x, prior) for x in seen)

    def test_first_state(self) -> None:
        prior = volume(2)
        states: list[Tensor] = []

        def denoise(x: Tensor, step: int, level: NoiseLevel) -> Tensor:
            states.append(x.clone())
            return prior

        noise = counter_noise(SHAPE, seed=4, step=1000, stream=2)
        sample(denoise, prior, make_plan(1, gamma=0.3), seed=4, stream=2)
        torch.testing.assert_close(states[0], 0.7 * noise + 0.3 * prior)
        signal, sigma, _ = NoiseSchedule().level(50)
        noise = counter_noise(SHAPE, seed=4, step=50)
        sample(denoise, prior, make_plan(1, gamma=0.3, first_timestep=50), seed=4)
        expected = 0.7 * (signal * prior + sigma * noise) + 0.3 * prior
        torch.testing.assert_close(states[1], expected)

    @pytest.mark.parametrize(
        ("sampler", "options"),
        [
            ("ddpm", {"steps": 5}),
            ("ddim", {"steps": 5}),
            ("ddim", {"steps": 8, "first_timestep": 8}),
            ("ddpm", {"steps": 30, "first_timestep": 30}),
        ],
    )
    @pytest.mark.parametrize("gamma", [0.9, 0.5, 0.1])
    def test_contraction(self, sampler: Sampler, options: dict[str, int], gamma: float) -> None:
        """Two starts end no further apart than prod(1 - gamma) of their distance."""
        prior = volume(2, dtype=torch.float64)
        plan = make_plan(sampler=sampler, gamma=gamma, **options)  # type: ignore[arg-type]
        starts = volume(5, dtype=torch.float64), 10 * volume(6, dtype=torch.float64)
        a, b = (sample(squash(prior), prior, plan, start=s, seed=1) for s in starts)
        apart = (starts[0] - starts[1]).abs().max().item()
        left = math.prod(1 - g for g in plan.gammas)
        difference = (a - b).abs().max().item()
        assert difference <= left * apart * (1 + 1e-9) + 1e-15
        assert difference > 0 or left < 1e-12

    def test_the_last_eight_steps_equal_all(self) -> None:
        """gamma 0.9: 8 steps of a 200-step chain are the chain, to float32 rounding."""
        prior = volume(2)

        def denoise(x: Tensor, step: int, level: NoiseLevel) -> Tensor:
            return 0.3 * prior + 0.6 * torch.sigmoid(x) + 0.1 * level.noise

        schedule = NoiseSchedule(200)
        options: dict[str, Any] = {"schedule": schedule, "sampler": "ddpm", "gamma": 0.9}
        whole = sample(denoise, prior, make_plan(200, **options), seed=8)
        short = sample(denoise, prior, make_plan(8, first_timestep=8, **options), seed=8)
        torch.testing.assert_close(short, whole, rtol=0, atol=2e-7)
        shorter = sample(denoise, prior, make_plan(2, first_timestep=2, **options), seed=8)
        assert (shorter - whole).abs().max() > 1e-5


class TestConsistency:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize(
        "operator",
        [
            pytest.param(AxialProjection(13, 6), id="disjoint, a slice uncovered"),
            pytest.param(AxialProjection(13, 3, stride=4, weights=[0.2, 0.5, 0.3]), id="gaps"),
            pytest.param(
                AxialProjection(13, 4, stride=2, weights=[0.4, 0.3, 0.2, 0.1]), id="overlap"
            ),
        ],
    )
    def test_hard_is_exact(self, sampler: Sampler, operator: AxialProjection) -> None:
        truth, prior = volume(1), volume(2)
        y = operator(truth)
        plan = make_plan(6, sampler=sampler, gamma=0.2, consistency="hard", clamp=(0, 1))
        x = sample(squash(prior), prior, plan, operator=operator, projections=y)
        assert (operator(x) - y).abs().max() < 1e-6
        off = make_plan(6, sampler=sampler, gamma=0.2, clamp=(0, 1))
        without = sample(squash(prior), prior, off, operator=operator, projections=y)
        assert (operator(without) - y).abs().max() > 1e-2

    def test_soft_lies_between(self) -> None:
        operator = AxialProjection(13, 6)
        truth, prior = volume(1), volume(2)
        y = operator(truth)
        errors = []
        for ratio in (0.0, 1e-5, 1e-4, 1e-2, 1e6):
            plan = make_plan(6, consistency="soft", noise_to_signal=ratio)
            x = sample(constant(prior), prior, plan, operator=operator, projections=y)
            errors.append((operator(x) - y).abs().max().item())
        assert errors == sorted(errors)
        assert errors[0] < 1e-6
        assert errors[-1] == pytest.approx((operator(prior) - y).abs().max().item(), rel=1e-4)

    def test_uncovered_slices_are_the_networks(self) -> None:
        operator = AxialProjection(13, 6)
        truth, prior = volume(1), volume(2)
        plan = make_plan(4, consistency="hard")
        x = sample(constant(prior), prior, plan, operator=operator, projections=operator(truth))
        assert torch.equal(x[12], prior[12])
        assert not torch.equal(x[:12], prior[:12])


class TestNoise:
    def test_same_seed_same_bits(self) -> None:
        prior = volume(2)
        plan = make_plan(6, sampler="ddpm", gamma=0.1)
        a, b = (sample(squash(prior), prior, plan, seed=7, stream=1) for _ in range(2))
        assert torch.equal(a, b)
        for other in ({"seed": 8, "stream": 1}, {"seed": 7, "stream": 2}):
            assert not torch.equal(a, sample(squash(prior), prior, plan, **other))  # type: ignore[arg-type]

    def test_samples_are_independent(self) -> None:
        """Streams of one volume share nothing, seeds and steps included."""
        prior = torch.zeros(16, 32, 32)
        plan = make_plan(60, sampler="ddpm")
        draws = [sample(Gaussian(0.0, 0.5), prior, plan, stream=k).flatten() for k in range(3)]
        correlation = np.corrcoef(torch.stack(draws).numpy())
        assert np.abs(correlation - np.eye(3)).max() < 5 / math.sqrt(prior.numel())

    def test_no_noise_enters_twice(self) -> None:
        """The start and every step draw noise of their own: a chain's variance is their sum."""
        prior = torch.zeros(16, 32, 32)
        plan = make_plan(3, sampler="ddpm", variance_mix=1.0)
        states: list[Tensor] = []
        sample(constant(prior), prior, plan, callback=lambda step, x: states.append(x.clone()))
        variance = 1.0
        for state, (b, d) in zip(
            states,
            zip(plan.column("b").tolist(), plan.column("d").tolist(), strict=True),
            strict=True,
        ):
            variance = b**2 * variance + d**2
            assert state.var().item() == pytest.approx(variance, rel=0.05, abs=1e-12)

    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("consistent", [False, True])
    @pytest.mark.parametrize(
        ("offset", "shape"),
        [
            pytest.param((6, 0, 0), (6, 6, 11), id="slab"),
            pytest.param((0, 1, 3), (13, 4, 5), id="columns, odd ends"),
            pytest.param((6, 2, 1), (7, 3, 9), id="tile"),
        ],
    )
    def test_a_block_is_a_slice_of_the_whole(
        self,
        sampler: Sampler,
        consistent: bool,
        offset: tuple[int, int, int],
        shape: tuple[int, int, int],
    ) -> None:
        prior, truth = volume(2), volume(1)
        options: dict[str, Any] = {"eta": 0.5} if sampler == "ddim" else {}
        plan = make_plan(
            5, sampler=sampler, gamma=0.3, consistency="hard" if consistent else "off", **options
        )
        region = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
        operator, part = AxialProjection(13, 3, stride=6), AxialProjection(shape[0], 3, stride=6)
        whole = sample(
            squash(prior), prior, plan, operator=operator, projections=operator(truth), seed=9
        )
        block = sample(
            squash(prior[region]),
            prior[region],
            plan,
            operator=part,
            projections=part(truth[region]),
            seed=9,
            offset=offset,
            volume_shape=SHAPE,
        )
        assert torch.equal(block, whole[region])


class TestLoop:
    def test_guidance(self) -> None:
        cond, uncond, prior = volume(1), volume(3), volume(2)
        plan = make_plan(4, guidance=1.8)
        x = sample(lambda *_: (cond, uncond), prior, plan)
        torch.testing.assert_close(x, 2.8 * cond - 1.8 * uncond)
        same = sample(lambda *_: (cond, cond), prior, plan)
        torch.testing.assert_close(same, cond)
        off = sample(lambda *_: (cond, uncond), prior, make_plan(4))
        assert torch.equal(off, cond)

    def test_what_the_network_is_told(self) -> None:
        prior = volume(2)
        plan = make_plan(4, gamma=[0.9, 0.5, 0.1, 0.0], sampler="dpm++")
        told: list[tuple[int, NoiseLevel]] = []

        def denoise(x: Tensor, step: int, level: NoiseLevel) -> Tensor:
            assert not torch.is_grad_enabled()
            told.append((step, level))
            return prior

        sample(denoise, prior, plan)
        assert told == list(enumerate(plan.levels))

    def test_callback(self) -> None:
        prior = volume(2)
        steps: list[int] = []
        sample(constant(prior), prior, make_plan(3), callback=lambda step, x: steps.append(step))
        assert steps == [0, 1, 2]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_dtype_is_that_of_the_prior(self, dtype: torch.dtype) -> None:
        prior = volume(2, dtype=dtype)
        plan = make_plan(5, sampler="ddpm", gamma=0.2)
        x = sample(squash(prior), prior, plan)
        assert x.dtype == dtype
        wide = sample(squash(prior.double()), prior.double(), plan)
        atol = {torch.float64: 0.0, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
        torch.testing.assert_close(x.double(), wide, rtol=0, atol=atol)

    def test_memory_never_written_does_not_show(self, poisoned_memory: None) -> None:
        prior = volume(2)
        for sampler in SAMPLERS:
            assert sample(squash(prior), prior, make_plan(4, sampler=sampler)).isfinite().all()

    def test_arguments_are_not_changed(self) -> None:
        prior, start = volume(2), volume(3)
        copies = prior.clone(), start.clone()
        sample(squash(prior), prior, make_plan(4, gamma=0.0), start=start)
        assert torch.equal(prior, copies[0])
        assert torch.equal(start, copies[1])


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"prior": torch.zeros(3, 4)}, "prior"),
        ({"prior": torch.zeros(SHAPE, dtype=torch.int16)}, "prior"),
        ({"start": torch.zeros(13, 6, 1)}, "start"),
        ({"operator": None}, "operator"),
        ({"projections": None}, "projections"),
        ({"operator": AxialProjection(12, 6)}, "operator"),
        ({"projections": torch.zeros(1, 6, 11)}, "projections"),
        ({"projections": torch.zeros(2, 6, 10)}, "projections"),
        ({"plan": make_plan(2, guidance=1.0)}, "denoise"),
    ],
)
def test_refusals(change: dict[str, Any], argument: str) -> None:
    prior = torch.zeros(SHAPE)
    case: dict[str, Any] = {
        "denoise": constant(prior),
        "prior": prior,
        "plan": make_plan(2, consistency="hard"),
        "operator": AxialProjection(13, 6),
        "projections": torch.zeros(2, 6, 11),
    }
    with pytest.raises(InputError, match=rf"^{argument}: expected .+, got "):
        sample(**(case | change))
