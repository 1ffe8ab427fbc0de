"""The published denoiser: one forward pass and one training step, against attention written out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from bench.harness import DEVICE, Contender, Measure, Row, choose, normal
from bench.peers.unet import materialised, scaled_dot_product
from microdiffusion_fast.paper_unet import PaperConfig, PaperDenoiser

SIDE = choose(smoke=16, cpu=128, cuda=128)
TRAINED = choose(smoke=(2, 8), cpu=(2, 64), cuda=(8, 128))  # slices, and their side
ROUNDS = choose(smoke=2, cpu=3, cuda=11)
# Of the network's result, whose largest value is about 1.5.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


def _network() -> PaperDenoiser:
    torch.manual_seed(1)
    return PaperDenoiser().eval().to(DEVICE)


class _Forward:
    """One slice through the network, its biases given."""

    def __init__(self) -> None:
        self.denoiser, self.x = _network(), normal((1, SIDE, SIDE), 2)
        condition = normal((1, PaperConfig().condition), 3)
        with torch.no_grad():
            self.biases = self.denoiser.biases(torch.tensor([500], device=DEVICE), condition)

    def contender(self, denoiser: PaperDenoiser, *, mixed: bool = False) -> Contender:
        def run() -> Tensor:
            with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=mixed):
                return denoiser(self.x, self.biases)

        return Contender(run, rounds=ROUNDS)

    def exact(self) -> Tensor:
        with torch.no_grad():
            return copy.deepcopy(self.denoiser).double()(self.x.double(), self.biases.double())


def bench_float32(measure: Measure) -> None:
    case = _Forward()
    row = Row(
        "unet.float32",
        "the published U-Net, forward, float32",
        f"1 slice of {SIDE}x{SIDE}",
        case.contender(case.denoiser),
        {"materialised attention": lambda: case.contender(materialised(case.denoiser))},
        exact=case.exact,
        tolerance=TOLERANCE[torch.float32],
        rounds=ROUNDS,
    )
    measure(row)


def bench_bfloat16(measure: Measure) -> None:
    """Autocast; where the CPU does not multiply bfloat16 in hardware, float32 wins."""
    case = _Forward()
    row = Row(
        "unet.bfloat16",
        "the published U-Net, forward, autocast to bfloat16",
        f"1 slice of {SIDE}x{SIDE}",
        case.contender(case.denoiser, mixed=True),
        {
            "ours in float32": lambda: case.contender(case.denoiser),
            "torch's attention": lambda: case.contender(
                scaled_dot_product(case.denoiser), mixed=True
            ),
        },
        exact=case.exact,
        tolerance=TOLERANCE[torch.bfloat16],
        rounds=ROUNDS,
    )
    measure(row)


class _Step:
    """Forward and backward of a batch; its result is the gradient of the first convolution."""

    def __init__(self) -> None:
        count, side = TRAINED
        self.denoiser, self.x = _network(), normal((count, side, side), 2)
        self.biases = normal((count, sum(self.denoiser.unet.bias_widths)), 3)

    def contender(self, denoiser: PaperDenoiser, *, mixed: bool = False) -> Contender:
        def run() -> Tensor:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=mixed):
                eps = denoiser(self.x, self.biases)
            (eps - self.x).square().mean().backward()
            gradient = denoiser.unet.conv_in.weight.grad
            assert gradient is not None
            return gradient

        return Contender(run, lambda: denoiser.zero_grad(set_to_none=True), ROUNDS)


def bench_step(measure: Measure) -> None:
    case = _Step()
    count, side = TRAINED
    row = Row(
        "unet.step",
        "the published U-Net, forward and backward, autocast to bfloat16",
        f"{count} slices of {side}x{side}",
        case.contender(case.denoiser, mixed=True),
        {
            "ours in float32": lambda: case.contender(copy.deepcopy(case.denoiser)),
            "materialised attention": lambda: case.contender(materialised(case.denoiser)),
        },
        rounds=ROUNDS,
    )
    measure(row)
