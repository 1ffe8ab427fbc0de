"""From a bound denoiser to a volume: the posterior mean, and the samples around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .forward_model import AxialProjection
from .graph import ChainGraph
from .sampler import Chain, Denoise
from .schedule import SamplingPlan


def run_chains(
    denoise: Denoise,
    prior: Tensor,
    plan: SamplingPlan,
    *,
    operator: AxialProjection,
    projections: Tensor,
    count: int,
    seed: int,
    cuda_graph: bool,
    advance: Callable[[int], None],
) -> Iterable[Tensor]:
    """The volumes of `count` chains with noise of their own, [Z, Y, X]; each reuses the memory.

    Args:
        denoise, prior, plan, operator, projections, seed: as in `sampler.sample`; chain i draws the
            noise of stream i.
        cuda_graph: on a CUDA device, capture the chain once and replay it, from three chains on: a
            capture costs about one.
        advance: told the number of steps done.
    """
    chain = Chain(denoise, prior, plan, operator=operator, projections=projections)
    graph: ChainGraph | None = None
    for stream in range(count):
        chain.begin(seed=seed, stream=stream)
        if cuda_graph and count > 2 and prior.device.type == "cuda":
            if graph is None:
                graph = ChainGraph(chain)
                chain.begin(seed=seed, stream=stream)
            volume = graph.advance()
            advance(len(plan))
        else:
            volume = chain.advance(lambda step, x: advance(1))
        yield volume


def mean_and_deviation(samples: Iterable[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Mean of samples and, from two on, their standard deviation (Welford: no copies are kept)."""
    mean: Tensor | None = None
    squares, count = torch.zeros(()), 0
    for count, drawn in enumerate(samples, start=1):
        if mean is None:
            mean, squares = drawn.clone(), torch.zeros_like(drawn)
            continue
        change = drawn - mean
        mean += change / count
        squares += change * (drawn - mean)
    return mean, (squares / (count - 1)).sqrt() if count > 1 else None
