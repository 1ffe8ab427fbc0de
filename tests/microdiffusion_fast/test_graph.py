"""A chain on memory of its own, run again and again, and as a CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from microdiffusion_fast.denoiser import Denoiser, DenoiserConfig
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.graph import ChainGraph
from microdiffusion_fast.inference import StackDenoiser
from microdiffusion_fast.kernels.constants import constant
from microdiffusion_fast.sampler import Chain, Denoise, sample
from microdiffusion_fast.schedule import SamplingPlan, make_plan

DEPTH, SIDE = 12, 16
OPERATOR = AxialProjection(DEPTH, 4)


@dataclass(frozen=True)
class Problem:
    """All that a chain needs, on one device."""

    denoise: Denoise
    prior: Tensor
    projections: Tensor
    plan: SamplingPlan

    def sample(self, seed: int, stream: int) -> Tensor:
        return sample(
            self.denoise,
            self.prior,
            self.plan,
            operator=OPERATOR,
            projections=self.projections,
            seed=seed,
            stream=stream,
        )

    def chain(self) -> Chain:
        return Chain(
            self.denoise,
            self.prior,
            self.plan,
            operator=OPERATOR,
            projections=self.projections,
        )


def problem(sampler: str, *, guidance: float = 0.0, device: str = "cpu") -> Problem:
    torch.manual_seed(0)
    config = DenoiserConfig(encoder_widths=(8, 8, 8), head_width=8, head_blocks=1, embedding=16)
    network = Denoiser(config)
    for parameter in network.parameters():  # its last layers start at zero
        torch.nn.init.normal_(parameter, std=0.05)
    volume = torch.rand((DEPTH, SIDE, SIDE)).to(device)
    images = OPERATOR(volume)
    denoise = StackDenoiser(network.to(device), images, OPERATOR, guided=guidance != 0)
    plan = make_plan(
        4, sampler=sampler, gamma=0.2, guidance=guidance, consistency="hard", spacing="snr"
    )
    return Problem(denoise, OPERATOR.interpolate(images) * 2 - 1, images * 2 - 1, plan)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_a_chain_begun_again_equals_a_fresh_one(sampler: str) -> None:
    case = problem(sampler)
    chain = case.chain()
    for seed, stream in ((1, 0), (1, 5), (2**64 - 1, 2**32 - 1), (1, 0)):
        chain.begin(seed=seed, stream=stream)
        assert torch.equal(chain.advance(), case.sample(seed, stream))


def test_the_prior_of_a_chain_may_change_in_place() -> None:
    first, chain = problem("ddpm"), problem("ddpm").chain()
    chain.begin(seed=3)
    chain.advance()
    chain.prior.add_(0.25)
    chain.begin(seed=3)
    first.prior.add_(0.25)
    assert torch.equal(chain.advance(), first.sample(3, 0))


def test_samples_differ() -> None:
    case = problem("ddpm")
    assert not torch.equal(case.sample(1, 0), case.sample(1, 1))
    assert not torch.equal(case.sample(1, 0), case.sample(2, 0))


def test_a_graph_needs_a_cuda_device() -> None:
    with pytest.raises(InputError, match=r"^chain: expected one on a CUDA device, got cpu"):
        ChainGraph(problem("ddim").chain())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("guidance", [0.0, 1.8])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_a_replay_gives_the_same_bits(sampler: str, guidance: float) -> None:
    case = problem(sampler, guidance=guidance, device="cuda")
    chain = case.chain()
    chain.begin(seed=9)
    graph = ChainGraph(chain)
    for seed, stream in ((1, 0), (1, 5), (2**64 - 1, 2**32 - 1)):
        chain.begin(seed=seed, stream=stream)
        assert torch.equal(graph.advance(), case.sample(seed, stream))


def test_a_run_needs_a_beginning() -> None:
    chain = problem("ddpm").chain()
    with pytest.raises(InputError, match=r"^chain: expected one that was begun"):
        chain.advance()
    chain.begin(seed=1)
    chain.advance()
    with pytest.raises(InputError, match="ran already"):
        chain.advance()


def test_a_second_run_copies_nothing_from_the_host() -> None:
    """Constants are made in the first run, which a capture follows: 300 levels are all kept."""
    case = problem("ddim")
    plan = make_plan(300, sampler="ddim", gamma=0.2, consistency="hard")
    chain = Chain(case.denoise, case.prior, plan, operator=OPERATOR, projections=case.projections)
    chain.begin()
    chain.advance()
    made = constant.cache_info().misses
    chain.begin()
    chain.advance()
    assert constant.cache_info().misses == made
