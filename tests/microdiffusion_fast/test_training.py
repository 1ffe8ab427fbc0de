"""Training: the loss it takes, and runs that stop, go on and refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from microdiffusion_fast import training
from microdiffusion_fast.denoiser import CONTEXT, Denoiser, DenoiserConfig, load_denoiser
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.progress import Cancelled, ProgressEvent
from microdiffusion_fast.schedule import NoiseSchedule
from microdiffusion_fast.training import TrainingConfig, simulated_source, train
from microdiffusion_fast.training_data import Acquisition, Batch, Source, draw_batch
from microdiffusion_fast.training_step import (
    _draw_levels,
    _project_out,
    interpolate_windows,
    training_loss,
)

TINY = DenoiserConfig(encoder_widths=(8, 8, 8), head_width=8, head_blocks=1, embedding=16)
SCHEDULE = NoiseSchedule()
RECIPE = TrainingConfig(steps=4, volumes=2, side=64, size=16, checkpoint=2, network=TINY)


def smooth_volume(seed: int, side: int) -> Tensor:
    """A soft random texture in about [0, 1]."""
    coarse = torch.rand((1, 1, 8, 8, 8), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(side,) * 3, mode="trilinear")[0, 0]


def drawn(acquisition: Acquisition, *, count: int = 3, seed: int = 0, size: int = 16) -> Batch:
    source = Source(smooth_volume(0, 40), (0, 1, 2))
    return draw_batch([source], acquisition, np.random.default_rng(seed), count=count, size=size)


@pytest.fixture
def tiny_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` with a tiny network and no simulation."""

    def source(seed: int, side: int) -> Source:
        return Source(smooth_volume(seed, side).half(), (0, 1, 2))

    monkeypatch.setattr(training, "simulated_source", source)


# --- one step ---


@pytest.mark.parametrize(
    "acquisition",
    [
        pytest.param(Acquisition.uniform(6), id="disjoint"),
        pytest.param(Acquisition.uniform(6, 4), id="overlapping"),
        pytest.param(Acquisition.uniform(4, 7), id="gaps"),
    ],
)
def test_interpolate_windows_is_the_interpolation_of_the_stack(acquisition: Acquisition) -> None:
    s, stride = acquisition.step_length, acquisition.stride
    operator = AxialProjection(4 * stride + s, s, stride=stride)
    stack = torch.rand((5, 3, 3), generator=torch.Generator().manual_seed(1))
    whole = operator.interpolate(stack)
    slices = torch.arange(operator.depth)
    positions = (slices - operator.centres[CONTEXT]).float()
    got = interpolate_windows(stack[None], positions[None], stride)[0]
    torch.testing.assert_close(got, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "acquisition",
    [
        pytest.param(Acquisition.uniform(6), id="disjoint"),
        pytest.param(Acquisition.uniform(5), id="odd"),
        pytest.param(Acquisition.uniform(4, 6), id="gaps"),
        pytest.param(Acquisition.uniform(4, 7), id="odd gaps"),
        pytest.param(Acquisition(5, 5, torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])), id="weighted"),
    ],
)
def test_project_out_is_what_consistency_leaves(acquisition: Acquisition) -> None:
    """Against `AxialProjection.consistent`, sample by sample, mirrored windows among them."""
    s, stride = acquisition.step_length, acquisition.stride
    batch = drawn(acquisition, count=8)
    error = torch.randn((8, stride, 4, 4), generator=torch.Generator().manual_seed(2))
    left = _project_out(error, batch, acquisition)
    assert left.shape == error.shape
    for b, positions in enumerate(batch.positions[:, 1:-1]):
        first = int((positions + (s - 1) / 2).abs().argmin())
        operator = AxialProjection(stride, s, weights=acquisition.weights, start=first, count=1)
        expected = operator.consistent(error[b], torch.zeros(1, 4, 4))
        torch.testing.assert_close(left[b], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stride", [4, 6])
def test_skewed_weights_can_be_trained_with(stride: int) -> None:
    """A user's axial weights need not be symmetric about the middle of the window."""
    acquisition = Acquisition(4, stride, torch.tensor([0.5, 0.3, 0.15, 0.05]))
    generator = torch.Generator().manual_seed(0)
    batch = drawn(acquisition, count=6)
    error, reference, _ = training_loss(Denoiser(TINY), batch, acquisition, SCHEDULE, generator)
    assert float(error.detach()) == pytest.approx(float(reference), rel=1e-5)


def test_project_out_leaves_zero_mean() -> None:
    acquisition = Acquisition.uniform(6)
    error = torch.randn((3, 6, 4, 4), generator=torch.Generator().manual_seed(3)) + 1.0
    left = _project_out(error, drawn(acquisition), acquisition)
    assert float(left.mean(dim=1).abs().max()) < 1e-6
    again = _project_out(left, drawn(acquisition), acquisition)
    torch.testing.assert_close(again, left, rtol=0, atol=1e-5)


def test_project_out_leaves_overlapping_windows_alone() -> None:
    acquisition = Acquisition.uniform(6, 4)
    error = torch.randn((3, 4, 4, 4))
    assert torch.equal(_project_out(error, drawn(acquisition), acquisition), error)


def test_noisy_windows_count_with_their_means() -> None:
    """Hard consistency would copy the noise, so it must not hide what a network makes of it."""
    acquisition, batch = Acquisition.uniform(6), drawn(Acquisition.uniform(6))
    brighter = replace(batch, windows=batch.windows + 0.1)  # 0.2 of the network's [-1, 1]
    generator = torch.Generator().manual_seed(0)
    hard, whole = (
        training_loss(Denoiser(TINY), brighter, acquisition, SCHEDULE, generator, hard=hard)
        for hard in (True, False)
    )
    assert float(whole.error.detach()) > float(hard.error.detach()) + 0.03
    assert float(whole.error.detach()) == pytest.approx(float(whole.reference), rel=1e-5)


def test_a_fresh_network_is_as_wrong_as_interpolation() -> None:
    acquisition = Acquisition.uniform(6)
    generator = torch.Generator().manual_seed(0)
    error, reference, _ = training_loss(
        Denoiser(TINY), drawn(acquisition), acquisition, SCHEDULE, generator
    )
    assert float(reference) > 1e-6
    assert float(error.detach()) == pytest.approx(float(reference), rel=1e-5)
    assert error.requires_grad and not reference.requires_grad


def test_training_loss_is_seeded() -> None:
    acquisition, batch = Acquisition.uniform(6), drawn(Acquisition.uniform(6))
    torch.manual_seed(0)
    denoiser = Denoiser(TINY)
    with torch.no_grad():
        denoiser.head.conv_out.weight.normal_(0, 0.3)
    errors = [
        float(
            training_loss(
                denoiser, batch, acquisition, SCHEDULE, torch.Generator().manual_seed(seed)
            )[0].detach()
        )
        for seed in (1, 1, 2)
    ]
    assert errors[0] == errors[1] != errors[2]


def test_noise_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, noise, gamma = _draw_levels(4000, SCHEDULE, generator, 0.5).unbind(1)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones(4000), rtol=0, atol=1e-5)
    highest = SCHEDULE.level(SCHEDULE.steps)
    at_the_start = (noise - highest.noise).abs() < 1e-7
    assert 0.45 < float(at_the_start.float().mean()) < 0.56
    assert float(noise.min()) > 0  # never the clean volume itself
    assert 0.25 < float((gamma == 0).float().mean()) < 0.35
    assert float(gamma.min()) >= 0 and float(gamma.max()) > 0.9


def test_dropout_hides_the_features() -> None:
    """With all features dropped the projections reach the network as base and prior only."""
    acquisition, batch = Acquisition.uniform(6), drawn(Acquisition.uniform(6))
    torch.manual_seed(0)
    denoiser = Denoiser(TINY)
    with torch.no_grad():
        denoiser.head.conv_out.weight.normal_(0, 0.3)
    for dropout, felt in ((1.0, False), (0.0, True)):
        denoiser.zero_grad()
        generator = torch.Generator().manual_seed(0)
        training_loss(denoiser, batch, acquisition, SCHEDULE, generator, dropout=dropout)[
            0
        ].backward()
        gradient = denoiser.encoder.conv_in.weight.grad
        assert gradient is not None
        assert (float(gradient.abs().max()) > 0) == felt


def test_loss_decreases_on_a_fixed_problem() -> None:
    acquisition = Acquisition.uniform(6)
    batch = drawn(acquisition, count=4, size=16)
    torch.manual_seed(0)
    denoiser = Denoiser(TINY)
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    ratios = []
    for _ in range(40):
        generator = torch.Generator().manual_seed(5)
        error, reference, _ = training_loss(denoiser, batch, acquisition, SCHEDULE, generator)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        ratios.append(float(error.detach() / reference))
    assert ratios[0] == pytest.approx(1.0, rel=1e-4)
    assert ratios[-1] < 0.8


# --- a run ---


def contents(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def same(first: Path, second: Path) -> bool:
    a, b = contents(first), contents(second)
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def stop_after(steps: int) -> training.ProgressCallback:
    def callback(event: ProgressEvent) -> bool:
        return not (event.stage == "train" and event.done >= steps)

    return callback


@pytest.mark.usefixtures("tiny_run")
@pytest.mark.parametrize("stopped_after", [2, 3])
def test_resumed_equals_uninterrupted(tmp_path: Path, stopped_after: int) -> None:
    """Bit for bit, also where steps after the last checkpoint were lost."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert train(whole, config=RECIPE, progress=False) == whole
    with pytest.raises(Cancelled):
        train(parts, config=RECIPE, progress=False, callback=stop_after(stopped_after))
    assert not same(whole, parts)
    torch.rand(17)  # whatever else the process drew in between
    train(parts, config=RECIPE, progress=False, resume=True)
    assert same(whole, parts)
    assert same(whole.with_suffix(".state.safetensors"), parts.with_suffix(".state.safetensors"))


@pytest.mark.usefixtures("tiny_run")
def test_what_a_run_writes(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    train(path, config=RECIPE, progress=False)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["net.safetensors", "net.state.safetensors"]
    loaded = load_denoiser(path)
    torch.manual_seed(RECIPE.seed)
    start = Denoiser(TINY).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in loaded.state_dict().items())
    state = contents(path.with_suffix(".state.safetensors"))
    average = {name: state[f"average.{name}"] for name in loaded.state_dict()}
    assert all(torch.equal(average[name], value) for name, value in loaded.state_dict().items())
    weights = [name for name in average if not torch.equal(average[name], state[f"weight.{name}"])]
    assert weights  # the average is not merely the last weights

    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        card = file.metadata()
    assert card["step"] == "4" and '"learning_rate"' in card["recipe"]


@pytest.mark.usefixtures("tiny_run")
def test_seeds(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        train(path, config=replace(RECIPE, steps=2, seed=seed), progress=False)
    assert same(paths[0], paths[1])
    assert not same(paths[0], paths[2])


@pytest.mark.usefixtures("tiny_run")
def test_a_run_may_start_from_weights(tmp_path: Path) -> None:
    first = train(tmp_path / "first.safetensors", config=RECIPE, progress=False)
    # no step of a learning rate worth mentioning: what comes out is what went in
    still = replace(RECIPE, steps=1, learning_rate=1e-12, averaging=0.0, seed=5)
    second = train(tmp_path / "b.safetensors", config=still, start_from=first, progress=False)
    begun, ended = load_denoiser(first).state_dict(), load_denoiser(second).state_dict()
    for name, value in begun.items():
        torch.testing.assert_close(ended[name], value, rtol=0, atol=1e-4)
    other = train(tmp_path / "c.safetensors", config=still, progress=False)
    distant = load_denoiser(other).state_dict()
    assert any((distant[name] - value).abs().max() > 1e-2 for name, value in begun.items())
    with pytest.raises(InputError, match=r"^start_from: expected an existing"):
        train(tmp_path / "d.safetensors", config=still, start_from=tmp_path / "no", progress=False)


@pytest.mark.usefixtures("tiny_run")
def test_the_doubt_alone_can_be_trained(tmp_path: Path) -> None:
    first = train(tmp_path / "first.safetensors", config=RECIPE, progress=False)
    doubt = replace(RECIPE, only_doubt=True, learning_rate=1e-2)
    second = train(tmp_path / "b.safetensors", config=doubt, start_from=first, progress=False)
    before, after = contents(first), contents(second)
    changed = {name for name in before if (after[name] - before[name]).abs().max() > 1e-7}
    assert changed == {"head.conv_spread.weight", "head.conv_spread.bias"}


def test_the_stated_deviation_is_that_of_the_errors() -> None:
    """The doubt is least where the logarithm stated is that of the root mean square error."""
    acquisition = Acquisition.uniform(6)
    batch = drawn(acquisition, count=4, size=16)
    torch.manual_seed(0)
    denoiser = Denoiser(TINY)
    bias = denoiser.head.conv_spread.bias
    assert bias is not None
    with torch.no_grad():
        error = training_loss(
            denoiser, batch, acquisition, SCHEDULE, torch.Generator().manual_seed(5)
        ).error
        doubts = []
        for offset in (-0.1, 0.0, 0.1):
            bias.fill_(0.5 * float(error.log()) + offset)
            generator = torch.Generator().manual_seed(5)
            doubts.append(training_loss(denoiser, batch, acquisition, SCHEDULE, generator).doubt)
    assert doubts[1] < min(doubts[0], doubts[2])


@pytest.mark.usefixtures("tiny_run")
def test_a_finished_run_may_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    train(path, config=RECIPE, progress=False)
    before = contents(path)
    train(path, config=RECIPE, progress=False, resume=True)
    after = contents(path)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("tiny_run")
def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(InputError, match="^resume: expected a training state"):
        train(path, config=RECIPE, progress=False, resume=True)
    train(path, config=RECIPE, progress=False)
    before = path.read_bytes()
    with pytest.raises(InputError, match="^output: expected a path that does not exist"):
        train(path, config=RECIPE, progress=False)
    with pytest.raises(InputError, match="^resume: expected the recipe it was begun with"):
        train(path, config=replace(RECIPE, learning_rate=1e-4), progress=False, resume=True)
    assert path.read_bytes() == before
    state = path.with_suffix(".state.safetensors")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="^resume: expected a safetensors state"):
        train(path, config=RECIPE, progress=False, resume=True)


@pytest.mark.parametrize("name", ["net.pt", "net", "absent/net.safetensors"])
def test_bad_outputs(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="^output: expected"):
        train(tmp_path / name, config=RECIPE, progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("volumes", 0),
        ("side", 63),
        ("size", 8),
        ("checkpoint", 0),
        ("seed", -1),
        ("seed", 1000),
    ],
)
def test_bad_recipes(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected") as error:
        TrainingConfig(**{name: value})  # type: ignore[arg-type]
    assert error.value.argument == name


@pytest.mark.usefixtures("tiny_run")
def test_simulating_may_be_cancelled(tmp_path: Path) -> None:
    seen: list[ProgressEvent] = []

    def callback(event: ProgressEvent) -> bool:
        seen.append(event)
        return False

    with pytest.raises(Cancelled, match="^simulate"):
        train(tmp_path / "net.safetensors", config=RECIPE, progress=False, callback=callback)
    assert len(seen) == 1 and seen[0].total == RECIPE.volumes
    assert list(tmp_path.iterdir()) == []


def test_simulated_sources() -> None:
    """Projections of any source span about [0, 1]; validation seeds are out of training's reach."""
    source = simulated_source(3, 64)
    assert source.volume.shape == (64, 64, 64) and source.depth_axes == (0, 1, 2)
    windows = source.volume[:60].float().unflatten(0, (-1, 6)).mean(1)
    low, high = np.percentile(windows.numpy(), [0.1, 99.9])
    assert low == pytest.approx(0.0, abs=2e-3) and high == pytest.approx(1.0, abs=2e-3)
    assert torch.equal(simulated_source(3, 64).volume, source.volume)
    most = 999 * 100_000 + TrainingConfig().volumes
    assert most < training.VALIDATION_SEED
