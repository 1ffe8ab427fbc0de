"""The sweeps: what they compare, what they leave, and that a killed one goes on to the same end."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microdiffusion_fast import experiments_methods, experiments_networks, metrics
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.experiments import Sweep, sweep_gamma, sweep_step_length
from microdiffusion_fast.paper_recipe import PaperTraining
from microdiffusion_fast.paper_unet import PaperConfig
from microdiffusion_fast.progress import Cancelled, ProgressEvent
from microdiffusion_fast.reconstruct import reconstruct

SIMPLE = ["nearest", "interpolation", "interpolation+consistency", "inr", "fast"]
FINAL = ("results.csv", "results.json", "figure.png", "figure.pdf", "sweep.json")
QUICK: dict[str, Any] = {"adapt": False, "inr_steps": 2}


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    z, y, x = np.mgrid[:16, :16, :24]
    tube = np.exp(-((y - 8) ** 2 + (x - 4 - z) ** 2) / 6.0)
    noise = np.random.default_rng(0).normal(0, 0.01, tube.shape)
    return (900 * (tube + noise)).astype(np.float32)


@pytest.fixture(scope="module")
def lengths(truth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("sweeps") / "lengths"
    return sweep_step_length(truth, folder, step_lengths=(4, 2), **QUICK)


@pytest.fixture(scope="module")
def gammas(truth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("sweeps") / "gammas"
    return sweep_gamma(truth, folder, **GAMMA)


GAMMA: dict[str, Any] = {
    "gammas": (0.5, 0),
    "gamma_schedules": ("constant", "late-release"),
    "step_length": 4,
    "steps": 2,
    "consistency": "off",
    **QUICK,
}


def final(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FINAL}


def without_clock(folder: Path) -> dict[str, Any]:
    """`metrics.json` without what no two runs share."""
    record = json.loads((folder / "metrics.json").read_text())
    for row in record["rows"]:
        row.pop("seconds", None)
    return {key: value for key, value in record.items() if key not in ("seconds", "machine")}


def test_step_lengths(lengths: Sweep, truth: np.ndarray) -> None:
    found = [(row["step_length"], row["method"]) for row in lengths.rows]
    assert found == [(length, method) for length in (2, 4) for method in SIMPLE]
    row = next(r for r in lengths.rows if r["step_length"] == 4 and r["method"] == "fast")
    assert (row["speed_up"], row["projections"]) == (4, 4)
    # the row is what `reconstruct` gives for these projections, scored against the volume
    clipped = np.clip(truth, *metrics.intensity_window(truth))
    images = clipped.reshape(4, 4, 16, 24).mean(axis=1)
    direct = reconstruct(images, step_length=4, **QUICK).volume
    window = metrics.intensity_window(truth)
    expected = metrics.evaluate(direct, clipped, intensity=window).as_dict()
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)


def test_gammas(gammas: Sweep) -> None:
    found = [(row["gamma_schedule"], row["gamma"], row["method"]) for row in gammas.rows]
    chains = ["fast-chain", "fast-chain+consistency"]
    baselines = [(None, None, method) for method in SIMPLE]
    swept = [(k, g, m) for k in ("constant", "late-release") for g in (0.0, 0.5) for m in chains]
    assert found == baselines + swept
    by_key = {(r["gamma_schedule"], r["gamma"], r["method"]): r["psnr"] for r in gammas.rows}
    # gamma 0 knows no schedule; gamma 0.5 does something; consistency helps a chain without it
    assert by_key["constant", 0.0, chains[0]] == by_key["late-release", 0.0, chains[0]]
    assert by_key["constant", 0.5, chains[0]] != by_key["constant", 0.0, chains[0]]
    assert by_key["constant", 0.5, chains[0]] != by_key["late-release", 0.5, chains[0]]
    assert by_key["constant", 0.5, chains[1]] > by_key["constant", 0.5, chains[0]]


@pytest.mark.parametrize("which", ["lengths", "gammas"])
def test_the_files_agree(which: str, request: pytest.FixtureRequest) -> None:
    made: Sweep = request.getfixturevalue(which)
    rows = [dict(row) for row in made.rows]
    assert json.loads((made.folder / "results.json").read_text())["rows"] == rows
    with (made.folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    written = [{key: "" if v is None else str(v) for key, v in row.items()} for row in rows]
    assert table == written
    record = json.loads((made.folder / "metrics.json").read_text())
    assert record == made.metrics and record["shape"] == [16, 16, 24]
    assert [{key: row[key] for key in rows[0]} for row in record["rows"]] == rows
    chain = next(row for row in record["rows"] if row["method"].startswith("fast"))
    assert chain["seconds"] > 0
    assert (made.folder / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert (made.folder / "figure.pdf").read_bytes()[:4] == b"%PDF"


def test_a_finished_sweep_computes_nothing(
    gammas: Sweep, truth: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, scored = final(gammas.folder), without_clock(gammas.folder)
    for name in ("reconstruct", "fit_inr", "adapt"):
        monkeypatch.setattr(experiments_networks, name, lambda *a, **k: pytest.fail("computed"))
    monkeypatch.setattr(experiments_methods, "baselines", lambda stack: dict.fromkeys(SIMPLE[:3]))
    again = sweep_gamma(truth, gammas.folder, **GAMMA)
    assert again.rows == gammas.rows
    assert final(gammas.folder) == before and without_clock(gammas.folder) == scored


def test_a_longer_list_computes_what_is_new(
    lengths: Sweep, truth: np.ndarray, tmp_path: Path
) -> None:
    seen: list[ProgressEvent] = []
    part = tmp_path / "part"
    sweep_step_length(truth, part, step_lengths=(4,), **QUICK)
    whole = sweep_step_length(
        truth, part, step_lengths=(2, 4), **QUICK, callback=lambda event: seen.append(event)
    )
    assert whole.rows == lengths.rows and final(part) == final(lengths.folder)
    assert {event.total for event in seen} == {1}  # one computation was missing
    assert any(event.note.startswith("step length 2: sample 1/1") for event in seen)


def test_a_damaged_cell_is_computed_again(truth: np.ndarray, tmp_path: Path) -> None:
    made = sweep_step_length(truth, tmp_path / "out", step_lengths=(8,), **QUICK)
    before = final(made.folder)
    cells = sorted((made.folder / "cells").iterdir())
    assert len(cells) == len(SIMPLE)
    cells[0].write_bytes(cells[0].read_bytes()[:100])
    cells[1].write_bytes(b"")
    # a sound file in the wrong place is not taken for the right one
    cells[2].write_bytes(cells[3].read_bytes())
    assert sweep_step_length(truth, made.folder, step_lengths=(8,), **QUICK).rows == made.rows
    assert final(made.folder) == before


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from microdiffusion_fast import experiments, experiments_results, experiments_store

def die(): os.kill(os.getpid(), signal.SIGKILL)

where, truth, folder = sys.argv[1:]
written, drawn, kept = experiments_store.write_tensors, experiments_results.save, []

def write(path, tensors, metadata):
    kept.append(path)
    if where == "inside a cell" and len(kept) == 3:
        path.with_name(path.name + ".partial").write_bytes(b"half")
        die()
    written(path, tensors, metadata)
    if where == "after a cell" and len(kept) == 4:
        die()

def save(page, path):
    if where == "in the figure":
        path.write_bytes(b"half")
        die()
    return drawn(page, path)

experiments_store.write_tensors, experiments_results.save = write, save
options = dict(gammas=(0.5, 0), gamma_schedules=("constant", "late-release"), step_length=4)
experiments.sweep_gamma(
    np.load(truth), Path(folder), **options, steps=2, consistency="off", adapt=False, inr_steps=2
)
"""


def test_killed_again_and_again(gammas: Sweep, truth: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "truth.npy", truth)
    out, finished = tmp_path / "out", 0
    for where in ("after a cell", "inside a cell", "in the figure"):
        line = [sys.executable, "-c", KILLED, where, tmp_path / "truth.npy", out]
        run = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
        assert run.returncode == -9, run.stderr
        before, finished = finished, len(list((out / "cells").glob("*.safetensors")))
        assert finished > before and not (out / "results.csv").exists()
    assert sweep_gamma(truth, out, **GAMMA).rows == gammas.rows
    assert final(out) == final(gammas.folder)
    assert without_clock(out) == without_clock(gammas.folder)
    names = {path.name for path in out.iterdir()}
    assert names == {
        *FINAL,
        "metrics.json",
        "report.html",
        "cells",
    }  # nothing of the killed runs is left
    assert not list((out / "cells").glob("*.partial"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"inr_steps": 3}, "inr_steps 2, not 3"),
        ({"steps": 3}, "steps 2, not 3"),
        ({"step_length": 2}, "step_length 4, not 2"),
        ({"consistency": "hard"}, "consistency off, not hard"),
    ],
)
def test_other_settings_are_refused(
    change: dict[str, Any], named: str, gammas: Sweep, truth: np.ndarray
) -> None:
    before = final(gammas.folder)
    with pytest.raises(InputError, match=named):
        sweep_gamma(truth, gammas.folder, **{**GAMMA, **change})
    assert final(gammas.folder) == before


def test_another_volume_or_experiment_is_refused(gammas: Sweep, truth: np.ndarray) -> None:
    with pytest.raises(InputError, match="sha256"):
        sweep_gamma(truth[:, ::-1], gammas.folder, **GAMMA)
    with pytest.raises(InputError, match="experiment gamma, not step-length"):
        sweep_step_length(truth, gammas.folder, step_lengths=(2,), **QUICK)


def test_folders_of_others_are_refused(truth: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for name, words in (("file", "is a file"), ("full", "holds thesis.txt")):
        with pytest.raises(InputError, match=words):
            sweep_step_length(truth, tmp_path / name, step_lengths=(2,), **QUICK)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_cancelled_between_cells_and_one_at_a_time(
    lengths: Sweep, truth: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def stop(event: ProgressEvent) -> bool:
        if event.done == 1:
            with pytest.raises(InputError, match="another sweep is at work"):
                sweep_step_length(truth, out, step_lengths=(2, 4), **QUICK)
        return event.done < 1

    with pytest.raises(Cancelled):
        sweep_step_length(truth, out, step_lengths=(2, 4), **QUICK, callback=stop)
    assert len(list((out / "cells").iterdir())) == len(SIMPLE)
    assert sweep_step_length(truth, out, step_lengths=(2, 4), **QUICK).rows == lengths.rows


def test_the_adapted_denoiser_is_shared(
    truth: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One adaptation for all gammas, and the same volume as if `reconstruct` had made its own."""
    tall = np.tile(truth, (2, 2, 2))[:, :32, :32]
    trained = []
    real = experiments_networks.adapt

    def adapt(*arguments: Any, **options: Any) -> Any:
        trained.append(options["options"].steps)
        return real(*arguments, **options)

    monkeypatch.setattr(experiments_networks, "adapt", adapt)
    short: dict[str, Any] = {"step_length": 2, "adapt_steps": 1, "inr_steps": 2}
    made = sweep_gamma(tall, tmp_path / "out", gammas=(0.1, 0.3), steps=1, **short)
    assert trained == [1]
    clipped = np.clip(tall, *metrics.intensity_window(tall))
    images = clipped.reshape(16, 2, 32, 32).mean(axis=1)
    direct = reconstruct(images, gamma=0.3, steps=1, **short).volume
    window = metrics.intensity_window(tall)
    expected = metrics.evaluate(direct, clipped, intensity=window).as_dict()
    row = next(r for r in made.rows if r["gamma"] == 0.3)
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's network, too small to learn anything, and quick."""
    network = PaperConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4)
    real = experiments_networks.PaperNetwork._recipe

    def recipe(self: experiments_networks.PaperNetwork) -> PaperTraining:
        return replace(real(self), network=network, batch=2)

    monkeypatch.setattr(experiments_networks.PaperNetwork, "_recipe", recipe)


@pytest.mark.usefixtures("small_network")
def test_the_paper_preset_beside_the_others(
    lengths: Sweep, truth: np.ndarray, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"preset": "paper", "train_steps": 1, **QUICK}
    made = sweep_step_length(truth, tmp_path / "out", step_lengths=(4,), **options)
    assert [row["method"] for row in made.rows] == [*SIMPLE, "fourier-inr", "paper"]
    simple = [row for row in lengths.rows if row["step_length"] == 4]
    assert list(made.rows[: len(SIMPLE)]) == simple
    paper = made.metrics["rows"][-1]
    assert paper["steps"] == 8 and paper["seconds"] > 0  # exact at gamma 0.9
    assert not list((tmp_path / "out" / "cells").glob("training*"))


@pytest.mark.usefixtures("small_network")
def test_the_paper_preset_trains_at_every_gamma_and_resumes(
    truth: np.ndarray, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "gammas": (0.0, 0.9),
        "step_length": 4,
        "preset": "paper",
        "steps": 1,
        "train_steps": 4,
        **QUICK,
    }
    whole = sweep_gamma(truth[:8, :, :16], tmp_path / "whole", **options)
    methods = [row["method"] for row in whole.rows]
    assert methods == [*SIMPLE, "fourier-inr", *(["paper", "paper+consistency"] * 2)]
    assert not list((whole.folder / "cells").glob("training*"))  # used and gone

    def stop(event: ProgressEvent) -> bool:
        return "gamma 0.9: train 3" not in event.note

    with pytest.raises(Cancelled):
        sweep_gamma(truth[:8, :, :16], tmp_path / "part", **options, callback=stop)
    assert list((tmp_path / "part" / "cells").glob("training-gamma-0.9.state*"))
    part = sweep_gamma(truth[:8, :, :16], tmp_path / "part", **options)
    assert part.rows == whole.rows and final(part.folder) == final(whole.folder)
