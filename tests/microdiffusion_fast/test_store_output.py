"""The output: whole or not at all, resumable, and every fault of a stored volume is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume
from microdiffusion_fast.store_finished import is_finished
from microdiffusion_fast.store_layout import Layout, halved
from microdiffusion_fast.store_levels import coarsen, coarsening_bytes, missing_shards
from microdiffusion_fast.store_output import OutputStore
from microdiffusion_fast.store_verify import LISTED, verify
from microdiffusion_fast.tiling_windows import Box

LAYOUT = Layout((12, 20, 30), (3, 8, 8), (6, 16, 16), (1.0, 0.5, 0.5))
SHARDS = 8 + 2 + 1  # of the three resolutions
DATA = np.random.default_rng(0).random(LAYOUT.shape).astype(np.float32)
RUN: dict[str, Any] = {"seed": 0, "weights": (0.5, 0.5), "input": "abc"}


def boxes() -> list[Box]:
    return list(LAYOUT.levels[0].boxes())


def store_at(path: Path, run: dict[str, Any] = RUN, **options: Any) -> OutputStore:
    return OutputStore(path, LAYOUT, run, **options)


def fill(store: OutputStore, shards: list[Box]) -> None:
    for box in shards:
        store.shards.write(box, DATA[box.slices], iter([box]))


def complete(store: OutputStore, metadata: dict[str, Any] | None = None) -> None:
    coarsen(store.shards, lambda done: None)
    store.finish(metadata or {})


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    path = tmp_path / "v.ome.zarr"
    with store_at(path) as store:
        fill(store, boxes())
        complete(store, {"kind": "test"})
    return path


def test_a_volume_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "v.ome.zarr"
    with store_at(path) as store:
        fill(store, boxes()[:-1])
        with pytest.raises(InputError, match="^output: expected all 11 shards, got 7"):
            store.finish({})
        assert not path.exists()
        fill(store, boxes()[-1:])
        complete(store, {"kind": "test"})
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.ome.zarr"]
    image = read_volume(path)
    np.testing.assert_array_equal(image.data, DATA)
    assert image.voxel_size == (1.0, 0.5, 0.5)
    assert image.extra["kind"] == "test"
    array = zarr.open_array(path / "0", mode="r")
    assert (array.chunks, array.shards) == (LAYOUT.chunks, LAYOUT.shards)
    assert np.isnan(array.fill_value)
    assert verify(path).ok and verify(path).shards == SHARDS
    assert is_finished(path, RUN) and not is_finished(path, {**RUN, "seed": 1})


def test_coarser_resolutions_are_means(finished: Path) -> None:
    """Each halves the axes whose voxels are short; positions are those of what is averaged."""
    middle = halved(DATA, (1, 2, 2))
    np.testing.assert_allclose(middle[5, 3, 4], DATA[5, 6:8, 8:10].mean(), rtol=1e-6)
    coarse = halved(middle, (2, 2, 2))
    for name, expected in (("1", middle), ("2", coarse)):
        stored = zarr.open_array(finished / name, mode="r")
        np.testing.assert_array_equal(np.asarray(stored[...]), expected)
    assert coarse.shape == (6, 5, 8)
    image = zarr.open_group(finished, mode="r").attrs["ome"]["multiscales"][0]  # type: ignore[index, call-overload]
    scales = [dataset["coordinateTransformations"] for dataset in image["datasets"]]
    assert scales[0] == [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    assert scales[2] == [
        {"type": "scale", "scale": [2.0, 2.0, 2.0]},
        {"type": "translation", "translation": [0.5, 0.75, 0.75]},
    ]


@pytest.mark.parametrize(
    ("shape", "chunks", "shards", "voxels", "dtype"),
    [
        ((64, 512, 512), (16, 64, 64), (32, 128, 128), None, "float32"),
        ((64, 512, 512), (16, 64, 64), (32, 128, 128), None, "uint16"),
        ((64, 512, 512), (16, 64, 64), (32, 128, 128), (4.0, 1.0, 1.0), "float32"),
        ((65, 301, 299), (65, 256, 256), (65, 512, 512), None, "float32"),
    ],
)
def test_coarser_resolutions_take_no_more_than_is_said(
    tmp_path: Path, shape: Any, chunks: Any, shards: Any, voxels: Any, dtype: Any
) -> None:
    layout = Layout(shape, chunks, shards, voxels, dtype)
    data = (60_000 * np.random.default_rng(0).random(shape)).astype(dtype)
    with OutputStore(tmp_path / "v.zarr", layout, RUN) as store:
        for box in layout.levels[0].boxes():
            store.shards.write(box, data[box.slices], [box])
        tracemalloc.start()
        try:
            coarsen(store.shards, lambda done: None)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= coarsening_bytes(layout) < 5 * peak
        expected = halved(data, layout.levels[1].factors)
        np.testing.assert_array_equal(np.asarray(store.shards.arrays[1]), expected)


def test_an_odd_slice_is_kept() -> None:
    data = np.arange(15, dtype=np.float32).reshape(3, 5, 1)
    np.testing.assert_array_equal(halved(data, (2, 2, 2))[:, :, 0], [[3, 5, 6.5], [10.5, 12.5, 14]])


def test_a_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "v.ome.zarr"
    first, second, *others = boxes()
    with store_at(path) as store:
        fill(store, [first, second])
        # as if killed between data and receipt, and within a write
        (store.receipts / "0.0.0.1.json").unlink()
        (store.image / "0" / "c" / "x.partial").write_bytes(b"half")
    with store_at(path) as store:
        assert store.shards.has(first) and not store.shards.has(second)
        assert not list(store.image.rglob("*.partial"))
        fill(store, [second, *others])
        complete(store)
    np.testing.assert_array_equal(read_volume(path).data, DATA)


def test_a_receipt_without_its_data_does_not_count(tmp_path: Path) -> None:
    with store_at(tmp_path / "v.zarr") as store:
        first, second, *_ = boxes()
        fill(store, [first, second])
        store.shards._file(first).unlink()
        store.shards._file(second).write_bytes(b"short")
        assert not store.shards.has(first) and not store.shards.has(second)


def test_another_run_is_refused_and_may_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    with store_at(path) as store:
        fill(store, boxes()[:1])
    with pytest.raises(InputError, match="^resume: .* got the stack changed since the run was"):
        store_at(path, {**RUN, "input": "new"})
    with store_at(path, {**RUN, "input": "new"}, resume=False) as store:
        assert not store.shards.has(boxes()[0])


def test_a_finished_volume_that_is_damaged_is_not_complete(finished: Path) -> None:
    """A shard of any resolution that is gone or cut short; the numbers of no file are read."""
    last = finished / "2" / "c" / "0" / "0" / "0"
    for shard in (finished / "0" / "c" / "1" / "1" / "0", last):
        whole = shard.read_bytes()
        for damage, words in (
            (shard.unlink, f"{shard.relative_to(finished)} is missing"),
            (lambda shard=shard, whole=whole: shard.write_bytes(whole[:-1]), "its shards have"),
        ):
            damage()  # type: ignore[operator]
            with pytest.raises(InputError, match=f"^output: .*verify.*--overwrite.*{words}") as no:
                is_finished(finished, RUN)
            assert "\n" not in str(no.value)
            assert not is_finished(finished, RUN, overwrite=True)
            assert not is_finished(finished, {"seed": 1})  # none of this one's business
            shard.write_bytes(whole)
        assert is_finished(finished, RUN)
    last.unlink()
    with store_at(finished, overwrite=True) as store:
        fill(store, boxes())
        complete(store)
    assert is_finished(finished, RUN) and verify(finished).ok
    description = finished / "1" / "zarr.json"
    for damage in (partial(description.write_text, "{"), description.unlink):
        damage()
        with pytest.raises(InputError, match="^output: .*verify"):
            is_finished(finished, RUN)
        assert not is_finished(finished, RUN, overwrite=True)


def test_a_start_that_was_killed_is_begun_anew(tmp_path: Path) -> None:
    folder = tmp_path / ".v.zarr.partial"
    (folder / "image" / "0").mkdir(parents=True)
    with store_at(tmp_path / "v.zarr") as store:
        fill(store, boxes())
        complete(store)
    assert verify(tmp_path / "v.zarr").ok


def test_places_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^output: expected a name ending in .ome.zarr"):
        store_at(tmp_path / "v.tif")
    with pytest.raises(InputError, match="^output: expected a file in an existing folder"):
        store_at(tmp_path / "nowhere" / "v.zarr")
    assert not list(tmp_path.iterdir())


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with store_at(tmp_path / "v.zarr"):
        with pytest.raises(InputError, match="no other process is writing"):
            store_at(tmp_path / "v.zarr")
    store_at(tmp_path / "v.zarr").close()


def test_an_old_volume_stays_until_the_new_one_is_complete(finished: Path) -> None:
    with pytest.raises(InputError, match="which exists"):
        store_at(finished)
    with store_at(finished, {"seed": 1}, overwrite=True) as store:
        for box in boxes():
            assert is_finished(finished, RUN)
            store.shards.write(box, 2 * DATA[box.slices], iter([box]))
        complete(store)
    np.testing.assert_array_equal(read_volume(finished).data, 2 * DATA)
    assert [entry.name for entry in finished.parent.iterdir()] == [finished.name]


@pytest.mark.parametrize("resume", [True, False])
def test_a_kill_between_two_renames_loses_no_volume(finished: Path, resume: bool) -> None:
    folder = finished.with_name(f".{finished.name}.partial")
    with store_at(finished, {"seed": 1}, overwrite=True) as store:
        fill(store, boxes())
    finished.rename(folder / "old")
    with pytest.raises(InputError, match="which exists"):  # now it does
        store_at(finished, {"seed": 1}, resume=resume)
    assert is_finished(finished, RUN) and verify(finished).ok
    finished.rename(folder / "old")
    with store_at(finished, {"seed": 1}, overwrite=True, resume=resume) as store:
        assert is_finished(finished, RUN) and verify(finished).ok
        assert store.shards.has(boxes()[0]) == resume


def test_what_appears_during_the_run_is_not_replaced(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.zarr"
    with store_at(path, {"seed": 1}) as store:
        fill(store, boxes())
        finished.rename(path)
        with pytest.raises(InputError, match="^output: expected a new file .* which exists$"):
            complete(store)
    assert is_finished(path, RUN) and verify(path).ok
    path.rename(finished)
    with store_at(path, {"seed": 1}) as store:
        assert missing_shards(store.shards) == 0  # of all that was made nothing is made again
        complete(store)
    assert is_finished(path, {"seed": 1}) and is_finished(finished, RUN)
    np.testing.assert_array_equal(read_volume(path).data, DATA)
    assert {entry.name for entry in tmp_path.iterdir()} == {finished.name, path.name}


def test_flipped_bits_are_found(finished: Path) -> None:
    rng = np.random.default_rng(1)
    shards = sorted(file for file in (finished / "0" / "c").rglob("*") if file.is_file())
    for _ in range(25):
        shard = shards[int(rng.integers(len(shards)))]
        whole = shard.read_bytes()
        flipped = bytearray(whole)
        flipped[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        shard.write_bytes(bytes(flipped))
        found = verify(finished)
        assert found.damaged == 1 and found.missing == 0, found
        assert "damaged" in found.faults[0]
        shard.write_bytes(whole)
    assert verify(finished).ok


def test_missing_and_unwritten_are_found(finished: Path) -> None:
    first, second, *_ = sorted(file for file in (finished / "0" / "c").rglob("*") if file.is_file())
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    array = zarr.open_array(finished / "0", mode="r+")
    array[11, 19, 29] = np.nan
    found = verify(finished)
    assert (found.missing, found.damaged, found.unwritten, found.ok) == (1, 1, 1, False)
    assert len(found.faults) == 3
    shutil.rmtree(finished / "0" / "c")
    found = verify(finished)
    assert found.missing == 8 and len(found.faults) == 8 < LISTED


def test_what_is_no_store(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(InputError, match="^path: expected a Zarr store"):
        verify(tmp_path)
    description = finished / "0" / "zarr.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "shape": "x"}))
    with pytest.raises(InputError, match="^path: expected a Zarr store with a readable"):
        verify(finished)


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    """A limit on file sizes stands for it: writing fails with an OSError in the same place."""
    code = f"""
import importlib.util, resource, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("t", {str(Path(__file__))!r})
t = importlib.util.module_from_spec(spec); sys.modules["t"] = t; spec.loader.exec_module(t)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with t.store_at(Path({str(tmp_path)!r}) / "v.zarr") as store:
    t.fill(store, t.boxes()[:1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        t.fill(store, t.boxes()[1:])
    except t.InputError as error:
        print(error)
    print(store.shards.has(t.boxes()[0]), store.shards.has(t.boxes()[1]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    line, state = result.stdout.splitlines()
    assert line.startswith("output: expected a place that can be written and has room")
    assert "what is finished is kept" in line
    assert state == "True False"
    with store_at(tmp_path / "v.zarr") as store:
        fill(store, boxes()[1:])
        complete(store)
    np.testing.assert_array_equal(read_volume(tmp_path / "v.zarr").data, DATA)
