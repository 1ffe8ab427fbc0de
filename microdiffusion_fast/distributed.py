"""Tiles on the workers of a Dask cluster; `distributed`, `dask-jobqueue` and `dask-cuda` if asked
for.

The driver plans, prepares and finishes; a worker reads, computes and writes its tiles itself and
sends back a receipt of a few bytes. Files are reached under the same path from everywhere.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from .errors import InputError
from .provenance import version_of
from .streaming_tiles import TileJob, TileReceipt, TileWorker

AHEAD = 2  # batches that a worker computes or has ready
BATCHES = 8  # that a worker gets in all, at least: the last ones level out differences
LONGEST = 16  # tiles of a batch
SECONDS = 20.0  # for a scheduler to answer
PACKAGE = "microdiffusion-fast"


class DaskTiles:
    """The workers of a Dask client, as what `stream_reconstruct` computes tiles with.

    A worker loads the weights once for a run and does one tile at a time, on the threads that Dask
    counts for it; tiles of a worker that is lost go to another. Workers may come and go.

    Args:
        client: of `dask.distributed`.

    Raises:
        InputError: no such client.
    """

    def __init__(self, client: Any) -> None:
        if not all(hasattr(client, name) for name in ("submit", "nthreads", "wait_for_workers")):
            raise InputError("client", "a dask.distributed Client", type(client).__name__)
        self.client = client

    @property
    def threads(self) -> int:
        """Threads of the worker that has the fewest; waits for one to come."""
        with _worded(self.client):
            if not self.client.nthreads():
                print("waiting for the first worker", file=sys.stderr, flush=True)
                self.client.wait_for_workers(1)
            return min(self.client.nthreads().values())

    def __call__(self, job: TileJob, tiles: Sequence[int]) -> Iterator[TileReceipt]:
        """Compute tiles, in any order.

        Raises:
            InputError: a tile cannot be read or written, or the scheduler or all workers are lost.
        """
        from distributed import as_completed

        with _worded(self.client):
            workers = max(1, len(self.client.nthreads()))
            waiting = batches(tiles, workers)
            running = as_completed()
            try:
                for batch in islice(waiting, AHEAD * workers):
                    running.add(self._submit(job, batch))
                for future in running:
                    receipts = future.result()
                    if isinstance(receipts, InputError):
                        raise receipts
                    more = AHEAD * max(1, len(self.client.nthreads())) - running.count()
                    for batch in islice(waiting, max(more, 0)):
                        running.add(self._submit(job, batch))
                    yield from receipts
            finally:
                with suppress(Exception):  # of a scheduler that is gone
                    self.client.cancel(list(running.futures))
                    if self.client.status == "running":  # else it would be waited for
                        self._release(job)

    def _release(self, job: TileJob) -> None:
        """Have every worker close what it keeps for a run, when it has done what it is at."""
        from distributed import fire_and_forget

        for worker in self.client.nthreads():
            closing = self.client.submit(close_job, job.key, workers=[worker], pure=False)
            fire_and_forget(closing)

    def _submit(self, job: TileJob, batch: Sequence[int]) -> Any:
        return self.client.submit(run_batch, job, tuple(batch), version_of(PACKAGE), pure=False)


def batches(tiles: Sequence[int], workers: int) -> Iterator[Sequence[int]]:
    """Neighbours, which share what they read, in pieces that keep all workers busy to the end."""
    size = max(1, min(LONGEST, len(tiles) // (BATCHES * workers)))
    return (tiles[start : start + size] for start in range(0, len(tiles), size))


_turn = threading.Lock()
_open: list[TileWorker] = []


def run_batch(
    job: TileJob, tiles: Sequence[int], driver: str | None
) -> list[TileReceipt] | InputError:
    """Compute the tiles that are not finished; called on a worker.

    Args:
        job: whose tiles.
        tiles: their numbers.
        driver: its version of this package.

    Returns:
        Their receipts; or what the user can mend, which Dask would log with a traceback if raised.
    """
    own = version_of(PACKAGE)
    if driver != own:
        return InputError("scheduler", f"workers with version {driver}", own)
    with _turn:  # a worker with several threads gives them all to one tile
        try:
            if not _open or _open[0].job.key != job.key:
                while _open:  # before the next one takes its memory
                    _open.pop().close()
                _open.append(TileWorker(job))
            worker = _open[0]
            missing = [number for number in tiles if not worker.has(number)]
            receipts = [TileReceipt(number, 0, 0.0) for number in tiles if number not in missing]
            for number, following in zip_longest(missing, missing[1:]):
                receipts.append(worker.run(number, following))
            return receipts
        except InputError as error:
            return error


def close_job(key: str) -> None:
    """Close what this worker keeps open from tile to tile, if that is of this job.

    It is a task like the tiles, so that it waits for the one that is being computed.
    """
    with _turn:
        if _open and _open[0].job.key == key:
            _open.pop().close()


@contextmanager
def connect(scheduler: str, *, threads: int | None = None, cuda: bool = False) -> Iterator[Any]:
    """A Dask client, and its cluster where it has one of its own, for the length of a block.

    Args:
        scheduler: the address of one that runs (tcp://HOST:PORT) or its file (NAME.json);
            "local:N", N processes here; "slurm:N", N jobs as Dask's configuration
            (jobqueue.slurm) describes them.
        threads: of one worker of "local:N"; None shares out the processors.
        cuda: a GPU for each worker of "local:N", by dask-cuda.

    Raises:
        InputError: a scheduler that does not answer, or a package that is not installed.
    """
    found = re.fullmatch(r"(local|slurm)(?::(\d+))?", scheduler)
    count = int(found[2] or 1) if found else 0
    if found is None and not re.fullmatch(r"\w+://.+|[^/]+:\d+|.+\.json", scheduler):
        expected = "tcp://HOST:PORT, the .json file of a scheduler, local:N or slurm:N"
        raise InputError("scheduler", expected, repr(scheduler))
    distributed = _optional("distributed", "dask")
    if found is not None and count < 1:
        raise InputError("scheduler", "at least one worker", repr(scheduler))
    before = set(os.environ)
    client: Any = None
    cluster: Any = None
    try:
        if found is None:
            client = _client(distributed, scheduler)
        else:
            cluster = _slurm(count) if found[1] == "slurm" else _local(count, threads, cuda=cuda)
            client = distributed.Client(cluster)
        yield client
    finally:
        if client is not None:
            with suppress(Exception):
                client.close()
        if cluster is not None:
            cluster.close()
        # Dask's nannies set the threads of their workers in the environment of this very process
        for name in os.environ.keys() - before:
            del os.environ[name]


def _client(distributed: Any, scheduler: str) -> Any:
    try:
        if scheduler.endswith(".json"):
            if not Path(scheduler).is_file():  # Dask would wait for it
                raise InputError("scheduler", "the file that a scheduler wrote", scheduler)
            return distributed.Client(scheduler_file=scheduler, timeout=SECONDS)
        return distributed.Client(scheduler, timeout=SECONDS)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a time-out is an OSError; an address may be malformed
        expected = f"a Dask scheduler that answers within {SECONDS:.0f} s"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError("scheduler", expected, f"{scheduler} ({reason})") from error


def _local(count: int, threads: int | None, *, cuda: bool) -> Any:
    import dask
    from dask.system import CPU_COUNT
    from distributed import LocalCluster

    each = threads or max(1, math.floor(CPU_COUNT / count))
    # Dask's own limits of memory are off: the budget of a tile is what bounds it. Workers may be
    # killed, by the system or by hand; a tile is not to blame before ten of them died with it.
    dask.config.set({"distributed.scheduler.allowed-failures": 10})
    options = {"n_workers": count, "threads_per_worker": each, "memory_limit": 0}
    if cuda:
        return _optional("dask_cuda", "cuda").LocalCUDACluster(**options)
    return LocalCluster(**options, dashboard_address=None, silence_logs=logging.ERROR)


def _slurm(count: int) -> Any:
    jobqueue = _optional("dask_jobqueue", "slurm")
    try:
        cluster = jobqueue.SLURMCluster()
    except ValueError as error:
        expected = "cores and memory of a job in Dask's configuration (jobqueue.slurm)"
        raise InputError("scheduler", expected, str(error).splitlines()[0]) from error
    # a job that ends, by its time limit or by a fault, is submitted again
    cluster.adapt(minimum_jobs=count, maximum_jobs=count)
    return cluster


def _optional(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        command = f"pip install 'microdiffusion-fast[{extra}]'"
        expected = f"{name.replace('_', '-')}, which {command} installs"
        raise InputError("scheduler", expected, str(error)) from error


@contextmanager
def _worded(client: Any) -> Iterator[None]:
    """Say in one line what went wrong with the cluster."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except KilledWorker as error:
        expected = "workers that live (their logs say more: have they this package, and memory?)"
        got = f"several that died with the same tile, the last {error.last_worker.address}"
        raise InputError("scheduler", expected, f"{got}; what is finished is kept") from error
    except (CancelledError, CommClosedError, TimeoutError) as error:
        expected = "a scheduler that stays"
        got = f"{client.scheduler.address}, which was lost; what is finished is kept"
        raise InputError("scheduler", expected, got) from error
    except ModuleNotFoundError as error:
        raise InputError("scheduler", "workers with this package", str(error)) from error
