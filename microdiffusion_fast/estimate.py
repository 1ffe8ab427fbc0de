"""From a bound denoiser to a volume: one chain, or the mean of several."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .errors import InputError
from .exact import Probe, exact_plan, sample_exact
from .forward_model import AxialProjection
from .graph import ChainGraph
from .progress import Progress, ProgressCallback
from .sampler import Chain, Denoise
from .schedule import SamplingPlan


@dataclass(frozen=True, eq=False)
class Estimate:
    """A volume and what is known of it.

    Attributes:
        volume: [Z, Y, X], in network units: the mean of the chains, or the first of them.
        deviation: [Z, Y, X] standard deviation of the chains, from two on.
        probe: of an exact chain, if one was made.
    """

    volume: Tensor
    deviation: Tensor | None
    probe: Probe | None


def estimate(
    denoise: Denoise,
    prior: Tensor,
    plan: SamplingPlan,
    *,
    chains: int,
    averaged: bool = True,
    tol: float | None = None,
    operator: AxialProjection,
    projections: Tensor,
    seed: int,
    cuda_graph: bool,
    progress: bool,
    callback: ProgressCallback | None,
) -> Estimate:
    """The mean of some chains, or the first of them.

    Args:
        denoise, prior, operator, projections, seed: as in `sampler.sample`.
        plan: of the chains.
        chains: how many.
        averaged: the volume is their mean, not the first.
        tol: take of the plan the last steps that equal it to this share of the intensity range,
            and prove it with a probe, whose first chain is the first of the chains.
        cuda_graph: as in `run_chains`.
        progress, callback: as in `Progress`.

    Raises:
        InputError: `tol` cannot be kept, or several exact chains would be the same.
    """
    if tol is not None and chains > 1 and not plan.uses("d"):
        # it forgets the noise it starts from, and no other is drawn
        expected = "1 for exact steps of a sampler that draws no noise: all would be the same"
        raise InputError("samples", expected, chains)
    many = partial(
        run_chains,
        denoise,
        prior,
        operator=operator,
        projections=projections,
        seed=seed,
        cuda_graph=cuda_graph,
    )
    probe: Probe | None = None
    drawn: list[Tensor] = []
    if tol is not None:
        calls = 2 * len(exact_plan(plan, tol))
        with Progress("probe", calls, enabled=progress, callback=callback) as bar:

            def count(step: int, x: Tensor) -> None:
                bar.total = max(calls, bar.done + 1)  # a probe may go on with more steps
                bar.advance()

            probe = sample_exact(
                denoise,
                prior,
                plan,
                tol,
                operator=operator,
                projections=projections,
                seed=seed,
                callback=count,
            )
        plan, drawn = probe.plan, [probe.volume]
    total = (chains - len(drawn)) * len(plan)
    with Progress("sample", total, enabled=progress, callback=callback) as bar:
        others = many(plan=plan, first=len(drawn), count=chains, advance=bar.advance)
        volumes = itertools.chain(drawn, others)
        first = next(volumes).clone()  # the chains that follow reuse its memory
        mean, deviation = mean_and_deviation(itertools.chain([first], volumes))
    assert mean is not None
    return Estimate(mean if averaged else first, deviation, probe)


def run_chains(
    denoise: Denoise,
    prior: Tensor,
    plan: SamplingPlan,
    *,
    operator: AxialProjection,
    projections: Tensor,
    count: int,
    first: int = 0,
    seed: int,
    cuda_graph: bool,
    advance: Callable[[int], None],
) -> Iterable[Tensor]:
    """The volumes of chains `first` to `count - 1`, each with noise of its own, [Z, Y, X]; each
    reuses the memory.

    Args:
        denoise, prior, plan, operator, projections, seed: as in `sampler.sample`; chain i draws the
            noise of stream i.
        cuda_graph: on a CUDA device, capture the chain once and replay it, from three chains on: a
            capture costs about one.
        advance: told the number of steps done.
    """
    chain = Chain(denoise, prior, plan, operator=operator, projections=projections)
    graph: ChainGraph | None = None
    for stream in range(first, count):
        chain.begin(seed=seed, stream=stream)
        if cuda_graph and count - first > 2 and prior.device.type == "cuda":
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
