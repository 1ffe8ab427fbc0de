"""Dask clusters: one that runs, processes of this machine, or jobs of Slurm.

`distributed`, `dask-jobqueue` and `dask-cuda` are imported if asked for.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import InputError

SECONDS = 20.0  # for a scheduler to answer
LOOK = 5.0  # seconds from look to look whether a worker is to be replaced
BACK = "60s"  # for a process that died to be there again; Dask's 15 s are short for a busy machine


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
            yield client
            return
        slurm = found[1] == "slurm"
        cluster = _slurm(count) if slurm else _local(count, threads, cuda=cuda)
        client = distributed.Client(cluster)
        with _replacing(cluster, {"jobs" if slurm else "n": count}):
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
    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": 10,
            "distributed.deploy.lost-worker-timeout": BACK,
        }
    )
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
    cluster.scale(jobs=count)
    return cluster


@contextmanager
def _replacing(cluster: Any, size: dict[str, int]) -> Iterator[None]:
    """Within the block the cluster has its size again a while after it has lost some of it.

    Dask starts a process again that died. But it gives up one that is not back in time, and a job
    that ended, by its time limit or by a fault: those it starts when it is told its size again.
    """
    ended = threading.Event()

    def scale() -> None:
        while not ended.wait(LOOK):
            with suppress(Exception):  # what is wrong with the cluster, the client finds out
                cluster.scale(**size)

    looking = threading.Thread(target=scale, name="replace workers", daemon=True)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()


def _optional(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        command = f"pip install 'microdiffusion-fast[{extra}]'"
        expected = f"{name.replace('_', '-')}, which {command} installs"
        raise InputError("scheduler", expected, str(error)) from error
