"""`reconstruct(preset="paper")`: its defaults, its checkpoint, and what it refuses."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microdiffusion_fast import cli, paper_training, preset_paper
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.inr import FourierOptions
from microdiffusion_fast.paper_checkpoint import load_paper
from microdiffusion_fast.paper_recipe import PaperTraining
from microdiffusion_fast.paper_training import train_paper
from microdiffusion_fast.paper_unet import PaperConfig
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.reconstruct import Reconstruction, reconstruct

TINY = PaperConfig(
    channels=8, multipliers=(1, 2), blocks=1, groups=4, position_features=4, image_features=8
)
RECIPE = PaperTraining(
    steps=3, batch=2, inr=FourierOptions(features=8, width=8, steps=3), network=TINY
)


def stack_of(seed: int = 0, **geometry: Any) -> Projections:
    images = torch.rand((4, 16, 16), generator=torch.Generator().manual_seed(seed))
    return Projections(images * 50 + 7, **{"step_length": 3, **geometry})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paper") / "net.safetensors"
    return train_paper(stack_of(), path, config=RECIPE, progress=False)


def run(
    checkpoint: Path | None, stack: Projections | None = None, **options: Any
) -> Reconstruction:
    stack = stack_of() if stack is None else stack
    return reconstruct(stack, preset="paper", denoiser=checkpoint, **options)


def test_defaults(checkpoint: Path) -> None:
    result = run(checkpoint, probe=False)
    wanted = {
        "preset": "paper",
        "steps": "exact",
        "sampler": "ddpm",
        "gamma": 0.9,
        "guidance": 1.8,
        "variance_mix": 0.3,
        "consistency": "off",
        "adapt": False,
        "prior": "Fourier INR",
        "chains": 1,
    }
    assert {name: result.parameters[name] for name in wanted} == wanted
    assert result.parameters["exact"]["steps"] == 8 and result.parameters["exact"]["of"] == 1000
    assert result.parameters["trained"] == {
        "steps": 3,
        "of": 3,
        "gamma": 0.9,
        "seed": 0,
        "on these projections": True,
    }
    assert set(result.timings) == {"prior", "sampling", "total"} and result.adaptation == {}
    low, high = result.parameters["intensity_range"]
    span = high - low
    assert result.volume.shape == (12, 16, 16) and np.isfinite(result.volume).all()
    # the final state is clipped to the range of the projections; the prior is the checkpoint's INR
    assert low - 1e-4 * span <= result.volume.min() and result.volume.max() <= high + 1e-4 * span
    rendered = load_paper(checkpoint).inr.render().numpy() * span + low
    np.testing.assert_allclose(result.prior, rendered, atol=1e-4 * span)
    again = run(checkpoint, probe=False)
    np.testing.assert_array_equal(result.volume, again.volume)
    assert not np.array_equal(result.volume, run(checkpoint, probe=False, seed=1).volume)


def test_a_probe_proves_it(checkpoint: Path) -> None:
    exact = run(checkpoint, tol=1e-5).parameters["exact"]
    assert exact["difference"] <= 1e-5 and exact["steps"] < 20


def test_hard_consistency_on_request(checkpoint: Path) -> None:
    stack = stack_of()
    result = run(checkpoint, consistency="hard", steps=3)
    projected = stack.operator(torch.from_numpy(result.volume))
    assert float((projected - stack.images).abs().max()) < 1e-4 * 50
    assert result.parameters["exact"] is None


def test_batch_size_changes_nothing(checkpoint: Path) -> None:
    one, many = (run(checkpoint, batch_size=size, probe=False).volume for size in (1, 12))
    np.testing.assert_allclose(one, many, atol=1e-3)


def test_another_gamma_is_said(checkpoint: Path) -> None:
    with pytest.warns(UserWarning, match=r"^gamma: .* trained with 0.9, the chain .* 0.5"):
        result = run(checkpoint, gamma=0.5, probe=False)
    assert result.parameters["gamma"] == 0.5 and result.parameters["trained"]["gamma"] == 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(checkpoint, gamma=0.9, steps=1)


def test_a_list_of_gammas_is_a_chain_of_that_length(checkpoint: Path) -> None:
    with pytest.warns(UserWarning, match="^gamma"):
        result = run(checkpoint, gamma=[0.9, 0.5])
    assert result.parameters["steps"] == 2 and result.parameters["exact"] is None


def test_other_projections_of_the_geometry_get_their_own_inr(checkpoint: Path) -> None:
    other = stack_of(1)
    with pytest.warns(UserWarning, match="^denoiser: was trained on other projections") as seen:
        result = run(checkpoint, other, steps=1)
    assert len(seen) == 1 and not result.parameters["trained"]["on these projections"]
    assert not np.allclose(result.prior, run(checkpoint, steps=1).prior, atol=1e-3)


def test_a_given_prior(checkpoint: Path) -> None:
    prior = np.full((12, 16, 16), 20.0, dtype=np.float32)
    result = run(checkpoint, prior=prior, steps=1)
    np.testing.assert_allclose(result.prior, prior, atol=1e-3)
    assert result.parameters["prior"] == "given"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapt": True}, "^adapt: expected None or False"),
        ({"adapt_steps": 5}, "^adapt_steps: expected None"),
        ({"axial_blur": 1.0}, "^axial_blur: expected None"),
        ({"inr_steps": 5}, "^inr_steps: expected None beside a checkpoint"),
        ({"train_steps": 5}, "^train_steps: expected None beside a checkpoint"),
        ({"gamma": 1e-4}, r"^gamma: expected a chain that forgets .*steps=1000 runs all"),
        ({"gamma": 1e-4, "steps": "exact"}, "^gamma: expected a chain that forgets"),
        ({"sampler": "ddim", "variance_mix": 0.3}, "^variance_mix: expected None"),
    ],
)
@pytest.mark.filterwarnings("ignore:gamma")
def test_refusals(checkpoint: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(checkpoint, **options)


def test_another_geometry_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="^denoiser: expected .* step_length 4, got .* 3"):
        run(checkpoint, stack_of(step_length=4))
    with pytest.raises(InputError, match="^denoiser: expected a checkpoint of format"):
        reconstruct(stack_of(), denoiser=checkpoint)  # the fast preset has another network


def test_without_a_checkpoint_it_trains_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[PaperTraining] = []

    def tiny(**options: Any) -> PaperTraining:
        made.append(replace(RECIPE, **options))
        return made[-1]

    monkeypatch.setattr(preset_paper, "PaperTraining", tiny)
    folders: list[Path] = []
    trainer = preset_paper.train_paper
    monkeypatch.setattr(
        preset_paper,
        "train_paper",
        lambda stack, path, **o: folders.append(path) or trainer(stack, path, **o),
    )
    result = run(None, train_steps=2, inr_steps=4, gamma=0.6, seed=5, probe=False, progress=True)
    assert result.parameters["denoiser"] == "trained here"
    assert result.parameters["trained"]["steps"] == 2 and result.parameters["trained"]["seed"] == 5
    assert made[-1].gamma == result.parameters["gamma"] == 0.6 and made[-1].inr.steps == 4
    assert result.timings["training"] > 0
    assert "training the paper's denoiser on this stack for 2 steps" in capsys.readouterr().err
    assert len(folders) == 1 and not folders[0].parent.exists()


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """train, train --resume, reconstruct, with the tiny network in place of the published one."""
    monkeypatch.setattr(paper_training, "PaperTraining", lambda **o: replace(RECIPE, **o))
    stack, net, out = tmp_path / "stack.tif", tmp_path / "net.safetensors", tmp_path / "out.tif"
    stack_of(voxel_size=(1.0, 1.0, 1.0)).save(stack)
    line = ["train", str(stack), "-o", str(net), "--preset", "paper", "--batch", "4"]
    line += ["--steps", "2", "--gamma", "0.8", "--checkpoint-steps", "1", "--seed", "3"]
    assert cli.run(line) == 0
    assert f"reconstruct {stack} -o OUT --preset paper --denoiser {net}" in capsys.readouterr().out
    made = load_paper(net)
    assert made.step == 2 and made.training.gamma == 0.8 and made.training.batch == 4
    assert made.training.checkpoint_steps == 1 and made.training.seed == 3
    assert cli.run(line) == 2 and "--overwrite" in capsys.readouterr().err
    assert cli.run([*line, "--resume"]) == 0
    assert cli.run([*line, "--gamma", "0.7", "--resume"]) == 2
    assert "--resume: expected the recipe it was begun with, gamma 0.8" in capsys.readouterr().err
    again = ["reconstruct", str(stack), "-o", str(out), "--preset", "paper", "--denoiser", str(net)]
    assert cli.run(again) == 0
    printed = capsys.readouterr().out
    assert "exact: the last" in printed and "adaptation" not in printed
    assert cli.run([*again, "--step-length", "4", "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --denoiser: expected a checkpoint") and said.count("\n") == 1
