"""`sweep` on the command line: its tables, and one line for everything a user can get wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from microdiffusion_fast import cli
from microdiffusion_fast.io import write_volume

BAD: dict[str, tuple[str, Sequence[object], str]] = {
    "no numbers": ("step-length", ("--step-lengths", "two"), "--step-lengths"),
    "no whole numbers": ("step-length", ("--step-lengths", "2.5"), "--step-lengths"),
    "step length 1": ("step-length", ("--step-lengths", "1,2"), "--step-lengths"),
    "step length too long": ("step-length", ("--step-lengths", "2,13"), "--step-lengths"),
    "step length infinite": ("step-length", ("--step-lengths", "inf"), "--step-lengths"),
    "nothing": ("step-length", ("--step-lengths", ""), "--step-lengths"),
    "gamma above 1": ("gamma", ("--gammas", "0,1.5"), "--gammas"),
    "gamma not a number": ("gamma", ("--gammas", "nan"), "--gammas"),
    "schedule unknown": ("gamma", ("--gamma-schedules", "constant,steep"), "--gamma-schedules"),
    "steps 0": ("gamma", ("--steps", 0), "--steps"),
    "steps a word": ("gamma", ("--steps", "all"), "--steps"),
    "steps beyond the schedule": ("gamma", ("--steps", 1001), "--steps"),
    "step length of gamma": ("gamma", ("--step-length", 13), "--step-length"),
    "training without paper": ("gamma", ("--train-steps", 5), "--train-steps"),
    "training of 0": ("gamma", ("--preset", "paper", "--train-steps", 0), "--train-steps"),
    "preset unknown": ("step-length", ("--preset", "slow"), "--preset"),
    "consistency soft": ("gamma", ("--consistency", "soft"), "--consistency"),
    "device unknown": ("step-length", ("--device", "gpu"), "--device"),
    "blur too wide": ("step-length", ("--axial-blur", 30), "--axial-blur"),
    "INR of 0 steps": ("step-length", ("--inr-steps", 0), "--inr-steps"),
    "seed negative": ("gamma", ("--seed", -1), "--seed"),
}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    data = np.random.default_rng(0).random((24, 16, 16), dtype=np.float32)
    return write_volume(tmp_path / "volume.tif", data, voxel_size=(2.0, 0.5, 0.5))


def refused(arguments: Sequence[object], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert code == 2 and out == "", (code, out, err)
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0], err


@pytest.mark.parametrize(("which", "options", "named"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(
    which: str,
    options: Sequence[object],
    named: str,
    volume: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    refused(("sweep", which, volume, "-o", out, *options), named, capsys)
    assert not out.exists()


def test_bad_volumes_and_folders(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat, out = tmp_path / "flat.npy", tmp_path / "out"
    np.save(flat, np.ones((16, 16, 16), np.float32))
    for which in ("gamma", "step-length"):
        for path in (flat, tmp_path / "absent.tif", tmp_path):
            refused(("sweep", which, path, "-o", out), "VOLUME", capsys)
        refused(("sweep", which, volume, "-o", volume), "--output", capsys)
        refused(("sweep", which, volume, "-o", tmp_path), "--output", capsys)
        refused(("sweep", which, volume, "-o", "/proc/out"), "--output", capsys)
    assert not out.exists()


def test_it_ends_with_a_table(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["sweep", "step-length", volume, "-o", tmp_path / "out", "--step-lengths", "12"]
    quick = ["--no-adapt", "--inr-steps", 1]
    assert cli.run([str(word) for word in (*line, *quick)]) == 0
    out, _ = capsys.readouterr()
    assert "step length" in out and "PSNR dB" in out and "interpolation+consistency" in out
    assert f"wrote {tmp_path / 'out'}: figure.pdf, figure.png, metrics.json" in out
    # what is done is done, and another seed is another sweep
    assert cli.run([str(word) for word in (*line, *quick, "--quiet")]) == 0
    assert capsys.readouterr() == ("", "")
    refused((*line, *quick, "--seed", 1), "begun with seed 0, not 1", capsys)
