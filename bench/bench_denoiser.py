"""The shipped network on a CPU: freed arrays kept for the next ones, against giving them back.

The arithmetic is the same; what differs is how often the system clears pages.
"""

from __future__ import annotations

from unittest import mock

import pytest
from torch import Tensor

from bench.harness import DEVICE, Contender, Measure, Row, Unavailable, choose, uniform
from microdiffusion_fast import allocator
from microdiffusion_fast.adaptation_check import posterior_mean
from microdiffusion_fast.denoiser import load_denoiser
from microdiffusion_fast.forward_model import AxialProjection

SIDES = choose(smoke=[16], cpu=[128, 384], cuda=[128])
OPERATOR = AxialProjection(24, 6)


@pytest.mark.parametrize("side", SIDES)
def bench_posterior_mean(measure: Measure, side: int) -> None:
    network = load_denoiser(None).to(DEVICE)
    images = uniform((OPERATOR.count, side, side), seed=1)

    def ours() -> Tensor:
        return posterior_mean(network, images, OPERATOR, axial_blur=1.5)

    def given_back() -> Tensor:
        with mock.patch.object(allocator, "_tunable", lambda: False):
            return ours()

    def peer() -> Contender:
        if DEVICE.type != "cpu" or not allocator._tunable():
            raise Unavailable("a C library other than glibc, its limits set, or a GPU")
        return Contender(given_back)

    row = Row(
        f"denoiser.{side}",
        "one call of the network, the posterior mean",
        f"{OPERATOR.depth}x{side}x{side}, step length {OPERATOR.step_length}",
        Contender(ours),
        {"memory given back": peer},
        exact=given_back,
        tolerance=1e-4,
        rounds=5,
    )
    measure(row)
