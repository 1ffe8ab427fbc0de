"""`kill -9` at random moments, twenty times each: the process, one part of three, a Dask worker.

    python -m bench.kills process parts beside workers -o bench/results/kills.json

`beside` is one part of three that write the uncertainty, too.

A small stack and a small network, so that what is tested is everything but the arithmetic. After
each kill the volume must not be there, or be complete; each volume that comes out in the end must
be the one of an uninterrupted run, bit for bit. Every process computes on one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import zarr  # noqa: TID253  # what a fork must not import again
from zarr.codecs import ZstdCodec  # noqa: F401, TID253

from bench.machine import describe
from bench.small_network import random_network
from microdiffusion_fast.denoiser import save_denoiser
from microdiffusion_fast.distributed_cluster import connect
from microdiffusion_fast.store_verify import verify
from microdiffusion_fast.streaming import StreamedReconstruction, stream_reconstruct

KILLS, SHAPE, STEP = 20, (4, 40, 40), 4
MEMORY, MEMORY_BESIDE = "65MiB", "65.1MiB"  # a tile a shard, or a kill has little to interrupt


class Case:
    """A stack, and what every run of it must give; `beside`: with its uncertainty."""

    def __init__(self, folder: Path, *, beside: bool = False) -> None:
        self.folder, self.random, self.beside = folder, random.Random(0), beside
        generator = torch.Generator().manual_seed(0)
        zarr.save_array(folder / "p.zarr", torch.rand(SHAPE, generator=generator).numpy())
        save_denoiser(folder / "network.safetensors", random_network(generator))
        self.seconds = self.run("whole.zarr").seconds
        self.digest = self.digest_of("whole.zarr")
        self.begin()

    def begin(self) -> None:
        """Count from zero."""
        self.kills, self.volumes, self.same, self.early = 0, 0, 0, 0

    def stores(self, output: str) -> list[Path]:
        """What a run writes."""
        names = [output, f"u.{output}"] if self.beside else [output]
        return [self.folder / name for name in names]

    def run(self, output: str, **options: Any) -> StreamedReconstruction:
        if self.beside:
            options["uncertainty"] = self.stores(output)[1]
        return stream_reconstruct(
            self.folder / "p.zarr",
            self.folder / output,
            step_length=STEP,
            denoiser=self.folder / "network.safetensors",
            adapt=False,
            chunks=(4, 8, 8),
            memory=MEMORY_BESIDE if self.beside else MEMORY,
            threads=1,
            **options,
        )

    def part(self, output: str, number: int, parts: int) -> None:
        self.run(output, shard=f"{number}/{parts}" if parts > 1 else None)

    def digest_of(self, output: str) -> str:
        found = hashlib.sha256()
        for store in self.stores(output):
            for file in sorted(path for path in store.rglob("*/*") if path.is_file()):
                found.update(str(file.relative_to(store)).encode() + file.read_bytes())
        return found.hexdigest()

    def check(self, output: str) -> None:
        """A volume is there: it must be whole, and nothing else be left; are its bits the same?"""
        self.volumes += 1
        assert all(verify(store).ok for store in self.stores(output))
        self.same += self.digest_of(output) == self.digest
        left = [found for s in self.stores(output) for found in self.folder.glob(f".{s.name}*")]
        assert not left, f"{left} is left"

    def after_kill(self, output: str) -> None:
        self.kills += 1
        there = [store for store in self.stores(output) if store.exists()]
        self.early += self.folder / output in there
        assert all(verify(store).ok for store in there)
        if self.folder / output in there:
            assert there == self.stores(output), "a volume without its uncertainty"

    def record(self) -> dict[str, int | bool]:
        return {
            "kills": self.kills,
            "volumes": self.volumes,
            "killed_when_complete": self.early,
            "same_bits": self.same == self.volumes > 0,
        }


def fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def processes(case: Case, parts: int) -> dict[str, int | bool]:
    """Kill one of some processes, each with its part, and start it again."""
    case.begin()
    while case.kills < KILLS:
        output = f"{parts}.{case.volumes}.zarr"
        waiting = set(range(1, parts + 1))
        while waiting:
            children = {fork(partial(case.part, output, i, parts)): i for i in sorted(waiting)}
            if case.kills < KILLS:
                time.sleep(case.random.uniform(0, case.seconds))
                os.kill(case.random.choice(list(children)), signal.SIGKILL)
            for _ in range(len(children)):
                child, status = os.wait()
                code = os.waitstatus_to_exitcode(status)
                assert code in (0, -signal.SIGKILL), f"exit code {code}"
                if code == 0:
                    waiting.remove(children[child])
                else:
                    case.after_kill(output)
        case.run(output)  # where the one to finish died after the others had ended
        case.check(output)
    return case.record()


def ready() -> int:
    """On a worker: it has what takes it long to import, and this number."""
    import_module("microdiffusion_fast.distributed")
    return os.getpid()


def workers(case: Case) -> dict[str, int | bool]:
    """Kill one of two Dask workers; Dask starts another."""
    case.begin()
    with connect("local:2", threads=1) as client:
        while case.kills < KILLS:
            output, done = f"dask.{case.volumes}.zarr", threading.Event()

            def kill(output: str = output, done: threading.Event = done) -> None:
                while case.kills < KILLS:
                    try:
                        pids = [pid for pid in client.run(ready, on_error="ignore").values() if pid]
                        if done.wait(case.random.uniform(0, 2 * case.seconds)):
                            return
                        if len(pids) < 2:  # to start takes longer than the work
                            continue
                        os.kill(case.random.choice(pids), signal.SIGKILL)
                    except OSError:  # a worker that ended meanwhile: that was no kill
                        continue
                    case.after_kill(output)

            with ThreadPoolExecutor(1) as pool:
                killer = pool.submit(kill)
                try:
                    case.run(output, client=client)
                finally:
                    done.set()
                killer.result()  # what went wrong there is wrong here
            case.check(output)
    return case.record()


WHO: dict[str, Callable[[Case], dict[str, int | bool]]] = {
    "process": partial(processes, parts=1),
    "parts": partial(processes, parts=3),
    "beside": partial(processes, parts=3),
    "workers": workers,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("who", nargs="+", choices=WHO)
    parser.add_argument("-o", "--output", type=Path, help="JSON; what others left there stays")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if arguments.output and arguments.output.exists():
        found = json.loads(arguments.output.read_text(encoding="utf-8"))
    for who in arguments.who:
        with tempfile.TemporaryDirectory() as folder:
            found[who] = {**WHO[who](Case(Path(folder), beside=who == "beside")), **describe()}
        print(who, found[who])
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not all(found[who]["same_bits"] for who in arguments.who):
        raise SystemExit("a volume has other bits than the one of an uninterrupted run")


if __name__ == "__main__":
    main()
