"""Checkpoints of the published denoiser: what they hold, and which are refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from microdiffusion_fast.denoiser import Denoiser, save_denoiser
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.inr import FourierOptions
from microdiffusion_fast.paper_checkpoint import load_paper, loss_curve
from microdiffusion_fast.paper_recipe import PaperTraining, StackRecord, difference
from microdiffusion_fast.paper_training import train_paper
from microdiffusion_fast.paper_unet import PaperConfig
from microdiffusion_fast.projections import Projections

TINY = PaperConfig(
    channels=8, multipliers=(1, 2), blocks=1, groups=4, position_features=4, image_features=8
)
RECIPE = PaperTraining(
    steps=2, batch=2, inr=FourierOptions(features=8, width=8, steps=3), network=TINY, seed=3
)


def stack_of(seed: int = 0, *, count: int = 4, **geometry: Any) -> Projections:
    images = torch.rand((count, 16, 12), generator=torch.Generator().manual_seed(seed))
    return Projections(images, **{"step_length": 3, **geometry})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paper") / "net.safetensors"
    return train_paper(stack_of(), path, config=RECIPE, progress=False)


def test_what_is_read_is_what_was_written(checkpoint: Path) -> None:
    model = load_paper(checkpoint)
    assert model.training == RECIPE and model.step == 2
    assert model.stack == StackRecord.of(stack_of())
    assert not model.denoiser.training
    state = load_file(checkpoint.with_suffix(".state.safetensors"))
    for name, value in model.denoiser.state_dict().items():
        if "running" not in name and "batches" not in name:
            assert torch.equal(value, state[f"average.{name}"]), name
    prior = model.inr.render()
    assert prior.shape == (12, 16, 12) and bool(prior.isfinite().all())


def test_statistics_of_the_images_are_those_of_the_stack(checkpoint: Path) -> None:
    """The averaged weights have no statistics of their own: they are taken anew."""
    model = load_paper(checkpoint)
    low, high = model.stack.intensity
    images = (stack_of().images - low) / (high - low) * 2 - 1
    with torch.no_grad():
        first = model.denoiser.image_encoder.conv(images[:, None])
    torch.testing.assert_close(
        model.denoiser.image_encoder.norm.running_mean, first.mean((0, 2, 3)), rtol=0, atol=1e-5
    )


def test_the_card_can_be_read(checkpoint: Path) -> None:
    card = json.loads(checkpoint.with_suffix(".json").read_text())
    assert card["step"] == 2 and card["recipe"]["gamma"] == 0.9
    assert card["stack"]["step_length"] == 3 and card["stack"]["images"] == [4, 16, 12]
    assert len(card["stack"]["sha256"]) == 64 and card["versions"]["torch"] == torch.__version__
    assert card["schedule"] == {"steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    assert [part["steps"] for part in card["loss"]] == ["1-1", "2-2"]
    assert "--denoiser net.safetensors" in card["sample with"]


def test_loss_curve() -> None:
    curve = loss_curve([float(i) for i in range(100)])
    assert len(curve) == 20 and curve[1] == {"steps": "6-10", "mean": 7.0}
    assert loss_curve([]) == [] and loss_curve([0.5])[0]["mean"] == 0.5


def changed(path: Path, folder: Path, **card: Any) -> Path:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["card"]) | card
    new = folder / "changed.safetensors"
    save_file(load_file(path), new, {**metadata, "card": json.dumps(record)})
    return new


def test_files_that_are_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """One line each; a pickle is not opened, or it would leave a file."""
    trap = tmp_path / "trap"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trap,)

    pickled = tmp_path / "pickled.safetensors"
    pickled.write_bytes(pickle.dumps(Payload()))
    torch_made = tmp_path / "torch.safetensors"
    torch.save({"denoiser": Payload()}, torch_made)
    data = checkpoint.read_bytes()
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(data[: len(data) // 2])
    flipped = tmp_path / "flipped.safetensors"
    middle = len(data) // 2
    flipped.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    header = tmp_path / "header.safetensors"
    header.write_bytes(data[:20])
    other = tmp_path / "other.safetensors"
    save_denoiser(other, Denoiser())
    wider = asdict(replace(RECIPE, network=replace(TINY, channels=16)))
    bad = {
        "an existing": tmp_path / "absent.safetensors",
        "safetensors checkpoint": (pickled, torch_made, truncated, header, flipped),
        "train --preset paper": other,
        "tensors that its recipe asks for": changed(checkpoint, tmp_path, recipe=wider),
    }
    for expected, paths in bad.items():
        for path in paths if isinstance(paths, tuple) else (paths,):
            with pytest.raises(InputError, match=f"^denoiser: expected .*{expected}") as error:
                load_paper(path)
            assert "\n" not in str(error.value)
    for card in ({"recipe": {}}, {"stack": None}, {"step": "many"}, {"schedule": {"steps": 0}}):
        with pytest.raises(InputError, match="^net: expected the tensors"):
            load_paper(changed(checkpoint, tmp_path, **card), argument="net")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (stack_of(count=5), r"images \[5, 16, 12\], got one for images \[4, 16, 12\]"),
        (stack_of(step_length=4), "step_length 4, got one for step_length 3"),
        (stack_of(step_length=3, stride=2), "stride 2, got one for stride 3"),
        (stack_of(start=1), "start 1, got one for start 0"),
        (stack_of(depth=13), "depth 13, got one for depth 12"),
        (stack_of(weights=(0.25, 0.5, 0.25)), r"weights \[0.25, .*, got one for weights \[0.33"),
    ],
    ids=["images", "step length", "stride", "start", "depth", "weights"],
)
def test_another_geometry_is_refused(checkpoint: Path, other: Projections, said: str) -> None:
    with pytest.raises(InputError, match=f"^denoiser: expected .*geometry, {said}"):
        load_paper(checkpoint).serves(other)


def test_its_own_stack_and_another_of_its_geometry(checkpoint: Path) -> None:
    model = load_paper(checkpoint)
    assert model.serves(stack_of())
    assert model.serves(stack_of(weights=(1 / 3, 1 / 3, 1 / 3)))  # the mean, said in other words
    assert not model.serves(stack_of(1))


def test_difference() -> None:
    assert difference({"a": 1, "b": {"c": (1, 2)}}, {"a": 1, "b": {"c": [1, 2]}}) is None
    assert difference({"b": {"c": 1}}, {"b": {"c": 2}}) == ("b c 1", "b c 2")
    assert difference({}, {"a": 1}) == ("a None", "a 1")
