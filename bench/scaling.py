"""One worker process, then two, of one thread each: how much faster is the same reconstruction?

    python -m bench.scaling --shape 96x512x512 -o bench/results/scaling.json

The workers are those of a Dask cluster on this machine, warm: they have imported the package and
computed one small stack. What is timed is `stream_reconstruct` from disk to disk, adaptation left
out: with its plan, its tiles, the coarser resolutions and the metadata. The two volumes must be the
same, bit for bit. Wants two idle cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import describe
from microdiffusion_fast.distributed_cluster import connect
from microdiffusion_fast.streaming import StreamedReconstruction, stream_reconstruct

STEP, CHUNKS = 6, (24, 64, 64)


def run(folder: Path, name: str, output: str, client: Any) -> StreamedReconstruction:
    """Reconstruct a stack with the workers of a client."""
    return stream_reconstruct(
        folder / name,
        folder / output,
        step_length=STEP,
        adapt=False,
        chunks=CHUNKS,
        memory="256MiB",
        client=client,
        overwrite=True,
    )


def digest(store: Path) -> str:
    """Of all shards of the full resolution."""
    found = hashlib.sha256()
    for file in sorted(path for path in (store / "0").rglob("*") if path.is_file()):
        found.update(str(file.relative_to(store)).encode() + file.read_bytes())
    return found.hexdigest()


def measure(folder: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Seconds with one worker and with two."""
    rng = np.random.default_rng(0)
    for name, (depth, height, width) in (("small.npy", (24, 128, 128)), ("stack.npy", shape)):
        np.save(folder / name, rng.random((depth // STEP, height, width), np.float32))
    found: dict[str, Any] = {}
    for workers in (1, 2):
        with connect(f"local:{workers}", threads=1) as client:
            for worker in client.nthreads():  # each one once: imports, weights, first calls
                warm = client.submit(_warm, str(folder), workers=[worker], pure=False)
                warm.result()
            before = client.run(time.process_time)
            done = run(folder, "stack.npy", f"{workers}.zarr", client)
            spent = [after - before[name] for name, after in client.run(time.process_time).items()]
        found[str(workers)] = {
            "seconds": round(done.seconds, 2),
            "cpu_seconds_of_each_worker": [round(seconds, 2) for seconds in sorted(spent)],
            "tiles": done.tiles,
            "digest": digest(folder / f"{workers}.zarr"),
        }
    return found


def _warm(folder: str) -> None:
    place = Path(folder)
    options: dict[str, Any] = {"adapt": False, "chunks": CHUNKS, "memory": "256MiB", "threads": 1}
    with tempfile.TemporaryDirectory(dir=place) as output:
        stream_reconstruct(
            place / "small.npy", Path(output) / "v.zarr", step_length=STEP, **options
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="96x512x512", help="of the volume, ZxYxX")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    z, y, x = (int(size) for size in arguments.shape.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), (z, y, x))
    record = {
        **describe(),
        "shape": [z, y, x],
        "threads_of_a_worker": 1,
        "load_before": round(os.getloadavg()[0], 2),
        "workers": found,
        "speed_up": round(found["1"]["seconds"] / found["2"]["seconds"], 3),
        # what two idle cores would give at best: the arithmetic, as the workers shared it
        "speed_up_of_cpu_time": round(
            max(found["1"]["cpu_seconds_of_each_worker"])
            / max(found["2"]["cpu_seconds_of_each_worker"]),
            3,
        ),
        "same_bits": found["1"]["digest"] == found["2"]["digest"],
    }
    text = json.dumps(record, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
