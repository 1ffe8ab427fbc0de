"""The benchmark from disk to disk beside a run in memory: both make the same volume."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import stream
from microdiffusion_fast.io import read_volume
from microdiffusion_fast.tiling_budget import memory_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
@pytest.mark.parametrize(
    ("shape", "memory", "tiles", "more"),
    [
        ("12x256x256", "360MiB", 1, []),
        ("18x256x512", "400MiB", 2, []),
        ("72x128x128", "210MiB", 2, []),
        ("72x128x128", "220MiB", 2, ["--uncertainty"]),
    ],
)
def test_the_memory_that_a_plan_predicts_is_enough(
    tmp_path: Path, shape: str, memory: str, tiles: int, more: list[str]
) -> None:
    """With the shipped network, in a process of its own, beyond what the program itself takes."""
    z, y, x = (int(size) for size in shape.split("x"))
    stream.make_stack(tmp_path / "stack.zarr", (z, y, x))
    command = [sys.executable, "-m", "bench.stream", str(tmp_path), "--shape", shape]
    command += ["--memory", memory, "--no-adapt", *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    taken = found["peak_beyond_baseline_mib"] - found["program_mib"]
    assert found["complete"] and found["tiles"] >= tiles
    assert taken <= found["predicted_mib"] <= memory_bytes(memory) / 2**20


def test_a_small_stack_in_memory_too(tmp_path: Path) -> None:
    shape = (18, 32, 40)
    options = argparse.Namespace(
        folder=tmp_path,
        memory="200MiB",
        steps=None,
        adapt=False,
        uncertainty=False,
        in_memory=True,
    )
    with pytest.raises(SystemExit, match="the stack is made"):
        stream.record(options, shape)
    found = stream.record(options, shape)
    assert found["complete"] and found["tiles"] == found["tiles_missing_at_start"]
    taken = found["in_memory_seconds"]
    assert set(taken) >= {"read", "prior", "sampling", "save", "total"}
    assert sum(taken.values()) - taken["total"] <= taken["total"] + 0.5  # stages are parts of it
    assert found["streamed_over_in_memory_without_inr"] >= found["streamed_over_in_memory"] > 0
    streamed, memory = (
        read_volume(tmp_path / name).data for name in ("volume.ome.zarr", "in_memory.ome.zarr")
    )
    assert streamed.shape == memory.shape == shape
    np.testing.assert_allclose(streamed, memory, atol=0.05 * float(np.ptp(memory)))
    assert "in_memory_seconds" not in stream.record(options, shape)  # complete: nothing to compare
