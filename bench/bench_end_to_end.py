"""The whole `reconstruct` of a phantom: seconds in every stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.harness import DEVICE, SMOKE, Contender, Measure, Row, choose
from microdiffusion_fast import Reconstruction, reconstruct, simulate_projections, simulate_volume

STEP_LENGTH = 6
Shape = tuple[int, int, int]
SHAPES: dict[str, Shape] = choose(
    smoke={"small": (12, 32, 32)},
    cpu={"small": (48, 64, 64), "96x128x128": (96, 128, 128)},
    cuda={"128x128x124": (124, 128, 128), "512x512x128": (128, 512, 512)},
)
# About as many as equal a chain of all steps at the published gamma (see `exact.exact_plan`).
CHAIN: dict[str, Any] = {"steps": 8, "gamma": 0.9, "sampler": "ddpm", "adapt": False}
CHAINED = choose(smoke=["small"], cpu=["small"], cuda=list(SHAPES))
QUICK: dict[str, Any] = {"inr_steps": 2, "adapt_steps": 1}


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Imports, thread pools and first allocations are not what is timed."""
    projections = simulate_projections(simulate_volume("mixed", (12, 32, 32)), step_length=6)
    reconstruct(projections, device=DEVICE, **QUICK)


@pytest.mark.parametrize("name", SHAPES)
def bench_reconstruct(measure_once: Measure, name: str) -> None:
    """As a user calls it: the posterior mean, after self-training on the stack; small without."""
    small = name == "small"
    about = "reconstruct" + (" without self-training" if small else " with its defaults")
    options = {"adapt": False} if small and not SMOKE else {}
    _reconstruct(measure_once, f"end.{name}", about, SHAPES[name], options)


@pytest.mark.parametrize("name", CHAINED)
def bench_chain(measure_once: Measure, name: str) -> None:
    """A chain with the network that ships; sampling is the stage to look at."""
    about = "reconstruct by 8 DDPM steps, without self-training"
    _reconstruct(measure_once, f"chain.{name}", about, SHAPES[name], CHAIN)


def _reconstruct(
    measure_once: Measure, name: str, about: str, shape: Shape, options: dict[str, Any]
) -> None:
    projections = simulate_projections(
        simulate_volume("mixed", shape, seed=1), step_length=STEP_LENGTH
    )
    quick = QUICK if SMOKE else {}
    found: list[Reconstruction] = []

    def run() -> Tensor:
        found.append(reconstruct(projections, device=DEVICE, **(quick | options)))
        return torch.from_numpy(found[0].volume)

    row = Row(
        name,
        about,
        "x".join(map(str, shape)) + f", step length {STEP_LENGTH}",
        Contender(run),
        # Hard consistency: the projections of the result are the input.
        exact=lambda: projections.images,
        view=lambda volume: projections.operator(volume),
        tolerance=1e-4,
    )
    record = measure_once(row)
    record["stages"] = found[0].timings
