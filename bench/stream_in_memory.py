"""The same stack reconstructed in memory, in a process of its own, beside what disk to disk took.

    python -m bench.stream DIR --in-memory

starts this when its own run is complete; by itself it prints the seconds of each stage.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from microdiffusion_fast.denoiser import load_denoiser
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.reconstruct import reconstruct


def measure(stack: Path, output: Path, *, steps: int | None, adapt: bool) -> dict[str, float]:
    """Seconds of each stage of `reconstruct`, of reading and of saving, and of all of it."""
    begun = time.perf_counter()
    projections = Projections.from_any(stack)
    read = time.perf_counter() - begun
    result = reconstruct(projections, steps=steps, adapt=adapt)
    computed = time.perf_counter() - begun
    result.save(output, overwrite=True)
    total = time.perf_counter() - begun
    stages = {name: value for name, value in result.timings.items() if name != "total"}
    return {"read": read, **stages, "save": total - computed, "total": total}


def compare(
    stack: Path, streamed: float, *, steps: int | None, adapt: bool, threads: int
) -> dict[str, Any]:
    """What a fresh process takes in memory, and what that many streamed seconds are of it.

    Both make the same voxels, so a ratio of seconds is one of seconds per voxel. A streamed run has
    interpolation in place of the INR: the second ratio leaves the INR's seconds out.
    """
    command = [
        sys.executable,
        "-m",
        "bench.stream_in_memory",
        str(stack),
        "--threads",
        f"{threads}",
    ]
    command += [] if steps is None else ["--steps", str(steps)]
    command += [] if adapt else ["--no-adapt"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    total = seconds["total"]
    return {
        "in_memory_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "streamed_over_in_memory": round(streamed / total, 3),
        "streamed_over_in_memory_without_inr": round(streamed / (total - seconds["prior"]), 3),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stack", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--no-adapt", dest="adapt", action="store_false")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    output = arguments.stack.with_name("in_memory.ome.zarr")
    load_denoiser()  # what torch imports for it is no time of the run, as in the streamed one
    found = measure(arguments.stack, output, steps=arguments.steps, adapt=arguments.adapt)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
