"""The published denoiser on a stack, and the published chain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from microdiffusion_fast.exact import exact_plan
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.paper import PaperStackDenoiser, paper_plan
from microdiffusion_fast.paper_unet import PaperConfig, PaperDenoiser
from microdiffusion_fast.sampler import sample
from microdiffusion_fast.schedule import NoiseSchedule

TINY = PaperConfig(
    channels=8, multipliers=(1, 2), blocks=1, groups=4, position_features=4, image_features=8
)
OPERATOR = AxialProjection(14, 4, stride=3, weights=(0.1, 0.4, 0.4, 0.1), start=1)
TIMES = (1000, 500, 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> PaperDenoiser:
    """Random weights, also where the published network starts at zero."""
    torch.manual_seed(0)
    network = PaperDenoiser(TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 * parameter[0].numel() ** -0.5)
        network.image_encoder.calibrate(random(8, 16, 16, seed=9) * 2 - 1)
    return network.eval()


def test_every_slice_gets_its_own_condition(network: PaperDenoiser) -> None:
    """The closest acquired projection and its own position; zeros for the other prediction."""
    images, x = random(OPERATOR.count, 16, 12), random(14, 16, 12, seed=1)
    bound = PaperStackDenoiser(network, images, OPERATOR, TIMES, batch=4)
    conditional, unconditional = bound(x, 1, NoiseSchedule().level(500))
    t = torch.tensor([500])
    with torch.no_grad():
        for z in range(14):
            distances = [abs(float(centre) - z) for centre in OPERATOR.centres]
            k = distances.index(min(distances))
            position = torch.tensor([2 * z / 14 - 1])
            condition = network.condition(images[k : k + 1] * 2 - 1, position)
            for got, told in (
                (conditional, condition),
                (unconditional, torch.zeros_like(condition)),
            ):
                alone = network(x[z : z + 1], network.biases(t, told))[0]
                torch.testing.assert_close(got[z], alone, rtol=0, atol=1e-5)
    assert float((conditional - unconditional).abs().max()) > 1e-3
    later, _ = bound(x, 2, NoiseSchedule().level(1))
    assert not torch.allclose(later, conditional, atol=1e-3)


def test_guidance_is_one_batch_of_all(network: PaperDenoiser) -> None:
    images, x = random(OPERATOR.count, 16, 12), random(14, 16, 12, seed=1)
    level = NoiseSchedule().level(1)
    sizes: list[int] = []
    encoded: list[int] = []
    hooks = [
        network.unet.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0]))),
        network.image_encoder.register_forward_pre_hook(lambda _, g: encoded.append(len(g[0]))),
    ]
    bound = PaperStackDenoiser(network, images, OPERATOR, TIMES, batch=5)
    pair = bound(x, 0, level)
    bound(x, 1, level)
    assert sizes == [10, 10, 8] * 2 and sum(encoded) == OPERATOR.count
    single = PaperStackDenoiser(network, images, OPERATOR, TIMES, batch=14, guided=False)
    torch.testing.assert_close(single(x, 0, level), pair[0], rtol=0, atol=1e-5)
    assert sizes[6:] == [14]
    for hook in hooks:
        hook.remove()


def test_bfloat16_is_asked_for(network: PaperDenoiser) -> None:
    images, x = random(OPERATOR.count, 16, 12), random(14, 16, 12, seed=1)
    level = NoiseSchedule().level(500)
    exact, rough = (
        PaperStackDenoiser(network, images, OPERATOR, TIMES, bfloat16=bfloat16)(x, 1, level)[0]
        for bfloat16 in (False, True)
    )
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    assert float((exact - rough).abs().max()) < 0.1 * float(exact.abs().max())


# --- the chain ---


def test_the_plan_is_the_published_chain() -> None:
    """Ho et al. 2020, algorithm 2, with guidance and a mix of variances, for every timestep."""
    plan = paper_plan(0.9)
    schedule = NoiseSchedule()
    assert plan.timesteps == tuple(range(1000, 0, -1)) and set(plan.gammas) == {0.9}
    assert plan.start == (0.0, 1.0) and not plan.uses("trust")
    assert set(plan.column("w").tolist()) == {1.8}
    columns = {name: plan.column(name) for name in "pqabd"}
    bar = schedule.alpha_bar
    for row in (0, 1, 400, 998, 999):
        t = 1000 - row
        p, q, a, b, d = (float(columns[name][row]) for name in "pqabd")
        beta = float(schedule.betas[t - 1])
        # x_prev = (x - beta / sqrt(1 - bar) * eps) / sqrt(1 - beta) + sigma * noise
        of_x, of_eps = a * q + b, a * p
        assert of_x == pytest.approx(1 / math.sqrt(1 - beta), rel=1e-9)
        expected = -beta / math.sqrt((1 - float(bar[t])) * (1 - beta))
        assert of_eps == pytest.approx(expected, rel=1e-9)
        tilde = beta * float((1 - bar[t - 1]) / (1 - bar[t]))
        sigma = math.exp(0.5 * (0.3 * math.log(beta) + 0.7 * math.log(tilde))) if t > 1 else 0.0
        assert d == pytest.approx(sigma, rel=1e-9)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_only_the_final_state_is_clipped(sampler: str) -> None:
    plan = paper_plan(0.5, steps=6, sampler=sampler)  # type: ignore[arg-type]
    lows, highs = plan.column("low"), plan.column("high")
    assert lows[:-1].eq(-math.inf).all() and highs[:-1].eq(math.inf).all()
    assert (lows[-1], highs[-1]) == (-1, 1)

    seen = []

    def outside(x: Tensor, step: int, level: object) -> tuple[Tensor, Tensor]:
        seen.append(float(x.abs().max()))
        return x * 3, x * 3

    ended = sample(outside, random(2, 4, 4) * 2 - 1, plan)
    assert max(seen) > 1.5 and float(ended.abs().max()) == 1.0


def test_the_last_steps_equal_many_more(network: PaperDenoiser) -> None:
    """The bound denoiser knows a step by its place in the whole chain, so a short one is exact."""
    images, prior = random(OPERATOR.count, 8, 8), random(14, 8, 8, seed=2) * 2 - 1
    plan = paper_plan(0.9)
    short = exact_plan(plan, 1e-6)
    assert len(short) == 8
    bound = PaperStackDenoiser(network, images, OPERATOR, plan.timesteps, batch=14)
    apart = sample(bound, prior, short, seed=4) - sample(bound, prior, plan.last(30), seed=4)
    assert float(apart.abs().max()) <= 2e-6
    other = sample(bound, prior, plan.last(2), seed=4) - sample(bound, prior, short, seed=4)
    assert float(other.abs().max()) > 1e-4


def test_other_samplers_and_consistency() -> None:
    plan = paper_plan([0.5, 0.1], steps=2, sampler="ddim", guidance=0.0, consistency="hard")
    assert plan.gammas == (0.5, 0.1) and not plan.uses("w") and plan.uses("trust")
    late = paper_plan(0.9, gamma_schedule="late-release")
    assert late.gammas[0] == 0.9 and late.gammas[-1] == 0.0
