"""`--scheduler`, `--shard` and `--sbatch` on the command line."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from microdiffusion_fast.cli import run
from microdiffusion_fast.cli_distributed import without

if TYPE_CHECKING:
    from .conftest import SmallStack


def line(stack: SmallStack, output: Path, *more: str) -> list[str]:
    options = ["--no-adapt", "--denoiser", str(stack.denoiser), "--threads", "1"]
    return ["reconstruct", str(stack.source), "-o", str(output), *options, *more]


def test_options_are_taken_out_of_a_line() -> None:
    words = ["reconstruct", "p", "--parts", "3", "--sbatch=a b", "-o", "v", "--threads", "2"]
    assert without(words, "--sbatch", "--parts", "--threads") == ["reconstruct", "p", "-o", "v"]
    assert without(["--parts"], "--parts") == []
    assert without(["--partsy", "1"], "--parts") == ["--partsy", "1"]


def test_parts(small_stack: SmallStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "v.zarr"
    assert run(line(small_stack, output, "--shard", "1/2")) == 0
    assert "part 1/2 is done: 0 tiles" in capsys.readouterr().out  # it is all one tile
    assert not output.exists()
    assert run(line(small_stack, output, "--shard", "2/2")) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    assert output.exists()


def test_an_array_script(
    small_stack: SmallStack,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is shell, and what it runs is what was typed, in parts."""
    script, output = tmp_path / "a job.sh", tmp_path / "v.zarr"
    settings = tmp_path / "run.toml"
    arguments = line(small_stack, output, "--sbatch", str(script), "--parts", "3")
    arguments += ["--save-config", str(settings)]
    monkeypatch.setattr(sys, "argv", ["mdf", *arguments])
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 0
    assert "for 1 tile" in capsys.readouterr().out
    assert not output.exists() and not list(tmp_path.glob(".*"))
    assert not {"sbatch", "parts", "shard"} & set(
        tomllib.loads(settings.read_text())["reconstruct"]
    )
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert f"#SBATCH --chdir={tmp_path}\n" in text
    assert "#SBATCH --array=1-1\n" in text and "#SBATCH --cpus-per-task=1\n" in text
    echo = tmp_path / "srun"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"; exit 137\n')
    echo.chmod(0o755)
    requeue = tmp_path / "scontrol"
    requeue.write_text('#!/bin/sh\necho "scontrol $@"\n')
    requeue.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "1"}
    environment |= {"SLURM_ARRAY_JOB_ID": "7"}
    for restarts, again in (("0", ["scontrol requeue 7_1"]), ("3", [])):
        ran = subprocess.run(
            ["bash", str(script)], capture_output=True, text=True,
            env={**environment, "SLURM_RESTART_COUNT": restarts},
        )  # fmt: skip
        assert ran.returncode == 137
        words = [sys.executable, "-m", "microdiffusion_fast"]
        words += [*line(small_stack, output)[:-2], "--threads", "1", "--shard", "1/1"]
        assert ran.stdout.splitlines() == ["--ntasks=1", "--cpus-per-task=1", *words, *again]
    assert run([*arguments[:-2], "--overwrite"]) == 2  # that is about the volume
    assert "error: --sbatch: expected a new file" in capsys.readouterr().err


def test_no_workers_are_asked_for_where_there_is_nothing_to_do(
    small_stack: SmallStack,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr("microdiffusion_fast.distributed_cluster.connect", connect)
    output, spread = tmp_path / "v.zarr", ("--scheduler", "local:2")
    assert run([*line(small_stack, output)[:-2], "--memory", "4GiB"]) == 0
    assert run(line(small_stack, output, *spread)) == 0
    assert "complete already" in capsys.readouterr().out
    assert run(line(small_stack, output, *spread, "--seed", "1")) == 2
    assert "error: -o/--output: expected a new file" in capsys.readouterr().err
    assert run(line(small_stack, tmp_path / "w.zarr", *spread, "--depth", "1")) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard", "3/2"), "--shard: expected i/n"),
        (("--scheduler", "abacus"), "--scheduler: expected tcp://HOST:PORT"),
        (("--scheduler", "local:2", "--shard", "1/2"), "--shard: expected none with --scheduler"),
        (("--shard", "1/2", "--fresh"), "--fresh: expected none with --shard"),
        (("--sbatch", "job.sh", "--fresh"), "--fresh: expected none with --sbatch"),
        (("--sbatch", "nowhere/job.sh"), "--sbatch: expected a file that can be written"),
        (("--scheduler", "local:2", "--samples", "3"), "--samples: expected none with --memory"),
        ((), "--threads: expected --memory with it"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(
    small_stack: SmallStack,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    if "abacus" in options or "local:2" in options:
        pytest.importorskip("distributed", reason="dask.distributed is not installed")
    assert run(line(small_stack, tmp_path / "v.zarr", *options)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
