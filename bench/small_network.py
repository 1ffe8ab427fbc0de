"""A network of random weights, for what is about everything but the arithmetic."""

from __future__ import annotations

import torch

from microdiffusion_fast.denoiser import Denoiser, DenoiserConfig

# The depth that the small budgets of the tests are made for; narrow, for speed.
NARROW = DenoiserConfig((8, 8, 8), quarter_blocks=2, head_width=8, head_blocks=3, embedding=16)


def random_network(
    generator: torch.Generator, config: DenoiserConfig = NARROW, *, gain: float = 1.0
) -> Denoiser:
    """A network none of whose layers is zero, so that what any of them sees shows.

    Args:
        generator: what the weights are drawn from.
        config: its sizes.
        gain: of every layer; about 1 keeps the size of what passes through.
    """
    network = Denoiser(config)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(gain * noise * fan_in**-0.5)
    return network
