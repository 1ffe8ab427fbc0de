"""A reconstruction from disk to disk, recorded: time, memory at its peak, how often input is read.

    python -m bench.stream DIR --shape 512x1024x1024 --memory 1.5GiB -o bench/results/stream.jsonl

The stack, a phantom repeated with fresh noise, and the volume stay in DIR. A run that was stopped
(Ctrl-C, SIGTERM) has its part on record, and goes on when it is started again; with another shape
or budget take another DIR. `--in-memory` reconstructs the same stack in memory as well, in a fresh
process, and records the seconds of its stages and the ratio of both, with the INR and without.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr  # noqa: TID253  # part of what a run starts from
from zarr.codecs import ZstdCodec  # noqa: TID253

from bench.machine import describe
from bench.memory import _kilobytes
from bench.stream_in_memory import compare
from microdiffusion_fast.denoiser import load_denoiser
from microdiffusion_fast.io_common import NAMESPACE
from microdiffusion_fast.progress import ProgressEvent
from microdiffusion_fast.simulate import simulate_volume
from microdiffusion_fast.streaming import StreamedReconstruction, stream_reconstruct

STEP, PERIOD, CHUNKS, NOISE = 6, 256, (32, 128, 128), 8.0


def make_stack(path: Path, shape: tuple[int, int, int]) -> None:
    """Write projections of a mirrored and repeated phantom, chunk by chunk."""
    phantom = 1000 * simulate_volume("vessels", (96, PERIOD // 2, PERIOD // 2), seed=3)
    side = (0, PERIOD // 2)
    phantom = np.pad(phantom, ((0, 96), side, side), mode="symmetric")
    count, rng = (shape[0] - STEP) // STEP + 1, np.random.default_rng(0)
    slices = [np.arange(k * STEP, (k + 1) * STEP) % len(phantom) for k in range(count)]
    clean = np.stack([phantom[index].mean(0) for index in slices])
    folder = path.with_name(path.name + ".new")
    array = zarr.create_array(
        folder,
        shape=(count, *shape[1:]),
        dtype="float32",
        chunks=tuple(map(min, CHUNKS, (count, *shape[1:]))),
        compressors=ZstdCodec(level=3, checksum=True),
        attributes={
            NAMESPACE: {"kind": "projections", "step_length": STEP, "depth": shape[0], "start": 0}
        },
        overwrite=True,
    )
    for top in range(0, shape[1], PERIOD):
        for left in range(0, shape[2], PERIOD):
            block = clean[:, : shape[1] - top, : shape[2] - left]
            noisy = block + NOISE * rng.standard_normal(block.shape, np.float32)
            array[:, top : top + PERIOD, left : left + PERIOD] = np.maximum(noisy, 0)
    folder.rename(path)


def record(arguments: argparse.Namespace, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Run, or go on, and say what it took."""
    stack = arguments.folder / "stack.zarr"
    if not stack.exists():
        make_stack(stack, shape)
        sys.exit("the stack is made; start again: making it must not count as memory of the run")
    tiles = {"done": 0, "total": 0}

    def count(event: ProgressEvent) -> None:
        if event.stage == "reconstruct":
            tiles.update(done=event.done, total=event.total or 0)

    baseline = _kilobytes("VmRSS")
    load_denoiser()  # with what torch imports for it, of the program and not of the tiles
    program, begun = _kilobytes("VmRSS") - baseline, time.perf_counter()
    done: StreamedReconstruction | None = None
    deviation = arguments.folder / "deviation.ome.zarr" if arguments.uncertainty else None
    try:
        done = stream_reconstruct(
            stack,
            arguments.folder / "volume.ome.zarr",
            steps=arguments.steps,
            memory=arguments.memory,
            adapt=arguments.adapt,
            uncertainty=deviation,
            progress=True,
            callback=count,
        )
    except (KeyboardInterrupt, SystemExit):
        print("stopped; it goes on when it is started again", file=sys.stderr)
    seconds = time.perf_counter() - begun
    peak = _kilobytes("VmHWM") - baseline
    beside: dict[str, Any] = {}
    if arguments.in_memory and done is not None and done.tiles > done.resumed == 0:
        threads = torch.get_num_threads()
        beside = compare(
            stack, seconds, steps=arguments.steps, adapt=arguments.adapt, threads=threads
        )
    elif arguments.in_memory:
        print("only a run from beginning to end is compared", file=sys.stderr)
    return {
        **describe(),
        "shape": shape,
        "memory": arguments.memory,
        "steps": arguments.steps,
        "uncertainty": arguments.uncertainty,
        "threads": torch.get_num_threads(),
        "complete": done is not None,
        "seconds": round(seconds, 1),
        "tiles": tiles["done"],
        "tiles_missing_at_start": tiles["total"],
        "baseline_mib": round(baseline / 1024),
        "program_mib": round(program / 1024),
        "peak_beyond_baseline_mib": round(peak / 1024),
        "predicted_mib": done and round(done.planned.prediction.memory / 2**20),
        "reread": done and round(done.pixels_read / (math.prod(shape) // STEP), 3),
        **beside,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="512x1024x1024", help="of the volume, ZxYxX")
    parser.add_argument("--memory", default="1.5GiB")
    parser.add_argument("--steps", type=int, help="default the posterior mean")
    parser.add_argument("--no-adapt", dest="adapt", action="store_false")
    parser.add_argument("--uncertainty", action="store_true", help="written, too")
    parser.add_argument("--in-memory", action="store_true", help="compare with a run in memory")
    parser.add_argument("-o", "--output", type=Path, help="JSON lines, appended to")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    z, y, x = (int(size) for size in arguments.shape.split("x"))
    line = json.dumps(record(arguments, (z, y, x)))
    print(line)
    if arguments.output:
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
