"""The command line for volumes larger than memory: the same results, one line for each fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.small_network import random_network
from microdiffusion_fast import cli, cli_stream
from microdiffusion_fast.denoiser import save_denoiser
from microdiffusion_fast.io import read_volume, write_volume
from microdiffusion_fast.progress import Cancelled, ProgressEvent
from microdiffusion_fast.simulate import simulate_volume
from microdiffusion_fast.streaming import stream_reconstruct

Run = Callable[..., tuple[int, str, str]]
SMALL = "90MiB"


@pytest.fixture
def run(real_run: Run) -> Run:
    return real_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume, its projections and a small network."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    volume = 1000 * rng.random((24, 30, 26), np.float32)
    write_volume(folder / "v.tif", volume, voxel_size=(0.5, 0.5, 0.5))
    code = cli.run(["simulate", f"{folder}/v.tif", "-o", f"{folder}/p.zarr", "--step-length", "4"])
    assert code == 0
    network = random_network(torch.Generator().manual_seed(0))
    save_denoiser(folder / "network.safetensors", network)
    return folder


def refused(result: tuple[int, str, str], argument: str) -> str:
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1), (out, err)
    assert err.startswith(f"error: {argument}: expected "), err
    return err


def test_reconstruct_goes_from_disk_to_disk(run: Run, folder: Path, tmp_path: Path) -> None:
    network = ("--denoiser", folder / "network.safetensors")
    line = ("reconstruct", folder / "p.zarr", "--memory", SMALL, "--no-adapt", *network)
    code, out, err = run(*line, "-o", tmp_path / "v.ome.zarr")
    assert code == 0, err
    assert "24 x 30 x 26" in out and "verify" in out and "adaptation: " in out
    stream_reconstruct(
        folder / "p.zarr", tmp_path / "w.zarr", adapt=False, memory=SMALL, denoiser=network[1]
    )
    made, expected = (read_volume(tmp_path / name) for name in ("v.ome.zarr", "w.zarr"))
    np.testing.assert_array_equal(made.data, expected.data)
    code, out, _ = run(*line, "-o", tmp_path / "v.ome.zarr")
    assert code == 0 and "complete already" in out
    shard = next(file for file in (tmp_path / "v.ome.zarr" / "0").rglob("c/**/*") if file.is_file())
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    error = refused(run(*line, "-o", tmp_path / "v.ome.zarr"), "-o/--output")
    assert "verify" in error and "--overwrite" in error
    code, out, _ = run(*line, "-o", tmp_path / "v.ome.zarr", "--overwrite")
    assert code == 0 and "wrote" in out and shard.read_bytes() == whole
    refused(run(*line, "-o", tmp_path / "v.ome.zarr", "--seed", 1), "-o/--output")
    code, out, err = run(*line, "-o", tmp_path / "v.ome.zarr", "--seed", 1, "--overwrite", "-q")
    assert (code, out, err) == (0, "", "")


def test_the_uncertainty_is_written_beside_the_volume(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    output, beside = tmp_path / "v.zarr", tmp_path / "u.zarr"
    line = ("reconstruct", folder / "p.zarr", "-o", output, "--memory", SMALL, "--no-adapt")
    line += ("--denoiser", folder / "network.safetensors")
    code, out, err = run(*line, "--uncertainty", beside)
    assert code == 0 and f"wrote {beside}" in out, err
    deviation, volume = read_volume(beside), read_volume(output)
    assert deviation.data.shape == volume.data.shape and (deviation.data > 0).all()
    assert deviation.voxel_size == volume.voxel_size
    code, out, _ = run(*line, "--uncertainty", beside)
    assert code == 0 and "complete already" in out
    refused(run(*line), "-o/--output")  # another run
    code, out, _ = run("verify", beside)
    assert code == 0 and "as they were written" in out


def test_the_line_on_the_adaptation_is_that_in_memory(run: Run, tmp_path: Path) -> None:
    volume = simulate_volume("vessels", (48, 48, 48), seed=77)
    write_volume(tmp_path / "v.tif", volume)
    run("simulate", tmp_path / "v.tif", "-o", tmp_path / "p.tif", "--step-length", "6")
    lines = []
    for name, way in (("m.zarr", ()), ("s.zarr", ("--memory", "1GiB"))):
        code, out, err = run("reconstruct", tmp_path / "p.tif", "-o", tmp_path / name, *way)
        assert code == 0, err
        lines += [line for line in out.splitlines() if line.startswith("adaptation: ")]
    assert lines[0] == lines[1] and lines[0].endswith(" slices estimated")


def test_what_was_begun_goes_on_or_begins_anew(run: Run, folder: Path, tmp_path: Path) -> None:
    def stop(event: ProgressEvent) -> bool:
        return event.stage != "reconstruct"

    output, network = tmp_path / "v.zarr", folder / "network.safetensors"
    options = {"memory": SMALL, "denoiser": network, "adapt": False, "callback": stop}
    with pytest.raises(Cancelled):
        stream_reconstruct(folder / "p.zarr", output, **options)  # type: ignore[arg-type]
    line = ("reconstruct", folder / "p.zarr", "-o", output, "--denoiser", network, "--no-adapt")
    line = (*line, "--memory", SMALL)
    error = refused(run(*line, "--seed", 1), "-o/--output")
    assert "seed 0 when it was begun, 1 now" in error and "--fresh" in error
    code, out, err = run(*line, "--seed", 1, "--fresh")
    assert code == 0 and "earlier run" not in out, err


def test_a_plan_computes_nothing(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, err = run("reconstruct", folder / "p.zarr", "-o", tmp_path / "v.zarr", "--plan")
    assert code == 0, err
    for words in ("24 x 30 x 26 voxels", "6 projections of 30 x 26", "of 4GiB", "assumed, not"):
        assert words in out
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_device_has_to_be_there_where_it_computes(run: Run, folder: Path, tmp_path: Path) -> None:
    """A login node writes the script for jobs that have a GPU."""
    line = ("reconstruct", folder / "p.zarr", "-o", tmp_path / "v.zarr", "--device", "cuda")
    for options in (("--plan",), ("--memory", SMALL), ("--shard", "1/2")):
        refused(run(*line, *options), "--device")
    refused(run(*line[:-1], "cubist", "--sbatch", tmp_path / "no.sh"), "--device")
    assert not list(tmp_path.iterdir())
    code, _, err = run(*line, "--sbatch", tmp_path / "job.sh")
    assert code == 0, err
    assert (tmp_path / "job.sh").is_file()


def test_what_does_not_go_with_memory(run: Run, folder: Path, tmp_path: Path) -> None:
    base = ("reconstruct", folder / "p.zarr", "-o")
    line = (*base, tmp_path / "v.zarr", "--memory", SMALL)
    for options in (
        ("--preset", "paper"),
        ("--truth", folder / "v.tif"),
        ("--steps", "exact"),
        ("--gamma", "0.1,0.2"),
        ("--gamma-schedule", "linear"),
        ("--inr-steps", 9),
        ("--uncertainty", tmp_path / "u.tif"),
        ("--uncertainty", tmp_path / "v.zarr"),
        ("--uncertainty", tmp_path / "u.zarr", "--steps", "2"),
        ("--estimate", "sample"),
        ("--tol", "1e-5"),
        ("--no-probe",),
        ("--batch-size", 4),
    ):
        refused(run(*line, *options), str(options[0]))
    refused(run(*base, tmp_path / "v.tif", "--memory", SMALL), "-o/--output")
    refused(run(*base, tmp_path / "v.zarr", "--memory", "much"), "--memory")
    refused(run(*base, tmp_path / "v.zarr", "--memory", "1MiB"), "--memory")
    refused(run(*base, tmp_path / "v.tif", "--fresh"), "--fresh")
    refused(run("reconstruct", tmp_path, "-o", tmp_path / "v.zarr", "--memory", SMALL), "PROJ")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_with_the_way_out(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_stream, "free_memory", lambda: 100_000)
    volume, stack = folder / "v.tif", folder / "p.zarr"
    for argument, line in {
        "PROJ": ("reconstruct", stack, "-o", tmp_path / "v.zarr"),
        "VOLUME": ("simulate", volume, "-o", tmp_path / "p.tif", "--step-length", 4),
        "RECON": ("evaluate", volume, volume),
    }.items():
        assert "--memory" in refused(run(*line), argument)
    assert not list(tmp_path.iterdir())


def test_free_memory_is_known_here() -> None:
    free = cli_stream.free_memory()
    assert free is None or 2**20 < free < 2**50


def test_simulate_is_that_in_memory(run: Run, folder: Path, tmp_path: Path) -> None:
    line = ("simulate", folder / "v.tif", "--step-length", 4, "--noise", "photons=300,read=2")
    assert run(*line, "-o", tmp_path / "a.zarr")[0] == 0
    code, out, err = run(*line, "-o", tmp_path / "b.zarr", "--memory", "1MiB")
    assert code == 0 and "6 projections of 30 x 26 pixels" in out, err
    a, b = (read_volume(tmp_path / name) for name in ("a.zarr", "b.zarr"))
    np.testing.assert_array_equal(a.data, b.data)
    a.extra.pop("provenance")  # of what was not read as a whole there is no hash
    assert a.extra == b.extra and a.voxel_size == b.voxel_size
    for options, argument in (
        (("-o", tmp_path / "c.tif", "--memory", "1MiB"), "-o/--output"),
        (("-o", tmp_path / "c.zarr", "--memory", "1kB"), "--memory"),
        (("-o", tmp_path / "c.zarr", "--memory", "1MiB", "--stride", 0), "--stride"),
    ):
        refused(run(*line, *options), argument)
    assert {path.name for path in tmp_path.iterdir()} == {"a.zarr", "b.zarr"}


def test_evaluate_is_that_in_memory(run: Run, folder: Path, tmp_path: Path) -> None:
    data = read_volume(folder / "v.tif").data
    noisy = data + np.random.default_rng(1).normal(0, 50, data.shape).astype(np.float32)
    test = write_volume(tmp_path / "t.zarr", noisy)
    expected = json.loads(run("evaluate", test, folder / "v.tif", "--json")[1])
    code, out, _ = run("evaluate", test, folder / "v.tif", "--json", "--memory", "1kB")
    assert code == 0 and json.loads(out) == expected
    assert "PSNR" in run("evaluate", test, folder / "v.tif", "--memory", "1kB")[1]
    small = write_volume(tmp_path / "small.tif", data[:, 1:])
    refused(run("evaluate", small, folder / "v.tif", "--memory", "1kB"), "RECON")
    refused(run("evaluate", test, tmp_path / "absent.tif", "--memory", "1kB"), "TRUTH")


def test_verify_says_what_is_wrong(run: Run, folder: Path, tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.zarr", read_volume(folder / "v.tif").data)
    code, out, _ = run("verify", path)
    assert code == 0 and "1 shards, all as they were written" in out
    chunk = next(file for file in (path / "0").rglob("c/**/*") if file.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    code, out, err = run("verify", path)
    assert code == 2 and "damaged" in out
    assert err == "error: OUT: expected 1 shards as they were written, got 1 damaged\n"
    refused(run("verify", folder / "v.tif"), "OUT")
