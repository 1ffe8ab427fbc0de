"""Tiles on Dask workers: the bits of one process, whoever dies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from microdiffusion_fast import distributed as ours
from microdiffusion_fast import distributed_cluster as clusters
from microdiffusion_fast.distributed import BATCHES, LONGEST, DaskTiles, batches
from microdiffusion_fast.distributed_cluster import connect
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.progress import Cancelled, ProgressEvent
from microdiffusion_fast.streaming import stream_reconstruct

if TYPE_CHECKING:
    from .conftest import Finished, SmallStack

Digest = Callable[[Path], str]
pytestmark = pytest.mark.timeout(300)  # workers import torch; beside other work that takes minutes


@pytest.fixture(scope="module")
def dask() -> Any:
    return pytest.importorskip("distributed", reason="dask.distributed is not installed")


@pytest.fixture(scope="module")
def client(dask: Any) -> Iterator[Any]:
    """Two processes of one thread."""
    with connect("local:2", threads=1) as client:
        yield client


@pytest.mark.parametrize("workers", [1, 2, 100])
@pytest.mark.parametrize("count", [0, 1, 30, 5000])
def test_batches(count: int, workers: int) -> None:
    tiles = list(range(3, 3 + count))
    made = list(batches(tiles, workers))
    assert [tile for batch in made for tile in batch] == tiles
    assert all(len(batch) <= LONGEST for batch in made)
    assert len(made) >= min(count, BATCHES * workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_bits_of_one_process(
    client: Any, small_stack: SmallStack, whole: Finished, store_digest: Digest,
    tmp_path: Path, workers: int,
) -> None:  # fmt: skip
    """With one of two workers closed to tiles, and with both; progress counts tiles."""
    output, seen, used = tmp_path / "v.zarr", [], set()
    one = sorted(client.nthreads())[:workers]

    class Some:
        """The client, for some of its workers only."""

        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def submit(self, *arguments: Any, **options: Any) -> Any:
            future = client.submit(*arguments, **options, workers=one)
            used.update(one)
            return future

    def watch(event: ProgressEvent) -> None:
        if event.stage == "reconstruct":
            seen.append(event.done)

    done = small_stack.run(output, client=Some(), callback=watch, threads=None)
    assert done.finished and done.tiles == len(seen) == whole.tiles
    assert store_digest(output) == whole.digest
    assert len(used) == workers


def test_dask_parts_and_one_process_go_on_with_each_other(
    client: Any, small_stack: SmallStack, whole: Finished, store_digest: Digest, tmp_path: Path
) -> None:
    output = tmp_path / "v.zarr"

    def stop(event: ProgressEvent) -> bool:
        return not (event.stage == "reconstruct" and event.done >= 6)

    with pytest.raises(Cancelled):
        small_stack.run(output, client=client, callback=stop)
    assert small_stack.run(output, shard="2/2").resumed < 15
    with pytest.raises(Cancelled):
        small_stack.run(output, callback=lambda event: event.stage != "reconstruct")
    done = small_stack.run(output, client=client)
    assert 15 <= done.resumed < done.tiles
    assert store_digest(output) == whole.digest


def test_workers_are_killed(
    client: Any, small_stack: SmallStack, whole: Finished, store_digest: Digest, tmp_path: Path
) -> None:
    """Their tiles are computed by the others, or by the one that takes their place."""
    output = tmp_path / "v.zarr"
    rng = random.Random(int(os.environ.get("KILL_SEED", "1")))
    kills = int(os.environ.get("KILLS", "2"))
    when = sorted(rng.sample(range(1, whole.tiles - 2), kills))
    killed: list[int] = []

    def kill(event: ProgressEvent) -> None:
        if event.stage == "reconstruct" and when and event.done >= when[0]:
            when.pop(0)
            while not (pids := client.run(os.getpid)):
                pass
            killed.append(rng.choice(sorted(pids.values())))
            os.kill(killed[-1], signal.SIGKILL)

    done = small_stack.run(output, client=client, callback=kill)
    assert done.finished and len(killed) == kills
    assert store_digest(output) == whole.digest


def test_a_worker_that_is_given_up_is_replaced(
    dask: Any, small_stack: SmallStack, whole: Finished, store_digest: Digest,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Dask forgets a process that takes longer to start again than its limit: here, always."""
    monkeypatch.setattr(clusters, "BACK", "1ms")
    monkeypatch.setattr(clusters, "LOOK", 0.2)
    monkeypatch.setattr(ours, "LOOK", 0.2)
    output, killed = tmp_path / "v.zarr", []

    def kill(event: ProgressEvent) -> None:
        if event.stage == "reconstruct" and event.done == 4 and not killed:
            killed.extend(client.run(os.getpid).values())
            os.kill(killed[0], signal.SIGKILL)

    config = pytest.importorskip("dask.config")
    name = "distributed.deploy.lost-worker-timeout"
    with config.set({name: config.get(name)}), connect("local:1", threads=1) as client:
        done = small_stack.run(output, client=client, callback=kill)
        assert killed and killed[0] not in client.run(os.getpid).values()
    assert done.finished and store_digest(output) == whole.digest
    assert "all workers are lost; waiting for one to come" in capfd.readouterr().err


def test_a_job_that_ended_is_submitted_again(dask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that runs its jobs here stands for Slurm."""
    queue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    config = pytest.importorskip("dask.config")
    here = pytest.importorskip("dask_jobqueue.local").LocalCluster
    monkeypatch.setattr(queue, "SLURMCluster", here)
    monkeypatch.setattr(clusters, "LOOK", 0.2)
    options = {"cores": 1, "memory": "1GB", "python": sys.executable}
    settings = {f"jobqueue.local.{name}": value for name, value in options.items()}
    with config.set({**settings, "distributed.deploy.lost-worker-timeout": "1ms"}):
        with connect("slurm:1") as client:
            client.wait_for_workers(1, timeout=60)
            (first,) = client.run(os.getppid).values()  # what looks after the worker: the job
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: first not in client.run(os.getppid).values())
            client.wait_for_workers(1, timeout=60)


def test_workers_that_are_all_lost(
    dask: Any, small_stack: SmallStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody starts others: that is said, and not waited for without end."""
    monkeypatch.setattr(ours, "LOOK", 0.2)
    monkeypatch.setattr(ours, "PATIENCE", 1.0)

    def kill(event: ProgressEvent) -> None:
        if event.stage == "reconstruct" and event.done == 4:
            cluster.scale(0)

    with (
        dask.LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address=None
        ) as cluster,
        dask.Client(cluster) as client,
    ):
        with pytest.raises(InputError, match="^scheduler: expected a worker within 0 minutes"):
            small_stack.run(tmp_path / "v.zarr", client=client, callback=kill)
    assert small_stack.run(tmp_path / "v.zarr").resumed >= 4


def test_workers_keep_nothing_when_the_run_is_over(
    client: Any, small_stack: SmallStack, tmp_path: Path
) -> None:
    """Not the weights, not the thread that reads, however the run ends."""

    def kept() -> list[tuple[int, int]]:
        found = client.run(_kept)
        return list(found.values())

    def cancel(event: ProgressEvent) -> bool:
        if event.stage == "reconstruct":
            seen.append(sum(workers for workers, _ in kept()))
        return event.stage != "reconstruct" or event.done < 4

    seen: list[int] = []
    with pytest.raises(Cancelled):
        small_stack.run(tmp_path / "v.zarr", client=client, callback=cancel)
    assert max(seen) > 0  # otherwise this shows nothing
    wait_for(lambda: kept() == [(0, 0)] * 2)
    small_stack.run(tmp_path / "v.zarr", client=client)
    wait_for(lambda: kept() == [(0, 0)] * 2)


def _kept() -> tuple[int, int]:
    """On a worker: what is open there, and threads that read for it."""
    import threading

    from microdiffusion_fast import distributed

    reading = [thread for thread in threading.enumerate() if thread.name.startswith("read")]
    return len(distributed._open), len(reading)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_a_worker_cannot_do_is_one_clear_line(
    client: Any, small_stack: SmallStack, tmp_path: Path
) -> None:
    copy = tmp_path / "p.ome.zarr"
    shutil.copytree(small_stack.source, copy)

    def lose(event: ProgressEvent) -> None:
        chunk = next((file for file in (copy / "0" / "c").rglob("*") if file.is_file()), None)
        if chunk is not None:
            chunk.unlink()

    # with a number of steps the check is made, noisy as the stack is: it is when the chunk is lost
    options = {**small_stack.options, "adapt_steps": 0, "callback": lose}
    with pytest.raises(InputError, match="^path: expected all 1 chunks") as caught:
        stream_reconstruct(copy, tmp_path / "v.zarr", client=client, **options)
    assert "\n" not in str(caught.value)


def test_another_version_is_refused(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "version_of", lambda name: "9.9")
    job: Any = None
    with pytest.raises(InputError, match="^scheduler: expected workers with version 9.9"):
        list(DaskTiles(client)(job, [1]))


def test_a_scheduler_that_is_lost(dask: Any, small_stack: SmallStack, tmp_path: Path) -> None:
    code = (
        "from distributed import Client, LocalCluster; import time\n"
        "if __name__ == '__main__':\n"
        "    c = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=':0')\n"
        "    print(c.scheduler_address, flush=True); time.sleep(120)"
    )
    server = tmp_path / "server.py"
    server.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(server)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()

        def kill(event: ProgressEvent) -> None:
            if event.stage == "reconstruct" and event.done == 2:
                os.killpg(process.pid, signal.SIGKILL)

        config = pytest.importorskip("dask.config")
        with config.set({"distributed.comm.timeouts.connect": "1s"}):  # to come back
            with connect(address) as client:
                with pytest.raises(InputError, match="^scheduler: expected a scheduler that stays"):
                    small_stack.run(tmp_path / "v.zarr", client=client, callback=kill)
        assert small_stack.run(tmp_path / "v.zarr").resumed >= 2
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("scheduler", "got"),
    [
        ("tcp://127.0.0.1:1", "answers within 1 s, got tcp://127.0.0.1:1"),
        ("nowhere.json", "the file that a scheduler wrote, got nowhere.json"),
        ("local:0", "at least one worker"),
        ("abacus", "local:N or slurm:N, got 'abacus'"),
        ("tcp://nowhere.invalid:8786", "a Dask scheduler that answers"),
    ],
)
def test_schedulers_that_are_none(
    dask: Any, monkeypatch: pytest.MonkeyPatch, scheduler: str, got: str
) -> None:
    monkeypatch.setattr(clusters, "SECONDS", 1.0)
    with pytest.raises(InputError, match="^scheduler: expected") as caught:
        with connect(scheduler):
            pass
    assert got in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheduler", "module", "extra"),
    [("local:2", "distributed", "dask"), ("tcp://a:1", "distributed", "dask")],
)
def test_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, scheduler: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    command = f"pip install 'microdiffusion-fast\\[{extra}\\]'"
    with pytest.raises(InputError, match=f"^scheduler: expected {module}, which {command}"):
        with connect(scheduler):
            pass


def test_a_cluster_ends_where_no_client_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    closed: list[bool] = []

    class Cluster:
        def close(self) -> None:
            closed.append(True)

    def fail(cluster: Cluster) -> None:
        raise OSError("no client")

    monkeypatch.setattr(clusters, "_local", lambda *_, **__: Cluster())
    monkeypatch.setattr(distributed, "Client", fail)
    with pytest.raises(OSError, match="no client"), connect("local:2"):
        pass
    assert closed == [True]


def test_what_is_no_client() -> None:
    with pytest.raises(InputError, match="^client: expected a dask.distributed Client, got str"):
        DaskTiles("tcp://a:1")


def test_a_cluster_leaves_the_environment_alone() -> None:
    """Dask would leave OMP_NUM_THREADS=1 to whatever is started afterwards."""
    before = dict(os.environ)
    with connect("local:1", threads=1):
        pass
    assert dict(os.environ) == before


def test_a_task_that_times_out_is_not_waited_for() -> None:
    class Failed:
        status = "error"

        def exception(self) -> BaseException:
            return TimeoutError("the file system")

    found = DaskTiles._result(Failed())
    assert isinstance(found, InputError)
    assert str(found).startswith("scheduler: expected workers that can read and write in time")


def test_a_connection_that_times_out_is_a_lost_scheduler(dask: Any) -> None:
    """Dask says so by a plain OSError, as it may anywhere that the scheduler is asked."""

    class Client:
        submit = wait_for_workers = None
        scheduler = type("Scheduler", (), {"address": "tcp://a:1"})

        def nthreads(self) -> dict[str, int]:
            raise OSError("Timed out trying to connect to tcp://a:1 after 1 s")

    expected = "^scheduler: expected a scheduler that stays, got tcp://a:1, which was lost"
    with pytest.raises(InputError, match=expected):
        _ = DaskTiles(Client()).threads
