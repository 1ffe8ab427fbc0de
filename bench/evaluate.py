"""`evaluate_stored` on two volumes on disk, against plain reads of the same files.

    python -m bench.evaluate DIR --shape 512x1024x2048 -o bench/results/evaluate.json

Makes two float32 NPY files in DIR (4 GiB each at that shape; those of an earlier call are taken),
reads both once with nothing else, and evaluates one against the other within a budget; each from
the disk where the page cache may be dropped, which the record says. `--check` compares the scores
with those in memory, which takes several times the size of a volume. Wants an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import describe
from bench.memory import peak_extra_bytes
from microdiffusion_fast import metrics
from microdiffusion_fast.metrics_stream import evaluate_stored

PIECE = 32 * 2**20  # bytes of a plain read
NAMES = ("test.npy", "reference.npy")
SCORES = ("psnr", "ssim", "dice")
_DROP = Path("/proc/sys/vm/drop_caches")


def make_volumes(folder: Path, shape: tuple[int, int, int]) -> tuple[Path, Path]:
    """Write a volume of blocks, and it with noise, slice by slice, unless they are there."""
    test, reference = (folder / name for name in NAMES)
    with suppress(OSError, ValueError):
        if all(np.load(path, mmap_mode="r").shape == shape for path in (test, reference)):
            return test, reference
    depth, height, width = shape
    rng = np.random.default_rng(0)
    coarse = rng.gamma(2.0, 200.0, tuple(-(-n // 16) for n in shape)).astype(np.float32)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with test.open("wb") as noisy, reference.open("wb") as clean:
        for file in (noisy, clean):
            np.lib.format.write_array_header_1_0(file, header)
        for z in range(depth):
            plane = np.kron(coarse[z // 16], np.ones((16, 16), np.float32))[:height, :width]
            plane = plane + 20 * rng.random((height, width), np.float32)
            clean.write(plane.tobytes())
            noisy.write((plane + 60 * rng.random((height, width), np.float32)).tobytes())
    return test, reference


def drop_cache(paths: tuple[Path, ...]) -> str:
    """Have the next read of these files come from the disk, where that is allowed; says how."""
    os.sync()
    try:
        _DROP.write_text("3", encoding="ascii")
        return "dropped"
    except OSError as error:
        reason = error.strerror or str(error)
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return f"not dropped ({_DROP}: {reason}); the system was asked to forget the two files"


def read_plainly(paths: tuple[Path, ...]) -> None:
    """Read files to their end, into one buffer, past Python's own."""
    buffer = bytearray(PIECE)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def measure(
    folder: Path, shape: tuple[int, int, int], *, memory: str, check: bool
) -> dict[str, Any]:
    """Both speeds, in MiB of the two files a second, and what `evaluate_stored` took."""
    paths = make_volumes(folder, shape)
    with tempfile.TemporaryDirectory() as small:  # what the first call imports and makes ready
        evaluate_stored(*make_volumes(Path(small), (8, 64, 64)))
    size = sum(path.stat().st_size for path in paths) / 2**20
    cache = drop_cache(paths)
    plain = size / seconds(lambda: read_plainly(paths))
    drop_cache(paths)
    found: list[metrics.Evaluation] = []
    took: list[float] = []

    def evaluate() -> None:
        took.append(seconds(lambda: found.append(evaluate_stored(*paths, memory=memory))))

    peak = peak_extra_bytes(evaluate, torch.device("cpu"))
    scores = {name: getattr(found[0], name) for name in SCORES}
    record: dict[str, Any] = {
        "shape": shape,
        "memory": memory,
        "threads": torch.get_num_threads(),
        "files_mib": round(size),
        "page_cache": cache,
        "plain_read_mib_per_second": round(plain, 1),
        # of the size of the files, of which the truth is read twice
        "evaluate_mib_per_second": round(size / took[0], 1),
        "evaluate_seconds": round(took[0], 2),
        "ratio": round(size / took[0] / plain, 3),
        "peak_beyond_imports_mib": None if peak is None else round(peak / 2**20),
        "scores": scores,
    }
    if check:
        in_memory = metrics.evaluate(*(np.load(path) for path in paths))
        record["same_as_in_memory"] = scores == {n: getattr(in_memory, n) for n in SCORES}
    return record


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="512x1024x2048", help="of each volume, ZxYxX")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--check", action="store_true", help="compare with the scores in memory")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    z, y, x = (int(size) for size in arguments.shape.split("x"))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    load = round(os.getloadavg()[0], 2)
    found = measure(arguments.folder, (z, y, x), memory=arguments.memory, check=arguments.check)
    text = json.dumps({**describe(), "load_before": load, **found}, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    if not found.get("same_as_in_memory", True):
        raise SystemExit("the scores are not those in memory")


if __name__ == "__main__":
    main()
