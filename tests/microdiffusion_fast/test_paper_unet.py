"""The published denoiser: its size and shapes, its biases, its attention, any image size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.peers.unet import materialised
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.paper_unet import Block, PaperConfig, PaperDenoiser, ResidualBlock, UNet

NARROW = PaperConfig(
    channels=8, groups=4, position_levels=3, position_features=4, image_features=8, dropout=0.0
)


def network(config: PaperConfig = NARROW, *, seed: int = 0) -> PaperDenoiser:
    torch.manual_seed(seed)
    return PaperDenoiser(config).eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def run(denoiser: PaperDenoiser, x: Tensor, t: int = 500) -> Tensor:
    """Noise in x under a condition of its own and one timestep."""
    times = torch.full((len(x),), t)
    condition = noise(len(x), denoiser.config.condition, seed=2)
    with torch.no_grad():
        return denoiser(x, denoiser.biases(times, condition))


def test_parameters_of_the_published_network() -> None:
    """Counted in the authors' `Unet(1, 64, 1, [1, 2, 2, 2], 2, cdim=160)` and `INREmbedding`."""
    denoiser = PaperDenoiser()
    assert count(denoiser.unet, denoiser.time, denoiser.given) == 10_445_121
    assert count(denoiser.image_encoder) == 12_216_384
    assert count(denoiser.position_encoder) == 22 * 32 + 33 * 32


def test_shapes_of_the_published_network() -> None:
    """Channels and side of every residual block, and of every attention, for a 32 x 32 image."""
    unet = PaperDenoiser().unet.eval()
    seen: dict[type, list[tuple[int, int, int]]] = {ResidualBlock: [], Block: []}

    def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[type(module)].append((inputs[0].shape[1], output.shape[1], output.shape[2]))

    for module in unet.modules():
        if type(module) in seen:
            module.register_forward_hook(look)
    with torch.no_grad():
        unet(noise(1, 1, 32, 32), noise(1, sum(unet.bias_widths)))
    down = [(64, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16)]
    down += [(128, 128, 8), (128, 128, 8), (128, 128, 4), (128, 128, 4)]
    up = [(256, 128, 4)] * 3 + [(256, 128, 8)] * 3 + [(256, 128, 16)] * 2 + [(192, 128, 16)]
    up += [(192, 64, 32)] + [(128, 64, 32)] * 2
    attended, middle = [*down, (128, 128, 4), *up], [(128, 128, 4)] * 2
    assert seen[Block] == attended
    assert len(attended) == 21
    assert seen[ResidualBlock] == [*down, *middle, *up]
    assert unet.bias_widths == [after for _, after, _ in seen[ResidualBlock]]
    assert sum(unet.bias_widths) == 2496


def test_biases_are_the_direct_path() -> None:
    """What a block adds is SiLU and Linear of each embedding; the sum of both parts."""
    denoiser = network()
    t, condition = torch.tensor([1, 37, 1000]), noise(3, NARROW.condition)
    both = denoiser.biases(t, condition)
    assert torch.equal(both, denoiser.time_biases(t) + denoiser.condition_biases(condition))
    assert both.shape == (3, sum(denoiser.unet.bias_widths))

    place = sum(denoiser.unet.bias_widths[:3])
    rows = slice(place, place + denoiser.unet.bias_widths[3])
    direct = torch.zeros(())
    for layers, value in ((denoiser.time, t), (denoiser.given, condition)):
        last = layers[-1]
        assert isinstance(last, nn.Linear)
        embedding = layers[:-1](value)
        direct = direct + embedding @ last.weight[rows].T + last.bias[rows]
    torch.testing.assert_close(both[:, rows], direct)


def test_time_embedding_is_printed_formula_of_t_minus_one() -> None:
    denoiser = network(PaperConfig())
    t = torch.tensor([1, 2, 501, 1000])
    embedded = denoiser.time[0](t).double()
    exponents = torch.arange(32, dtype=torch.float64) / 32
    phase = (t[:, None] - 1) * 10_000.0**-exponents
    expected = torch.cat([phase.cos(), phase.sin()], dim=1)
    torch.testing.assert_close(embedded, expected, rtol=0, atol=1e-4)  # of 999 in float32
    assert torch.equal(embedded[0], torch.tensor([1.0] * 32 + [0.0] * 32).double())


@pytest.mark.parametrize("size", [(16, 16), (9, 13)], ids=str)
@pytest.mark.parametrize("grads", [False, True], ids=["forward", "with gradients"])
def test_equals_materialised_attention(size: tuple[int, int], grads: bool) -> None:
    denoiser = network()
    plain = materialised(denoiser)
    x = noise(2, *size).requires_grad_(grads)
    biases = denoiser.biases(torch.tensor([3, 900]), noise(2, NARROW.condition)).detach()
    with torch.set_grad_enabled(grads):
        ours, theirs = denoiser(x, biases), plain(x, biases)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    if grads:
        ours.square().sum().backward()
        theirs.square().sum().backward()
        pairs = zip(denoiser.unet.parameters(), plain.unet.parameters(), strict=True)
        for mine, other in pairs:
            assert mine.grad is not None and other.grad is not None
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (17, 8), (8, 31)], ids=str)
def test_any_size(size: tuple[int, int]) -> None:
    x = noise(2, *size)
    eps = run(network(), x)
    assert eps.shape == x.shape
    assert eps.isfinite().all()


class Operations(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [(16, 16), (9, 13)], ids=str)
def test_nothing_is_copied_to_change_its_layout(size: tuple[int, int]) -> None:
    """Channels-last from the first convolution on, so images become tokens as views."""
    denoiser = network()
    x, biases = noise(2, *size), noise(2, sum(denoiser.unet.bias_widths))
    with torch.no_grad(), Operations() as seen:
        denoiser(x, biases)
    assert "aten::convolution" in seen.names
    assert not [name for name in seen.names if "copy" in name or "clone" in name]
    with torch.no_grad(), Operations() as seen:
        materialised(denoiser)(x, biases)
    assert "aten::clone" in seen.names  # which the mode would have seen


def test_an_image_does_not_depend_on_its_batch() -> None:
    denoiser = network()
    x = noise(3, 16, 16)
    t, condition = torch.tensor([1, 500, 1000]), noise(3, NARROW.condition)
    with torch.no_grad():
        biases = denoiser.biases(t, condition)
        together = denoiser(x, biases)
        alone = torch.cat([denoiser(x[i : i + 1], biases[i : i + 1]) for i in range(3)])
        others = denoiser(torch.cat([x[:1], 100 * x[1:]]), biases)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together[0], others[0], rtol=0, atol=1e-6)


def test_evaluation_is_deterministic_and_training_drops_out() -> None:
    denoiser = network(replace(NARROW, dropout=0.5))
    x = noise(2, 16, 16)
    assert torch.equal(run(denoiser, x), run(denoiser, x))
    denoiser.train()
    assert not torch.equal(run(denoiser, x), run(denoiser, x))


def test_autocast_stays_close_and_returns_the_dtype_of_x() -> None:
    denoiser = network()
    x = noise(2, 16, 16)
    expected = run(denoiser, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(denoiser, x)
    assert found.dtype == torch.float32
    # every layer rounds to 8 bits; of values up to about 1.5
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    assert not torch.equal(found, expected)


def test_time_and_condition_matter() -> None:
    denoiser = network()
    x = noise(2, 16, 16)
    biases = denoiser.biases(torch.tensor([7, 7]), torch.zeros(2, NARROW.condition))
    later = denoiser.biases(torch.tensor([70, 70]), torch.zeros(2, NARROW.condition))
    given = denoiser.biases(torch.tensor([7, 7]), noise(2, NARROW.condition))
    with torch.no_grad():
        eps = [denoiser(x, b) for b in (biases, later, given)]
    assert (eps[1] - eps[0]).abs().max() > 1e-4
    assert (eps[2] - eps[0]).abs().max() > 1e-4


def test_gradients_reach_every_parameter() -> None:
    denoiser = network().train()
    x = noise(4, 16, 16)
    condition = denoiser.condition(noise(4, 16, 16, seed=3), torch.linspace(-1, 1, 4))
    eps = denoiser(x, denoiser.biases(torch.tensor([1, 9, 90, 900]), condition))
    (eps * noise(4, 16, 16, seed=4)).sum().backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_state_dict_restores_the_network() -> None:
    denoiser, other = network(seed=0), network(seed=1)
    x = noise(1, 16, 16)
    assert not torch.equal(run(denoiser, x), run(other, x))
    other.load_state_dict({name: value.clone() for name, value in denoiser.state_dict().items()})
    assert torch.equal(run(denoiser, x), run(other, x))


def test_levels_and_blocks_are_free() -> None:
    config = replace(NARROW, multipliers=(2, 1), blocks=1)
    assert run(network(config), noise(1, 7, 6)).shape == (1, 7, 6)
    assert len(UNet(config).bias_widths) == 2 + 2 + 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", 0),
        ("channels", 33),
        ("multipliers", ()),
        ("multipliers", (1, 0)),
        ("blocks", 0),
        ("groups", 0),
        ("groups", 24),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("position_levels", -1),
        ("position_features", 0),
        ("image_features", 0),
    ],
)
def test_bad_widths_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{field}: expected"):
        replace(PaperConfig(), **{field: value})
