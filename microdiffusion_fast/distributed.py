"""Tiles on the workers of a Dask cluster; `distributed_cluster` connects to one or starts it.

The driver plans, prepares and finishes; a worker reads, computes and writes its tiles itself and
sends back a receipt of a few bytes. Files are reached under the same path from everywhere.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice, zip_longest
from typing import Any

from .errors import InputError
from .provenance import version_of
from .streaming_tiles import TileJob, TileReceipt, TileWorker

AHEAD = 2  # batches that a worker computes or has ready
BATCHES = 8  # that a worker gets in all, at least: the last ones level out differences
LONGEST = 16  # tiles of a batch
LOOK = 5.0  # seconds from look to look whether there is a worker
PATIENCE = 3600.0  # seconds without any worker, from one that was there
PACKAGE = "microdiffusion-fast"


class DaskTiles:
    """The workers of a Dask client, as what `stream_reconstruct` computes tiles with.

    A worker loads the weights once for a run and does one tile at a time, on the threads that Dask
    counts for it; tiles of a worker that is lost go to another. Workers may come and go: while
    there is none, one is waited for, the first without limit, as for a queue of jobs, and one
    that comes after all were lost for `PATIENCE` seconds.

    Args:
        client: of `dask.distributed`.

    Raises:
        InputError: no such client.
    """

    def __init__(self, client: Any) -> None:
        if not all(hasattr(client, name) for name in ("submit", "nthreads", "wait_for_workers")):
            raise InputError("client", "a dask.distributed Client", type(client).__name__)
        self.client = client
        self._alone: float | None = None  # since when there is no worker

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
        from distributed import wait

        with _worded(self.client):
            waiting = batches(tiles, max(1, len(self.client.nthreads())))
            running: set[Any] = set()
            try:
                while True:
                    more = AHEAD * max(1, len(self.client.nthreads())) - len(running)
                    running |= {self._submit(job, batch) for batch in islice(waiting, max(more, 0))}
                    if not running:
                        return
                    some = partial(wait, running, timeout=LOOK, return_when="FIRST_COMPLETED")
                    for future in self._patiently(some).done:
                        receipts = self._patiently(partial(self._result, future))
                        running.remove(future)
                        if isinstance(receipts, InputError):
                            raise receipts
                        yield from receipts
            finally:
                with suppress(Exception):  # of a scheduler that is gone
                    self.client.cancel(list(running))
                    if self.client.status == "running":  # else it would be waited for
                        self._release(job)

    @staticmethod
    def _result(future: Any) -> list[TileReceipt] | InputError:
        """What a task gave; the worker that holds it may be lost, then it is computed again."""
        if future.status == "error" and isinstance(error := future.exception(), OSError):
            # of a file system, say: raised here it would pass for one of Dask
            return InputError("scheduler", "workers that can read and write in time", repr(error))
        found: list[TileReceipt] | InputError = future.result(timeout=LOOK)
        return found

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Repeat a call that ends by a time-out, for as long as there is hope.

        Raises:
            InputError: all workers are lost, and none came back.
        """
        while True:
            try:
                found = call()
            except TimeoutError:
                self._look()
            else:
                self._alone = None
                return found

    def _look(self) -> None:
        if self.client.nthreads():
            self._alone = None
        elif self._alone is None:
            self._alone = time.monotonic()
            print("all workers are lost; waiting for one to come", file=sys.stderr, flush=True)
        elif time.monotonic() - self._alone > PATIENCE:
            expected = f"a worker within {PATIENCE / 60:.0f} minutes after all were lost"
            got = f"none at {self.client.scheduler.address}; what is finished is kept"
            raise InputError("scheduler", expected, got)

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
def _worded(client: Any) -> Iterator[None]:
    """Say in one line what went wrong with the cluster."""
    from distributed import CancelledError, KilledWorker

    try:
        yield
    except KilledWorker as error:
        expected = "workers that live (their logs say more: have they this package, and memory?)"
        got = f"several that died with the same tile, the last {error.last_worker.address}"
        raise InputError("scheduler", expected, f"{got}; what is finished is kept") from error
    except (CancelledError, OSError) as error:  # a connection that is closed, refused or too slow
        expected = "a scheduler that stays"
        got = f"{client.scheduler.address}, which was lost; what is finished is kept"
        raise InputError("scheduler", expected, got) from error
    except ModuleNotFoundError as error:
        raise InputError("scheduler", "workers with this package", str(error)) from error
