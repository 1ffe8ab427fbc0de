"""blended_step against torch eager, torch.compile, the published step and diffusers."""

from __future__ import annotations

from typing import Any

from bench.harness import DEVICE, Contender, Measure, Peer, compiled
from bench.peers.step import (
    Published,
    conjugate_gradients,
    diffusers_step,
    plain_consistency,
    plain_step,
    plain_step_drawn,
    plain_step_in_place,
)
from bench.step_case import AT, STEP_LENGTH, StepCase

# Rounds of peers that take a third of a second and more.
SLOW = 5


def bench_noise_given(measure: Measure) -> None:
    case = StepCase("ddpm", noise="given")
    peers: dict[str, Peer] = {
        "torch eager": lambda: case.peer(plain_step, SLOW),
        "torch.compile, out of place": lambda: case.peer(compiled(plain_step)),
        "torch.compile, in place": lambda: case.peer(compiled(plain_step_in_place)),
        "as published": lambda: _published(case),
    }
    measure(case.row("step.given", "blended DDPM step, noise given, in place", peers))


def bench_noise_drawn(measure: Measure) -> None:
    """Peers that draw noise too: DDIM with eta 1, DPM++ as a stochastic equation."""
    case = StepCase("ddpm", noise="drawn")
    peers: dict[str, Peer] = {
        "torch eager": lambda: case.peer(plain_step_drawn, SLOW, same=False),
        "torch.compile": lambda: case.peer(compiled(plain_step_drawn), SLOW, same=False),
        "as published": lambda: _published(case),
        "diffusers DDPM": lambda: _diffusers(case, "DDPM", clip_sample=True),
        "diffusers DDIM, eta 1": lambda: _diffusers(case, "DDIM", eta=1.0, clip_sample=True),
        "diffusers DPM++, stochastic": lambda: _diffusers(
            case, "DPMSolverMultistep", algorithm_type="sde-dpmsolver++"
        ),
    }
    measure(case.row("step.drawn", "blended DDPM step, noise drawn in the kernel", peers))


def bench_ddim(measure: Measure) -> None:
    case = StepCase("ddim", noise="none")
    peers: dict[str, Peer] = {
        "torch eager": lambda: case.peer(plain_step, SLOW),
        "diffusers DDIM": lambda: _diffusers(case, "DDIM", eta=0.0, clip_sample=True),
    }
    measure(case.row("step.ddim", "blended DDIM step, deterministic", peers))


def bench_dpm(measure: Measure) -> None:
    case = StepCase("dpm++", noise="none", history=True)
    peers: dict[str, Peer] = {
        "diffusers DPM++": lambda: _diffusers(case, "DPMSolverMultistep"),
        "diffusers UniPC": lambda: _diffusers(case, "UniPCMultistep"),
    }
    measure(case.row("step.dpm++", "blended DPM-Solver++(2M) step, deterministic", peers))


def bench_consistency(measure: Measure) -> None:
    _consistency(measure, "given")


def bench_consistency_drawn(measure: Measure) -> None:
    _consistency(measure, "drawn")


def _consistency(measure: Measure, noise: str) -> None:
    case = StepCase("ddpm", noise=noise, consistent=True)
    plain = StepCase("ddpm", noise=noise)
    y = case.projections
    assert y is not None

    def alone(correct: Any, rounds: int) -> Contender:
        """The data consistency of others, which is only a part of what ours does."""
        return Contender(lambda: correct(case.x, y, STEP_LENGTH), rounds=rounds, same=False)

    peers: dict[str, Peer] = {
        "ours without consistency": lambda: Contender(plain.run, plain.reset, same=False),
        "closed form alone, torch eager": lambda: alone(plain_consistency, SLOW),
        "5 conjugate gradients alone, torch eager": lambda: alone(conjugate_gradients, 2),
    }
    about = f"blended DDPM step with consistency, step length {STEP_LENGTH}, noise {noise}"
    measure(case.row(f"step.consistent-{noise}", about, peers))


def _published(case: StepCase) -> Contender:
    step = Published(case.plan.timesteps[AT], DEVICE).step
    return Contender(lambda: step(*case.tensors), case.reset, SLOW, same=False)


def _diffusers(case: StepCase, name: str, eta: float | None = None, **options: Any) -> Contender:
    return diffusers_step(f"{name}Scheduler", case.tensors, SLOW, eta=eta, options=options)
