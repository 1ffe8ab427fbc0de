"""Several processes on one unfinished volume: kept apart, and exactly one finishes it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microdiffusion_fast import store_finished, store_lock
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume
from microdiffusion_fast.store_finished import is_finished, remove_remains
from microdiffusion_fast.store_layout import Layout
from microdiffusion_fast.store_levels import coarsen
from microdiffusion_fast.store_lock import hold, locked
from microdiffusion_fast.store_output import (
    Finished,
    OutputStore,
    Part,
)
from microdiffusion_fast.store_shards import ShardWriter
from microdiffusion_fast.store_verify import verify

LAYOUT = Layout((12, 20, 30), (3, 8, 8), (6, 16, 16), (1.0, 0.5, 0.5))
BOXES = list(LAYOUT.levels[0].boxes())
DATA = np.random.default_rng(0).random(LAYOUT.shape).astype(np.float32)
RUN: dict[str, Any] = {"seed": 0}


def part(number: int, count: int = 2, **rule: Any) -> Part:
    return Part(number, count, rule)


def store_at(path: Path, **options: Any) -> OutputStore:
    return OutputStore(path, LAYOUT, RUN, **options)


def fill(store: OutputStore, which: slice) -> None:
    for box in BOXES[which]:
        store.shards.write(box, DATA[box.slices], [box])


def finish_if_last(store: OutputStore) -> bool:
    with store.last() as last:
        if last:
            coarsen(store.shards, lambda done: None)
            store.finish({})
        return last


def fork(work: Callable[[], int]) -> int:
    """Do it in a process of its own; returns its number."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def codes(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_a_lock_goes_with_its_file_and_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    first = hold(lock, shared=True)
    second = hold(lock, shared=True, wait=False)
    assert first is not None and second is not None
    assert hold(lock, wait=False) is None
    lock.unlink()  # held no more: it is another file
    with locked(lock):
        assert hold(lock, shared=True, wait=False) is None
    os.close(first)
    os.close(second)

    def wait_for_ever() -> int:
        hold(lock)
        (tmp_path / "ready").touch()
        time.sleep(60)
        return 0

    child = fork(wait_for_ever)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    assert hold(lock, wait=False) is None
    os.kill(child, signal.SIGKILL)
    assert codes([child]) == [-signal.SIGKILL]
    with locked(lock):
        pass
    with pytest.raises(FileNotFoundError):
        hold(tmp_path / "nowhere" / "lock")


def test_who_waits_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it takes long, and for each of the locks that another process may hold for long."""
    monkeypatch.setattr(store_lock, "PATIENCE", 0.05)

    def held_a_while(lock: Path, wait: Callable[[], object], seconds: float = 0.3) -> str:
        descriptor = hold(lock)
        assert descriptor is not None
        timer = threading.Timer(seconds, os.close, [descriptor])
        timer.start()
        wait()
        timer.join()
        return capsys.readouterr().err

    with store_at(tmp_path / "v.zarr") as store:
        folder = store.folder

        def prepare() -> None:
            with store.turn("prepare", whose="the process that looks"):
                pass

        words = held_a_while(folder / "lock.prepare", prepare)
        assert words == f"waiting for the process that looks ({folder})\n"
        assert held_a_while(folder / "lock.prepare", prepare, 0.0) == ""
        fill(store, slice(None))
        coarsen(store.shards, lambda done: None)
        assert "worker" in held_a_while(folder / "lock.writing", lambda: store.finish({}))
    with store_at(tmp_path / "w.zarr", part=part(1)) as store:

        def come() -> None:
            store_at(tmp_path / "w.zarr", part=part(2)).close()

        words = held_a_while(store.folder / "lock.begin", come)
        assert "begins or finishes" in words and words.count("\n") == 1


def test_parts_work_together_and_the_last_one_finishes(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    with store_at(path, part=part(1)) as first, store_at(path, part=part(2)) as second:
        with pytest.raises(InputError, match="no other process is writing"):
            store_at(path)
        with pytest.raises(InputError, match="^shard: expected a part that no other"):
            store_at(path, part=part(2))
        with pytest.raises(InputError, match="^shard: expected the division of the processes at"):
            store_at(path, part=part(3, 3))
        with pytest.raises(InputError, match="^shard: expected the division"):
            store_at(path, part=part(1, core=[1, 2, 3]))
        with pytest.raises(InputError, match="^resume: "):
            store_at(path, part=part(1), resume=False)
        fill(first, slice(0, 5))
        assert not finish_if_last(first)
        fill(second, slice(5, None))
        assert finish_if_last(second)
        assert not finish_if_last(first)
    np.testing.assert_array_equal(read_volume(path).data, DATA)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.zarr"]


def test_another_division_after_all_have_gone(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    with store_at(path, part=part(1)) as store:
        fill(store, slice(0, 3))
    with store_at(path, part=part(3, 3)) as store:
        assert store.shards.has(BOXES[0])
    with store_at(path) as store:
        fill(store, slice(3, None))
        assert finish_if_last(store)


def test_settings_stay_as_they_were_begun(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    with store_at(path, settings={"threads": 3}) as store:
        assert store.settings == {"threads": 3}
    with store_at(path, settings={"threads": 8}) as store:
        assert store.settings == {"threads": 3}
    with store_at(path, settings={"threads": 8}, part=part(1)) as store:
        assert store.settings == {"threads": 3}
    with store_at(path, settings={"threads": 8}, resume=False) as store:
        assert store.settings == {"threads": 8}


def test_a_worker_of_a_run_that_is_over_writes_nothing(tmp_path: Path) -> None:
    """The process it worked for died, and another goes on, begins anew, or has finished."""
    path = tmp_path / "v.zarr"
    with store_at(path) as store:
        stale = ShardWriter(store.folder, LAYOUT, store.token)
        stale.write(BOXES[0], DATA[BOXES[0].slices], [BOXES[0]])
    for options in ({}, {"resume": False}):
        with store_at(path, **options) as store:
            with pytest.raises(InputError, match="^output: expected the run that this process"):
                stale.write(BOXES[1], 0 * DATA[BOXES[1].slices], [BOXES[1]])
            assert store.shards.has(BOXES[0]) is (not options)
            stale = ShardWriter(store.folder, LAYOUT, store.token)
    with store_at(path) as store:
        stale = ShardWriter(store.folder, LAYOUT, store.token)
        fill(store, slice(None))
        assert finish_if_last(store)
    with pytest.raises(InputError, match="taken over or finished"):
        stale.write(BOXES[1], 0 * DATA[BOXES[1].slices], [BOXES[1]])
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.zarr"]
    np.testing.assert_array_equal(read_volume(path).data, DATA)


@pytest.mark.parametrize("attempt", range(4))
def test_many_end_at_the_same_time(tmp_path: Path, attempt: int) -> None:
    """Each process writes its part; exactly one finishes, whoever it is, and none fails."""
    path, count = tmp_path / "v.zarr", 8

    def work(number: int) -> int:
        try:
            store = store_at(path, part=part(number, count))
        except Finished:
            return 5  # a part without anything to do that came late
        with store:
            fill(store, slice(number - 1, number))
            return 7 if finish_if_last(store) else 0

    ended = codes([fork(lambda number=number: work(number)) for number in range(1, count + 1)])  # type: ignore[misc]
    assert ended.count(7) == 1 and set(ended) <= {0, 7}
    np.testing.assert_array_equal(read_volume(path).data, DATA)
    assert verify(path).ok
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.zarr"]


def before_change(number: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that kills its process before that change of a file or folder, from 0."""
    changes = {"os.mkdir", "os.remove", "os.rename", "os.rmdir"}
    left = number

    def kill(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writing = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writing or event in changes:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return kill


def test_the_last_one_is_killed(tmp_path: Path) -> None:
    """At every fourth change of a file while it finishes; whoever comes after it finishes."""
    begun = tmp_path / "begun.zarr"
    with store_at(begun) as store:
        fill(store, slice(None))

    def work(path: Path) -> int:
        try:
            with store_at(path) as store:
                finish_if_last(store)
        except Finished:
            pass
        return 0

    def killed(path: Path, number: int) -> int:
        sys.addaudithook(before_change(number))
        return work(path)

    kills, late = 0, 0
    for number in range(0, 1000, 4):
        path = tmp_path / f"v{number}.zarr"
        shutil.copytree(tmp_path / ".begun.zarr.partial", tmp_path / f".v{number}.zarr.partial")
        (code,) = codes([fork(partial(killed, path, number))])
        if path.exists():
            late += code != 0
            assert is_finished(path, RUN)
            np.testing.assert_array_equal(read_volume(path).data, DATA)
            assert verify(path).ok
            remove_remains(path)
        else:
            work(path)
        np.testing.assert_array_equal(read_volume(path).data, DATA)
        assert not list(tmp_path.glob(f".v{number}.*"))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 8 and late >= 1  # also when the volume had its name, and the rest was removed


def test_who_comes_when_it_is_finished(tmp_path: Path) -> None:
    """It looked before the volume was there, and comes to the folder afterwards."""
    path = tmp_path / "v.zarr"
    with store_at(path) as store:
        fill(store, slice(None))
        assert finish_if_last(store)
    with pytest.raises(InputError, match="which exists"):
        store_at(path)
    with pytest.raises(Finished):
        store_at(path, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.zarr"]


def test_remains_are_removed_while_they_are_being_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one who finds the volume finished before the one that finished it has tidied up."""
    path = tmp_path / "v.zarr"
    removed = shutil.rmtree

    def late(folder: Path, **options: Any) -> None:
        removed(folder)
        removed(folder, **options)

    with store_at(path) as store:
        fill(store, slice(None))
        monkeypatch.setattr(shutil, "rmtree", late)
        assert finish_if_last(store)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.zarr"]


def test_a_run_that_begins_is_no_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where it begins between the look and the lock."""
    path = tmp_path / "v.zarr"
    with store_at(path) as store:
        fill(store, slice(None))
        assert finish_if_last(store)
    folder = tmp_path / ".v.zarr.partial"
    folder.mkdir()
    (folder / "run.json").write_text("{}")  # as a kill leaves it

    def late(lock: Path, **options: Any) -> int | None:
        (folder / "image").mkdir()
        return hold(lock, **options)

    monkeypatch.setattr(store_finished, "hold", late)
    remove_remains(path)
    assert folder.is_dir()
    (folder / "image").rmdir()
    monkeypatch.undo()
    remove_remains(path)
    assert not folder.exists()
