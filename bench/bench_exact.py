"""The last K of 1000 steps against all: one network, the same result to 1e-6 of the range.

This gain is algebra, not kernels: both sides run the same code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench.harness import DEVICE, Contender, Measure, Row, choose
from microdiffusion_fast.denoiser import load_denoiser
from microdiffusion_fast.exact import TOL, sample_exact
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.inference import StackDenoiser, to_network
from microdiffusion_fast.sampler import Denoise, sample
from microdiffusion_fast.schedule import SamplingPlan, make_plan
from microdiffusion_fast.simulate import simulate_projections, simulate_volume

STEP_LENGTH = 6
SHAPE: tuple[int, int, int] = choose(smoke=(12, 8, 8), cpu=(12, 12, 12), cuda=(24, 64, 64))
STEPS = choose(smoke=50, cpu=1000, cuda=1000)
# As published: gamma, guidance, variance mix; and noise that enters in every step.
PUBLISHED: dict[str, Any] = {"sampler": "ddpm", "gamma": 0.9, "guidance": 1.8, "variance_mix": 0.3}
ALL = "all steps"


def exact_row(
    name: str,
    about: str,
    denoise: Denoise,
    prior: Tensor,
    plan: SamplingPlan,
    *,
    operator: AxialProjection | None = None,
    projections: Tensor | None = None,
) -> Row:
    """A row of the last steps against the whole plan, for any network; arguments of `sample`.

    How many steps are enough is found with a probe, outside the clock; in a user's run the probe
    takes as long as the chain again. `difference` of the peer is in network units: twice the share
    of the intensity range.
    """
    case: dict[str, Any] = {"operator": operator, "projections": projections}
    found = sample_exact(denoise, prior, plan, TOL, **case)
    short = found.plan
    return Row(
        name,
        f"{about}; probe: {found.difference:.1e} of the range",
        f"{'x'.join(map(str, prior.shape))}, {len(short)} of {len(plan)} steps",
        Contender(lambda: sample(denoise, prior, short, **case)),
        {ALL: lambda: Contender(lambda: sample(denoise, prior, plan, **case), rounds=1)},
        rounds=5,
    )


def bench_shipped_network(measure: Measure) -> None:
    stack = simulate_projections(simulate_volume("mixed", SHAPE, seed=1), step_length=STEP_LENGTH)
    operator, images = stack.operator, stack.images.to(DEVICE)
    denoise = StackDenoiser(load_denoiser(None).to(DEVICE), images, operator, batch=12, guided=True)
    measure(
        exact_row(
            "exact.shipped",
            "a blended chain by its last steps, the network that ships, guidance 1.8",
            denoise,
            to_network(operator.interpolate(images)),
            make_plan(STEPS, consistency="hard", **PUBLISHED),
            operator=operator,
            projections=to_network(images),
        )
    )
