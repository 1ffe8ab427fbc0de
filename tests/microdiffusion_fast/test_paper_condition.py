"""The conditions of the published denoiser: E_pos and E_img."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from microdiffusion_fast.paper_condition import ImageEncoder, PositionEncoder
from microdiffusion_fast.paper_unet import PaperConfig, PaperDenoiser


def encoder(*, seed: int = 0) -> ImageEncoder:
    torch.manual_seed(seed)
    return ImageEncoder(channels=4, features=6)


def images(count: int, *size: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, *size), generator=generator) * 2 - 1


def test_position_features() -> None:
    """z, and sine and cosine of 2^i z: 21 numbers."""
    positions = torch.tensor([-1.0, 0.0, 0.3])
    pe = PositionEncoder()
    first = pe.layers[0]
    assert isinstance(first, nn.Linear) and first.in_features == 21
    pe.layers = nn.Sequential(nn.Identity())
    expected = [
        [z] + [f(torch.tensor(2.0**i * z)) for f in (torch.sin, torch.cos) for i in range(10)]
        for z in positions.tolist()
    ]
    torch.testing.assert_close(pe(positions), torch.tensor(expected))


def test_stages_of_the_image_encoder() -> None:
    """ResNet-18 without pooling: 64, 128, 256 and 512 channels at 1, 1/2, 1/4 and 1/8 size."""
    net = ImageEncoder().eval()
    seen: list[tuple[int, int]] = []
    for block in net.blocks:
        block.register_forward_hook(lambda m, i, out: seen.append((out.shape[1], out.shape[2])))
    with torch.no_grad():
        assert net(images(1, 32, 32)).shape == (1, 128)
    assert seen == [(64, 32)] * 2 + [(128, 16)] * 2 + [(256, 8)] * 2 + [(512, 4)] * 2


def test_pooling_is_the_published_one_at_128() -> None:
    """Windows of 4 x 4 on the map of 16 x 16, flattened channel by channel."""
    net = encoder().eval()
    maps: list[Tensor] = []
    net.blocks.register_forward_hook(lambda m, i, out: maps.append(out))
    with torch.no_grad():
        features = net(images(1, 128, 128))
        assert maps[0].shape == (1, 32, 16, 16)
        expected = net.linear(nn.functional.avg_pool2d(maps[0], 4).flatten(1))
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("size", [(8, 8), (9, 23), (40, 17)], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_any_size_and_one_image(size: tuple[int, int], training: bool) -> None:
    features = encoder().train(training)(images(1, *size))
    assert features.shape == (1, 6)
    assert features.isfinite().all()


def test_evaluation_does_not_depend_on_the_batch() -> None:
    net = encoder()
    stack = images(5, 16, 16)
    net(stack)
    net.eval()
    with torch.no_grad():
        together = net(stack)
        alone = torch.cat([net(image[None]) for image in stack])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_one_image_is_normalised_alike_in_training_and_evaluation() -> None:
    net = encoder()
    net(images(5, 16, 16))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    image = images(1, 16, 16, seed=2)
    trained = net.train()(image)
    torch.testing.assert_close(trained, net.eval()(image))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_statistics_are_in_the_state_dict() -> None:
    net, other = encoder(seed=0), encoder(seed=1)
    stack = images(5, 16, 16)
    net(stack)  # moves the running statistics
    other.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(stack), other.eval()(stack))


def test_calibrated_evaluation_is_the_whole_batch() -> None:
    """After `calibrate` an image alone is normalised as in a batch of the whole stack."""
    net = encoder()
    stack = images(32, 32, 32)
    with torch.no_grad():
        expected = net.train()(stack)
        net.eval().calibrate(stack)
        assert not net.training
        alone = torch.cat([net(image[None]) for image in stack])
        again = net.train()(stack)
    # Running variances are unbiased, those of a batch are not: by 1/512 in the last stage.
    torch.testing.assert_close(alone, expected, rtol=0, atol=0.01)
    torch.testing.assert_close(again, expected)
    assert net.norm.momentum == 0.1


def test_calibration_on_a_stack_of_one() -> None:
    """It is the spread within that image: as for a batch that repeats it."""
    net, other = encoder(), encoder()
    image = images(1, 32, 32)
    net.calibrate(image)
    other.calibrate(image.repeat(2, 1, 1))
    assert net.norm.running_mean is not None and net.norm.running_mean.abs().max() > 0
    pairs = zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_condition_is_position_beside_image() -> None:
    torch.manual_seed(0)
    denoiser = PaperDenoiser(PaperConfig(channels=4, groups=4)).eval()
    stack, positions = images(3, 16, 16), torch.tensor([-1.0, 0.0, 1.0])
    with torch.no_grad():
        condition = denoiser.condition(stack, positions)
        assert condition.shape == (3, 160)
        assert torch.equal(condition[:, :32], denoiser.position_encoder(positions))
        assert torch.equal(condition[:, 32:], denoiser.image_encoder(stack))
