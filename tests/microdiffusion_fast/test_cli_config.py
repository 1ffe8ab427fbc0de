"""Settings in a file: read strictly, beaten by the line, and enough to repeat a run."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdiffusion_fast import cli, cli_config
from microdiffusion_fast.io import read_volume
from microdiffusion_fast.simulate import simulate_projections, simulate_volume

Run = Callable[..., tuple[int, str]]
RECONSTRUCT = ("reconstruct",)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line: exit code, stderr."""

    def once(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return code, capsys.readouterr().err.strip()

    return once


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    truth = simulate_volume("vessels", (24, 16, 16), seed=5)
    made = simulate_projections(truth, step_length=6, voxel_size=(2.0, 0.5, 0.5))
    return made.save(tmp_path / "stack.ome.tif")


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_saved_config_repeats_the_run(run: Run, stack: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.toml"
    options = ("--no-adapt", "--inr-steps", 2, "--steps", 2, "--gamma", "0.3,0.1", "--seed", 9)
    options += ("--voxel-size", 1, 0.25, 0.25, "--save-config", saved)
    assert run("reconstruct", stack, "-o", tmp_path / "a.npy", "-q", *options) == (0, "")
    table = tomllib.loads(saved.read_text())["reconstruct"]
    assert table["adapt"] is False and table["gamma"] == "0.3,0.1" and table["seed"] == 9
    assert table["voxel_size"] == [1.0, 0.25, 0.25]
    assert "truth" not in table and "overwrite" not in table and "axial_blur" not in table
    line = ("reconstruct", stack, "-o", tmp_path / "b.npy", "-q", "--config", saved)
    assert run(*line) == (0, "")
    one, other = (read_volume(tmp_path / f"{name}.npy") for name in "ab")
    assert np.array_equal(one.data, other.data) and one.voxel_size == other.voxel_size
    assert one.extra == other.extra
    # the line beats the file
    assert run(*line, "--overwrite", "--seed=8") == (0, "")
    assert read_volume(tmp_path / "b.npy").extra["parameters"]["seed"] == 8
    # and a file that is there is kept
    code, err = run("reconstruct", stack, "-o", tmp_path / "c.npy", "--save-config", saved)
    assert code == 2 and err.startswith("error: --save-config: expected a new file")
    assert not (tmp_path / "c.npy").exists()


BAD = {
    "unknown key": ("gama = 0.1", "gama: expected a setting of reconstruct (did you mean gamma?)"),
    "dashes": ("step-length = 6", "step-length: expected a setting of reconstruct (did you mean s"),
    "text for a number": ('seed = "one"', "seed: expected a whole number, got 'one'"),
    "true for a number": ("samples = true", "samples: expected a whole number, got True"),
    "a fraction": ("samples = 1.5", "samples: expected a whole number, got 1.5"),
    "number for a switch": ("adapt = 1", "adapt: expected true or false, got 1"),
    "no such choice": ('preset = "slow"', "preset: expected one of 'fast', 'paper', got 'slow'"),
    "two sides": ("voxel_size = [1.0, 2.0]", "voxel_size: expected a list of 3 numbers"),
    "a table": ("gamma = {a = 1}", "gamma: expected text, a number, or a list of them"),
    "a date": ("seed = 2020-01-01", "seed: expected a whole number"),
    "an output": ('output = "a.npy"', "output: expected a setting of reconstruct"),
    "too small": ("samples = 0", "--samples: expected greater than or equal to 1, got '0'"),
    "no gamma": ('gamma = "much"', "--gamma: expected numbers with commas between them"),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_setting_is_named(
    text: str, words: str, run: Run, stack: Path, tmp_path: Path
) -> None:
    path = config(tmp_path, f"[reconstruct]\n{text}\n")
    code, err = run("reconstruct", stack, "-o", tmp_path / "a.npy", f"--config={path}")
    assert code == 2 and "\n" not in err and words in err, err
    assert not (tmp_path / "a.npy").exists()


FILES = {
    "empty": ("", "expected a table [reconstruct], got an empty file"),
    "of another command": ("[demo]\nseed = 1", "expected a table [reconstruct], got [demo]"),
    "without tables": ("seed = 1", "seed: expected one of the tables [reconstruct], [demo], "),
    "unknown table": ("[reconstruct]\n[recon]\n", "recon: expected one of the tables"),
    "bad table of another command": (
        "[reconstruct]\n[sweep.gamma]\nstepp = 1",
        "stepp: expected a setting of sweep gamma (did you mean steps?)",
    ),
    "no table": ("reconstruct = 3", "reconstruct: expected a table [reconstruct], got 3"),
    "no TOML": ("seed: 1", "--config: expected a TOML file"),
    "nothing but depth": ("[reconstruct]\na = " + "[" * 5000, "--config: expected a TOML file"),
}


@pytest.mark.parametrize(("text", "words"), FILES.values(), ids=FILES.keys())
def test_a_bad_file(text: str, words: str, run: Run, stack: Path, tmp_path: Path) -> None:
    path = config(tmp_path, text)
    code, err = run("reconstruct", stack, "-o", tmp_path / "a.npy", "--config", path)
    assert code == 2 and "\n" not in err and words in err, err


def test_unreadable_files(run: Run, stack: Path, tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_bytes(b"#" * (1 << 21))
    (tmp_path / "latin.toml").write_bytes(b"# \xff\n")
    for name in ("none.toml", "large.toml", "latin.toml", "."):
        code, err = run("reconstruct", stack, "-o", tmp_path / "a.npy", "--config", tmp_path / name)
        assert code == 2 and err.startswith("error: --config: expected "), err


def test_one_file_for_several_commands(tmp_path: Path) -> None:
    text = "[sweep.gamma]\ngammas = [0, 0.5]\nadapt = false\n[demo]\nclip = false\nblur = 1.5\n"
    path = config(tmp_path, text)
    assert cli_config.expand(["sweep", "gamma", "v.tif", "--config", str(path)])[:4] == (
        ["sweep", "gamma", "--gammas=0,0.5", "--no-adapt"]
    )
    assert cli_config.expand(["demo", "--config", str(path), "-o", "x"])[:3] == (
        ["demo", "--no-clip", "--blur=1.5"]
    )
    assert cli_config.expand(["info", "--json"]) == ["info", "--json"]
    assert cli_config.line() == "microdiffusion-fast info --json"


@pytest.mark.parametrize("name", cli_config._known, ids=" ".join)
def test_every_switch_can_be_turned_off(name: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    """A file may say `false`, which has to be an option of the command."""
    hints = cli_config.settings(cli_config._known[name])
    switches = [key for key, kind in hints.items() if cli_config._bare(kind)[0] is bool]
    for key in switches:
        code, err = run(*name, f"--no-{key.replace('_', '-')}", "--no-such-option")
        assert code == 2 and "--no-such-option" in err, err


@given(
    st.dictionaries(
        st.sampled_from(["seed", "gamma", "axial_blur", "adapt", "voxel_size", "denoiser"]),
        st.one_of(
            st.integers(-(10**6), 10**6),
            st.floats(allow_nan=False, allow_infinity=False),
            st.booleans(),
            st.text(max_size=20),
            st.lists(st.floats(0.1, 9), min_size=3, max_size=3),
        ),
    )
)
def test_what_is_written_is_what_is_read(values: dict[str, Any]) -> None:
    text = "".join(f"{key} = {cli_config._toml(value)}\n" for key, value in values.items())
    assert tomllib.loads(text) == values
