"""From disk to disk: equal to memory, for any budget, and to an uninterrupted run after kills."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from bench.small_network import random_network
from microdiffusion_fast import metrics, reconstruct, streaming_plan
from microdiffusion_fast.denoiser import Denoiser, load_denoiser, save_denoiser
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.io import read_volume
from microdiffusion_fast.metrics_stream import evaluate_stored
from microdiffusion_fast.progress import Cancelled, ProgressEvent
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.simulate_stream import simulate_stored
from microdiffusion_fast.store_levels import coarsening_bytes
from microdiffusion_fast.store_reader import reading_bytes
from microdiffusion_fast.store_source import open_stack
from microdiffusion_fast.store_verify import verify
from microdiffusion_fast.streaming import stream_reconstruct
from microdiffusion_fast.streaming_prepare import Prepared
from microdiffusion_fast.streaming_tiles import TileJob, TileReceipt, run_tiles
from microdiffusion_fast.tiling_windows import Box, Span

CHUNKS = (6, 8, 8)
SMALL = "64.6MiB"  # all but 0.5 MiB is the constant part, so that the tiles are small
STEP, SHAPE = 4, (25, 28, 24)  # a slice is left over; no size is a multiple of the shards'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack of projections and a small network, none of whose layers is zero."""
    folder = tmp_path_factory.mktemp("streaming")
    generator = torch.Generator().manual_seed(0)
    volume = 1000 * torch.rand(SHAPE, generator=generator)
    operator = AxialProjection(SHAPE[0], STEP)
    Projections(
        operator(volume), step_length=STEP, depth=SHAPE[0], voxel_size=(0.6, 0.5, 0.5)
    ).save(folder / "p.ome.zarr")
    save_denoiser(folder / "network.safetensors", random_network(generator))
    return folder


def stream(folder: Path, output: Path, **options: Any) -> Any:
    chosen: dict[str, Any] = {
        "denoiser": folder / "network.safetensors",
        "adapt": False,
        "chunks": CHUNKS,
        "memory": SMALL,
    }
    return stream_reconstruct(folder / "p.ome.zarr", output, **(chosen | options))


def digest(store: Path) -> str:
    """Of every file of a store but its first, which has its name."""
    found = hashlib.sha256()
    for file in sorted(file for file in store.rglob("*/*") if file.is_file()):
        found.update(str(file.relative_to(store)).encode() + file.read_bytes())
    return found.hexdigest()


@pytest.mark.parametrize(("steps", "consistency"), [(None, None), (None, "hard"), (2, "hard")])
def test_the_result_is_that_in_memory(
    folder: Path, tmp_path: Path, steps: int | None, consistency: Any
) -> None:
    memory = SMALL if steps is None else "64.86MiB"
    options: dict[str, Any] = {"steps": steps, "consistency": consistency}
    done = stream(folder, tmp_path / "v.ome.zarr", memory=memory, **options)
    assert done.tiles > 2
    stack = Projections.from_any(folder / "p.ome.zarr")
    prior = stack.operator.interpolate(stack.images)
    if consistency == "hard":
        prior = stack.operator.consistent(prior, stack.images)
    expected = reconstruct(
        stack, **options, adapt=False, denoiser=folder / "network.safetensors", prior=prior
    )
    low, high = expected.parameters["intensity_range"]
    image = read_volume(tmp_path / "v.ome.zarr")
    assert np.abs(image.data - expected.volume).max() <= 1e-5 * (high - low)
    assert image.voxel_size == (0.6, 0.5, 0.5)
    stated = image.extra["parameters"]
    assert stated["intensity_range"] == [low, high]
    # the volume is random: its projections look like noise, which decides where nothing is asked
    assert stated["consistency"] == (consistency or "soft")
    assert stated["consistency"] == expected.parameters["consistency"]
    assert stated["noise_to_signal"] == expected.parameters["noise_to_signal"]
    assert verify(tmp_path / "v.ome.zarr").ok


def test_the_budget_changes_the_tiles_and_not_the_volume(folder: Path, tmp_path: Path) -> None:
    small = stream(folder, tmp_path / "a.zarr")
    large = stream(folder, tmp_path / "b.zarr", memory="1GiB")
    assert small.tiles > large.tiles == 1
    assert large.pixels_read == 2 * 6 * 28 * 24  # to prepare, and for the tile
    assert small.pixels_read <= small.planned.prediction.reread * 6 * 28 * 24
    a, b = (read_volume(tmp_path / name).data for name in ("a.zarr", "b.zarr"))
    assert np.abs(a - b).max() <= 1e-5 * (b.max() - b.min())
    only = stream(folder, tmp_path / "c.zarr", plan_only=True)
    assert (
        only.planned.prediction == small.planned.prediction
        and only.planned.prediction.tiles == small.tiles
    )
    with pytest.raises(InputError, match="^memory: expected at least"):
        stream(folder, tmp_path / "c.zarr", memory="1MiB")
    assert not list(tmp_path.glob(".*"))


def test_a_chunk_larger_than_a_tile_is_in_the_budget(folder: Path, tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((6, 400, 400), np.float32)
    options: dict[str, Any] = {
        "step_length": STEP,
        "denoiser": folder / "network.safetensors",
        "plan_only": True,
        "chunks": CHUNKS,
    }
    for chunks in ((6, 32, 32), data.shape):
        zarr.create_array(tmp_path / f"{chunks[1]}.zarr", data=data, chunks=chunks)
    small = stream_reconstruct(
        tmp_path / "32.zarr", tmp_path / "v.zarr", memory="80MiB", **options
    ).planned
    assert small.prediction.memory <= 80 * 2**20
    with pytest.raises(InputError, match=r"^memory: .* 22 MiB of it to read a chunk of the"):
        stream_reconstruct(tmp_path / "400.zarr", tmp_path / "v.zarr", memory="80MiB", **options)
    large = stream_reconstruct(
        tmp_path / "400.zarr", tmp_path / "v.zarr", memory="102MiB", **options
    ).planned
    assert large.prediction.memory <= 102 * 2**20
    whole = reading_bytes(large.stack) - reading_bytes(small.stack)
    assert large.prediction.memory - small.prediction.memory >= whole > 20 * 2**20
    assert large.keep <= 102 * 2**20 - whole


def test_coarser_resolutions_are_in_the_prediction(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = stream(folder, tmp_path / "v.zarr", plan_only=True).planned
    assert plain.prediction.memory > 64 * 2**20 + coarsening_bytes(plain.layout)
    monkeypatch.setattr(streaming_plan, "coarsening_bytes", lambda layout: 2**30)
    large = stream(folder, tmp_path / "v.zarr", plan_only=True).planned
    assert large.prediction.memory == 2**30 + 64 * 2**20


def test_integers_with_a_stated_scale(folder: Path, tmp_path: Path) -> None:
    exact, rounded = tmp_path / "f.zarr", tmp_path / "u.zarr"
    stream(folder, exact)
    done = stream(folder, rounded, dtype="uint16")
    assert done.parameters["clipped"] == 0
    assert 2 * done.planned.prediction.bytes_out == 4 * np.prod(SHAPE)
    low, high = done.parameters["intensity_range"]
    group = zarr.open_group(rounded, mode="r")
    stated: Any = group.attrs["microdiffusion_fast"]["intensity"]  # type: ignore[index, call-overload]
    scale = stated["scale"]
    assert stated["offset"] == low - (high - low)
    assert scale == pytest.approx((STEP + 1) * (high - low) / 65534)
    expected, image = read_volume(exact), read_volume(rounded)
    assert image.data.dtype == np.float32 and "intensity" not in image.extra
    assert np.abs(image.data - expected.data).max() <= 0.51 * scale  # and float32's own rounding
    stored: Any = group["0"]
    assert stored.dtype == np.uint16 and stored[...].max() < 65535
    means = np.asarray(group["1"])  # type: ignore[call-overload]
    full = np.asarray(zarr.open_array(exact / "1", mode="r"))
    assert means.dtype == np.uint16
    assert np.abs(means * scale + stated["offset"] - full).max() <= 1.01 * scale
    stack = open_stack(rounded)
    whole = Box(*(Span(0, n) for n in SHAPE))
    np.testing.assert_array_equal(stack.read(whole), image.data)
    scores = evaluate_stored(rounded, exact)
    assert scores == metrics.evaluate(image.data, expected.data) and scores.psnr > 60
    assert verify(rounded).ok
    zarr.open_array(rounded / "0", mode="r+")[:6, :16, :16] = 65535  # as if never written
    assert verify(rounded).unwritten == 6 * 16 * 16
    with pytest.raises(InputError, match="^dtype"):
        stream(folder, tmp_path / "w.zarr", dtype="int8")


def test_adaptation_is_done_once(folder: Path, tmp_path: Path) -> None:
    """A cancelled run keeps its weights: the next goes on with the tiles."""
    stages: list[str] = []

    def watch(event: ProgressEvent) -> bool:
        stages.append(event.stage)
        return not (event.stage == "reconstruct" and event.done == 2)

    options: dict[str, Any] = {"adapt": True, "adapt_steps": 2, "callback": watch}
    with pytest.raises(Cancelled):
        stream(folder, tmp_path / "v.zarr", **options)
    assert "adapt to the stack" in stages
    stages.clear()
    options["callback"] = lambda event: stages.append(event.stage)
    done = stream(folder, tmp_path / "v.zarr", **options)
    assert done.resumed == 2 and set(stages) == {"reconstruct", "coarser levels"}
    stream(folder, tmp_path / "w.zarr", **{**options, "callback": None})
    assert digest(tmp_path / "v.zarr") == digest(tmp_path / "w.zarr")


def test_other_arguments_or_another_stack_are_refused(folder: Path, tmp_path: Path) -> None:
    def after_one(event: ProgressEvent) -> bool:
        return event.stage != "reconstruct"

    with pytest.raises(Cancelled):
        stream(folder, tmp_path / "v.zarr", callback=after_one)
    small = load_denoiser(folder / "network.safetensors")
    with torch.no_grad():
        next(small.parameters()).mul_(1.5)
    save_denoiser(tmp_path / "other.safetensors", small)
    for options, words in (
        ({"seed": 1}, "seed 0 when it was begun, 1 now"),
        ({"seed": 1, "gamma": 0.25}, "gamma 0.1 when it was begun, 0.25 now; seed 0 when"),
        ({"axial_blur": 2.0}, "axial blur not given when it was begun, 2.0 now"),
        ({"adapt": True}, "adapt off when it was begun, on now; adapt steps 0 when"),
        ({"dtype": "uint16"}, "dtype float32 when it was begun, uint16 now"),
        ({"chunks": (6, 4, 8)}, r"chunks \[6, 8, 8\] when it was begun, \[6, 4, 8\] now"),
        ({"denoiser": tmp_path / "other.safetensors"}, "other weights than the run was begun with"),
    ):
        with pytest.raises(InputError, match=f"^resume: .*--fresh, resume=False.* got {words}"):
            stream(folder, tmp_path / "v.zarr", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming_plan, "version_of", lambda name: "9.9")
        with pytest.raises(InputError, match=r" got version \S+ when it was begun, 9.9 now$"):
            stream(folder, tmp_path / "v.zarr")
    chunk = next(file for file in (folder / "p.ome.zarr").rglob("c/**/*") if file.is_file())
    before = chunk.stat().st_mtime_ns
    os.utime(chunk, ns=(0, 0))
    with pytest.raises(InputError, match="^resume: .* got the stack changed since the run was"):
        stream(folder, tmp_path / "v.zarr")
    os.utime(chunk, ns=(before, before))
    assert stream(folder, tmp_path / "v.zarr").resumed == 1
    again = stream(folder, tmp_path / "v.zarr")
    assert again.tiles == 0  # complete already
    with pytest.raises(InputError, match="which exists"):
        stream(folder, tmp_path / "v.zarr", seed=1)


@pytest.mark.parametrize(("drop", "add"), [("consistency", None), (None, "colour")])
def test_a_run_that_another_version_prepared_is_refused(
    folder: Path, tmp_path: Path, drop: str | None, add: str | None
) -> None:
    with pytest.raises(Cancelled):
        stream(folder, tmp_path / "v.zarr", callback=lambda event: event.stage != "reconstruct")
    file = tmp_path / ".v.zarr.partial" / "prepared.json"
    values = json.loads(file.read_text())
    if drop is not None:
        del values[drop]
    if add is not None:
        values[add] = "red"
    file.write_text(json.dumps(values))
    words = f"^resume: expected .*--fresh.* got .*, which differs in {drop or add}$"
    with pytest.raises(InputError, match=words):
        stream(folder, tmp_path / "v.zarr")
    assert stream(folder, tmp_path / "v.zarr", resume=False).finished


def test_the_stack_is_no_output(folder: Path, tmp_path: Path) -> None:
    """Not itself, nor through a link, nor what lies in it or around it; nothing is touched."""
    source = shutil.copytree(folder / "p.ome.zarr", tmp_path / "p.ome.zarr")
    (tmp_path / "link.zarr").symlink_to(source)
    around = tmp_path / "all.zarr"
    shutil.copytree(source, around / "p.zarr")
    zarr.open_group(around, mode="a")
    before = {path: path.lstat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    for stack, output in (
        (source, source),
        (source, tmp_path / "link.zarr"),
        (tmp_path / "link.zarr", source),
        (source, source / "v.zarr"),
        (around / "p.zarr", around),
    ):
        for options in ({}, {"resume": False}, {"shard": "1/2"}):
            with pytest.raises(
                InputError, match="^output: expected a place outside the input"
            ) as no:
                stream_reconstruct(stack, output, overwrite=True, **options)  # type: ignore[arg-type]
            assert "\n" not in str(no.value)
        with pytest.raises(InputError, match="^output: expected a place outside the input"):
            simulate_stored(stack, output, step_length=2, overwrite=True)
    assert {path: path.lstat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before


def test_a_stack_that_changes_during_the_run_is_refused(folder: Path, tmp_path: Path) -> None:
    """A chunk that is gone would be read as zeros, and none of it be noticed."""
    for name in ("p.ome.zarr", "network.safetensors"):
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
        copy(folder / name, tmp_path / name)
    chunk = next(file for file in (tmp_path / "p.ome.zarr").rglob("c/**/*") if file.is_file())

    def vanishing(job: TileJob, tiles: Sequence[int]) -> Iterator[TileReceipt]:
        for receipt in run_tiles(job, tiles):
            yield receipt
            chunk.unlink(missing_ok=True)

    with pytest.raises(InputError, match="^projections: .* whose files changed") as caught:
        stream(tmp_path, tmp_path / "v.zarr", memory="1GiB", runner=vanishing)
    assert "\n" not in str(caught.value) and not (tmp_path / "v.zarr").exists()


def test_bad_input_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.random.default_rng(0).random((4, 20, 20)))
    for options, argument in (
        ({}, "step_length"),
        ({"step_length": 4, "depth": 90}, "projections"),
        ({"step_length": 4, "memory": "much"}, "memory"),
        ({"step_length": 4, "device": "abacus"}, "device"),
        ({"step_length": 4, "weights": [1.0, 1.0]}, "weights"),
    ):
        with pytest.raises(InputError) as caught:
            stream_reconstruct(tmp_path / "p.npy", tmp_path / "v.zarr", **options)  # type: ignore[arg-type]
        assert caught.value.argument == argument
        assert "\n" not in str(caught.value)


def test_nan_is_said_with_its_tile_and_not_written(folder: Path, tmp_path: Path) -> None:
    broken = load_denoiser(folder / "network.safetensors")
    with torch.no_grad():
        next(broken.encoder.parameters()).fill_(torch.nan)
    save_denoiser(tmp_path / "network.safetensors", broken)
    with pytest.raises(InputError) as caught:
        stream(folder, tmp_path / "v.zarr", denoiser=tmp_path / "network.safetensors")
    assert str(caught.value).startswith("denoiser: expected weights that give finite intensities")
    assert "in tile 0, voxels [0:" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "v.zarr").exists()
    assert not list((tmp_path / ".v.zarr.partial" / "receipts").iterdir())


def test_no_room_for_the_weights_is_one_clear_line(tmp_path: Path) -> None:
    ready = Prepared(Denoiser(), 0.0, 1.0, 1.5, "hard", None, {}, 0)
    with pytest.raises(InputError, match="^output: expected a place that can be written"):
        ready.save(tmp_path / "nowhere")


KILLED = """
    # Everything is imported once; each attempt is a fork that is killed.
    import os, random, signal, sys, time
    from pathlib import Path
    import zarr
    from zarr.codecs import ZstdCodec
    import torch
    from microdiffusion_fast.streaming import stream_reconstruct

    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    rng, longest = random.Random(sys.argv[3]), 0.05
    for attempt in range(20):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            stream_reconstruct(
                folder / "p.ome.zarr", output, denoiser=folder / "network.safetensors",
                adapt=False, chunks=(6, 8, 8), memory="64.6MiB",
            )
            os._exit(0)
        time.sleep(rng.uniform(0, longest))
        longest *= 1.5  # the first hardly begin, on any machine, the last get through
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:
            break
        print(output.exists(), flush=True)
    print("kills", attempt)
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as the forked runs have: convolutions round by the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_killed_at_random_moments(folder: Path, tmp_path: Path) -> None:
    """The bits of an uninterrupted run, and no name before the volume is complete."""
    whole, output = tmp_path / "whole.zarr", tmp_path / "v.zarr"
    stream(folder, whole)
    seed = os.environ.get("KILL_SEED", "1")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), folder, output, seed],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *seen, kills = result.stdout.splitlines()
    assert "True" not in seen[:-1]  # the last may have hit the removal of what a run leaves
    assert int(kills.split()[1]) >= 2, result.stdout
    print(kills)
    image, expected = read_volume(output), read_volume(whole)
    np.testing.assert_array_equal(image.data, expected.data)
    assert verify(output).ok
    assert {entry.name for entry in tmp_path.iterdir()} == {"whole.zarr", "v.zarr"}
    assert digest(output) == digest(whole)


@pytest.mark.usefixtures("one_thread")
def test_a_tile_can_be_done_by_any_process(folder: Path, tmp_path: Path) -> None:
    """The job is small, and a copy of it that was sent away computes and writes the same bits."""
    code = """
        import pickle, sys, torch
        from microdiffusion_fast.streaming_tiles import run_tiles

        torch.set_num_threads(1)
        job, numbers = pickle.loads(sys.stdin.buffer.read())
        receipts = list(run_tiles(job, numbers))
        sys.stdout.buffer.write(pickle.dumps((receipts, job.missing())))
    """

    def scattered(job: TileJob, tiles: Sequence[int]) -> Iterator[TileReceipt]:
        # the last one first, there, and the others here
        sent = pickle.dumps((job, tiles[-1:]))
        assert len(sent) < 8192
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], input=sent, capture_output=True
        )
        assert result.returncode == 0, result.stderr.decode()
        receipts, missing = pickle.loads(result.stdout)
        assert missing == tiles[:-1] == job.missing()
        yield from receipts
        yield from run_tiles(job, tiles[:-1])

    one = stream(folder, tmp_path / "v.zarr")
    two = stream(folder, tmp_path / "w.zarr", runner=scattered)
    assert two.tiles == one.tiles > 2
    assert digest(tmp_path / "v.zarr") == digest(tmp_path / "w.zarr")


def test_a_tile_that_no_runner_did_is_missed(folder: Path, tmp_path: Path) -> None:
    def lazy(job: TileJob, tiles: Sequence[int]) -> Iterator[TileReceipt]:
        yield from run_tiles(job, tiles[1:])

    with pytest.raises(InputError, match="^output: expected all .* shards"):
        stream(folder, tmp_path / "v.zarr", runner=lazy)
    assert not (tmp_path / "v.zarr").exists()
    assert stream(folder, tmp_path / "v.zarr").resumed > 0
    assert verify(tmp_path / "v.zarr").ok  # no coarser level was made of what was missing


def test_a_wrong_consistency_is_found_before_anything_is_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="consistency: expected 'hard', 'soft' or 'off'"):
        stream(folder, tmp_path / "v.zarr", consistency="harder", plan_only=True)
    assert not list(tmp_path.iterdir())
