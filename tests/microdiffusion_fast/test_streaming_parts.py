"""A reconstruction divided among processes: the bits of one, whatever happens to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.streaming_parts import part_of, tiles_of
from microdiffusion_fast.tiling import Reach, plan_tiles
from microdiffusion_fast.tiling_windows import Windows

if TYPE_CHECKING:
    from .conftest import Finished, SmallStack

Digest = Callable[[Path], str]
pytestmark = pytest.mark.timeout(300)  # workers import torch; beside other work that takes minutes

PLAN = plan_tiles(
    (24, 40, 40),
    Windows(depth=24, step_length=4, stride=4, start=0, count=6, first=1.5),
    Reach(halo=4, step=2, context=1, align=2, steps=1),
    shards=(8, 8, 8),
    core=(8, 8, 8),
)


@pytest.mark.parametrize("count", [1, 2, 7, 75, 90])
def test_every_tile_is_in_one_part(count: int) -> None:
    parts = [part_of(f"{number}/{count}", PLAN) for number in range(1, count + 1)]
    tiles = [tile for part in parts for tile in tiles_of(part, PLAN)]
    assert tiles == list(range(len(PLAN)))
    sizes = [len(tiles_of(part, PLAN)) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "1/0", ""])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(InputError, match="^shard: expected i/n"):
        part_of(text, PLAN)


def test_parts_give_the_bits_of_one_process(
    small_stack: SmallStack, whole: Finished, store_digest: Digest, tmp_path: Path
) -> None:
    output = tmp_path / "v.zarr"
    done = [small_stack.run(output, shard=f"{number}/3") for number in (3, 1, 2)]
    assert [run.finished for run in done] == [False, False, True]
    assert sum(run.tiles for run in done) == whole.tiles
    assert store_digest(output) == whole.digest
    late = small_stack.run(output, shard="1/3")
    assert (late.tiles, late.finished) == (0, True)


def test_threads_are_those_of_the_beginning(small_stack: SmallStack, tmp_path: Path) -> None:
    output = tmp_path / "v.zarr"
    assert small_stack.run(output, shard="29/30", threads=2).tiles == 1
    with pytest.raises(InputError, match="^threads: expected 2, which the run was begun with"):
        small_stack.run(output, shard="30/30", threads=1)
    assert small_stack.run(output, shard="30/30", threads=None).tiles == 1


PARTS = """
    # Everything is imported once; a part is a fork, killed at a random moment and done again.
    import json, os, random, signal, sys, time, zarr
    from zarr.codecs import ZstdCodec
    import torch
    from microdiffusion_fast.streaming import stream_reconstruct

    source, output, options, seed, longest = json.loads(sys.argv[1])
    rng, count, kills = random.Random(seed), 3, 0
    torch.set_num_threads(1)

    def start(number, last=None):
        def die(event):
            if event.stage == "reconstruct" and event.done == last:
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if child == 0:
            was = os.path.exists(output)
            shard = f"{number}/{count}"
            done = stream_reconstruct(source, output, shard=shard, callback=die, **options)
            os._exit(7 if done.finished and not was else 0)
        return child

    # the first death is certain: the clock may be late
    waiting = {1, 2, 3}
    children = {start(1): 1, start(2): 2, start(3, rng.randint(1, 5)): 3}
    while waiting:
        for _ in range(len(children)):
            child, status = os.wait()
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, 7, -signal.SIGKILL), code
            kills += code == -signal.SIGKILL
            if code >= 0:
                waiting.remove(children[child])
        children = {start(number): number for number in waiting}
        if children and longest < 20:
            time.sleep(rng.uniform(0, longest))
            os.kill(rng.choice(list(children)), signal.SIGKILL)
            longest *= 2
    print(json.dumps({"kills": kills, "exists": os.path.exists(output)}))
"""


def test_parts_are_killed(
    small_stack: SmallStack, whole: Finished, store_digest: Digest, tmp_path: Path
) -> None:
    """Three at a time; one of them dies at a random moment, and is done again beside the others."""
    output, seed = tmp_path / "v.zarr", os.environ.get("KILL_SEED", "1")
    longest = 0.25 * whole.seconds
    arguments = [str(small_stack.source), str(output), small_stack.options, seed, longest]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PARTS), json.dumps(arguments)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    print(seen)
    assert seen["kills"] >= 1
    if not seen["exists"]:  # the one that was to finish died when the others had gone
        small_stack.run(output)
    assert store_digest(output) == whole.digest
    assert {entry.name for entry in tmp_path.iterdir()} == {"v.zarr"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk(
    small_stack: SmallStack, whole: Finished, store_digest: Digest, tmp_path: Path
) -> None:
    """One clear line, and the run goes on when there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(disk)],
            check=True, capture_output=True,
        )  # fmt: skip

    try:
        mount("size=480k")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here ({error})")
    try:
        with pytest.raises(
            InputError, match="^output: expected a place that can .* has room"
        ) as no:
            small_stack.run(disk / "v.zarr")
        assert "\n" not in str(no.value)
        assert not (disk / "v.zarr").exists()
        mount("remount,size=8m")
        done = small_stack.run(disk / "v.zarr")
        assert 0 < done.resumed < done.tiles
        assert store_digest(disk / "v.zarr") == whole.digest
        mount("remount,ro")
        for number in (None, "1/2"):
            with pytest.raises(InputError, match="can be written") as no:
                small_stack.run(disk / "w.zarr", shard=number)
            assert "\n" not in str(no.value)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
