"""The sweep from disk to disk: the numbers of its parts run by hand, resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microdiffusion_fast import cli, experiments_stored
from microdiffusion_fast.demo_methods import baselines
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.experiments_interpolated import METHODS, interpolated
from microdiffusion_fast.experiments_results import Sweep
from microdiffusion_fast.experiments_stored import block_of, sweep_step_length_stored
from microdiffusion_fast.io import write_volume
from microdiffusion_fast.metrics_stream import evaluate_stored
from microdiffusion_fast.progress import Cancelled, ProgressEvent
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.simulate import simulate_projections
from microdiffusion_fast.store_source import StoredStack
from microdiffusion_fast.tiling_windows import Box, Span

MEMORY = "90MiB"
LENGTHS = (2, 4)
FILES = {"results.csv", "results.json", "metrics.json", "figure.png", "figure.pdf", "report.html"}
FILES |= {"sweep.json", "cells"}


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    z, y, x = np.mgrid[:19, :24, :32]
    tube = np.exp(-((y - 8) ** 2 + (x - 4 - z) ** 2) / 6.0)
    noise = np.random.default_rng(0).normal(0, 0.01, tube.shape)
    data = (900 * (tube + noise)).astype(np.float32)
    path = tmp_path_factory.mktemp("sweep") / "v.ome.zarr"
    return write_volume(path, data, voxel_size=(2.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def made(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return run(volume, tmp_path_factory.mktemp("sweep") / "out")


def run(volume: Path, output: Path, **options: Any) -> Sweep:
    given: dict[str, Any] = {"step_lengths": LENGTHS, "memory": MEMORY, "adapt": False}
    return sweep_step_length_stored(volume, output, **(given | options))


def by_hand(arguments: list[object]) -> None:
    assert cli.run([str(word) for word in (*arguments, "--memory", MEMORY)]) == 0


def test_the_numbers_are_those_made_by_hand(
    made: Sweep, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [(row["step_length"], row["method"]) for row in made.rows]
    assert found == [(length, method) for length in LENGTHS for method in (*METHODS, "fast")]
    stack, recon = tmp_path / "p.ome.zarr", tmp_path / "r.ome.zarr"
    by_hand(["simulate", volume, "-o", stack, "--step-length", 4, "-q"])
    by_hand(["reconstruct", stack, "-o", recon, "--no-adapt", "-q"])
    capsys.readouterr()
    by_hand(["evaluate", recon, volume, "--json"])
    scores = json.loads(capsys.readouterr().out)
    row = made.rows[-1]
    assert {key: row[key] for key in ("psnr", "ssim", "dice")} == {
        key: scores[key] for key in ("psnr", "ssim", "dice")
    }
    assert (row["speed_up"], row["projections"]) == (4, 4)
    # and those of the baselines are of the volumes in memory
    for name, baseline in baselines(Projections.from_any(stack)).items():
        np.save(tmp_path / "b.npy", baseline)
        expected = evaluate_stored(tmp_path / "b.npy", volume).as_dict()
        (row,) = (r for r in made.rows if (r["step_length"], r["method"]) == (4, name))
        assert {key: row[key] for key in expected} == expected


def test_what_it_leaves(made: Sweep, volume: Path, tmp_path: Path) -> None:
    assert {path.name for path in made.folder.iterdir()} == FILES  # no volumes
    assert made.metrics["shape"] == [19, 24, 32] and made.metrics["rows"][3]["seconds"] > 0
    kept = run(volume, tmp_path / "kept", step_lengths=(4,), keep=True)
    assert {path.name for path in kept.folder.iterdir()} == FILES | {"volumes"}
    place = kept.folder / "volumes" / "step-length-04"
    names = {"of.json", "projections.ome.zarr", "reconstruction.ome.zarr"}
    assert {path.name for path in place.iterdir()} == names
    again = evaluate_stored(place / "reconstruction.ome.zarr", volume).as_dict()
    row = next(row for row in made.rows if (row["step_length"], row["method"]) == (4, "fast"))
    assert {key: row[key] for key in again} == again
    # a longer list without it: what was kept stays, and nothing else does
    longer = run(volume, kept.folder)
    assert longer.rows == made.rows
    assert [path.name for path in place.parent.iterdir()] == ["step-length-04"]


@pytest.mark.parametrize("stage", ["project", "reconstruct", "end"])
def test_stopped_and_gone_on(
    stage: str, made: Sweep, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it ends: the same tables, and what was made is not made again."""
    out = tmp_path / "out"
    if stage == "end":  # before the volumes of a step length are removed
        monkeypatch.setattr(
            "microdiffusion_fast.experiments_volumes._remove", lambda folder: sys.exit(9)
        )

    def stop(event: ProgressEvent) -> bool:
        return f"step length 4: {stage}" not in event.note

    with pytest.raises((Cancelled, SystemExit)):
        run(volume, out, callback=stop)
    assert not (out / "results.csv").exists()
    done = "02" if stage == "end" else "04"
    left = [path.name for path in (out / "volumes" / f"step-length-{done}").iterdir()]
    assert ("projections.ome.zarr" in left) is (stage != "project")
    monkeypatch.undo()
    if stage != "project":
        real = experiments_stored.simulate_stored

        def simulate(truth: Any, path: Path, **options: Any) -> Any:
            assert path.parent.name != f"step-length-{done}"
            return real(truth, path, **options)

        monkeypatch.setattr(experiments_stored, "simulate_stored", simulate)
    assert run(volume, out).rows == made.rows
    assert {path.name for path in out.iterdir()} == FILES
    assert (out / "results.csv").read_bytes() == (made.folder / "results.csv").read_bytes()


def test_other_settings_and_folders_are_refused(made: Sweep, volume: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="begun with seed 0, not 1"):
        run(volume, made.folder, seed=1)
    other = tmp_path / "v.npy"
    np.save(other, np.random.default_rng(1).random((19, 24, 32), dtype=np.float32))
    with pytest.raises(InputError, match="^-o/--output: .* begun with"):
        run(other, made.folder)
    mine = tmp_path / "out" / "volumes" / "step-length-02"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="^-o/--output: expected a new or empty folder"):
        run(volume, tmp_path / "out")
    assert (mine / "thesis.txt").read_text() == "mine"
    # those of another sweep, which has no cells yet, are made anew
    (mine / "thesis.txt").rename(mine / "of.json")
    (mine / "of.json").write_text('{"sweep": "another"}')
    (mine / "projections.ome.zarr").mkdir()
    assert run(volume, tmp_path / "out").rows == made.rows


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--step-lengths", "2,20"), "--step-lengths"),
        (("--step-lengths", "1"), "--step-lengths"),
        (("--memory", "much"), "--memory"),
        (("--memory", "1kB"), "--memory"),
        (("--preset", "paper"), "--preset"),
        (("--inr-steps", 5), "--inr-steps: expected none with --memory"),
        (("--device", "gpu"), "--device"),
        (("-o", "/proc/out"), "--output"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[object, ...], named: str, volume: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    line: list[object] = ["sweep", "step-length", volume, "-o", tmp_path / "out"]
    line += ["--memory", MEMORY, "--step-lengths", "2", *options]
    assert cli.run([str(word) for word in line]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: "), err
    assert named in err


def test_bad_volumes_are_one_line(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat, nan = tmp_path / "flat.npy", np.ones((16, 16, 16), np.float32)
    np.save(flat, nan)
    nan[3, 4, 5] = np.nan
    np.save(tmp_path / "nan.npy", nan)
    for path in (flat, tmp_path / "nan.npy", tmp_path / "absent.tif"):
        line = ["sweep", "step-length", path, "-o", tmp_path / "out", "--memory", MEMORY]
        assert cli.run([str(word) for word in line]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: VOLUME: ") and err.count("\n") == 1, err
    line = ["sweep", "step-length", volume, "-o", volume / "out", "--memory", MEMORY]
    assert cli.run([str(word) for word in line]) == 2
    assert "--output: expected a place outside the input" in capsys.readouterr().err
    line = ["sweep", "step-length", volume, "-o", tmp_path / "out", "--keep"]
    assert cli.run([str(word) for word in line]) == 2
    assert "--keep: expected --memory with it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 6), st.integers(2, 7), st.integers(0, 5))
def test_interpolated_volumes_are_those_in_memory(
    data: st.DataObject, step: int, count: int, rest: int
) -> None:
    """Any block of them, bit by bit."""
    depth = step * count + min(rest, step - 1)
    truth = np.random.default_rng(depth).random((depth, 9, 11), dtype=np.float32)
    stack = simulate_projections(truth, step_length=step)
    images = stack.images.numpy()
    stored = StoredStack(
        Path("-"), (count, 9, 11), images.dtype, lambda box: images[box.slices], (4, 9, 11)
    )
    start = data.draw(st.integers(0, depth - 1))
    stop = data.draw(st.integers(start + 1, depth))
    box = Box(Span(start, stop), Span(2, 9), Span(0, 7))
    made = interpolated(stored, depth, step)
    for name, expected in baselines(stack).items():
        np.testing.assert_array_equal(made[name].read(box), expected[box.slices])


def test_pictures_are_of_a_block_where_windows_begin() -> None:
    assert block_of((100, 90, 300)) == Box(Span(0, 100), Span(0, 90), Span(70, 230))
    block = block_of((1000, 300, 300))
    assert block == Box(Span(360, 480), Span(70, 230), Span(70, 230))
    assert all(block.z.start % length == 0 for length in experiments_stored.STEP_LENGTHS)
