"""The recipes for Slurm on a real one, of this node: jobs are killed, requeued, and cancelled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from microdiffusion_fast.distributed_cluster import connect
from microdiffusion_fast.progress import ProgressEvent
from microdiffusion_fast.streaming import stream_reconstruct

if TYPE_CHECKING:
    from .conftest import Finished, SmallStack

Digest = Callable[[Path], str]
REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "docs" / "recipes" / "single_node_slurm.sh"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
missing = [name for name in NEEDED if shutil.which(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"no Slurm here: {', '.join(missing)} not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="starting a Slurm takes root"),
    pytest.mark.timeout(400),
]
STEP = 4


def sh(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        start = subprocess.run(
            ["bash", str(RECIPE), "start", str(folder), "2"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=90,
        )  # fmt: skip
        try:
            if start.returncode:
                pytest.skip(f"Slurm does not start here ({start.stderr.strip()})")
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            if paths := os.environ.get("PYTHONPATH"):  # jobs run in folders of their own
                absolute = (str(Path(path).resolve()) for path in paths.split(os.pathsep))
                patch.setenv("PYTHONPATH", os.pathsep.join(absolute))
            yield
            subprocess.run(["scancel", "--user", "root"], check=False)
        finally:
            subprocess.run(["bash", str(RECIPE), "stop", str(folder)], check=False)


def wait_for(condition: Callable[[], object], seconds: float = 240, pause: float = 0.2) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, sh("squeue")
        time.sleep(pause)


def processes(word: str) -> list[int]:
    """Those of this program with a word in their command line, not counting Slurm's own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0] == sys.executable.encode() and any(word.encode() in w for w in words):
                found.append(int(entry.name))
    return found


def test_an_array_of_jobs_one_killed_one_requeued(
    slurm: None, small_stack: SmallStack, store_digest: Digest, tmp_path: Path
) -> None:
    source, output, script = tmp_path / "p.npy", tmp_path / "v.zarr", tmp_path / "job.sh"
    np.save(source, np.random.default_rng(0).random((6, 600, 600), np.float32))
    options = {"adapt": False, "denoiser": small_stack.denoiser, "memory": "200MiB"}
    expected = stream_reconstruct(
        source, tmp_path / "w.zarr", step_length=STEP, threads=1, **options  # type: ignore[arg-type]
    )  # fmt: skip
    assert expected.tiles >= 8  # each part has some left when it has done its first
    command = [sys.executable, "-m", "microdiffusion_fast", "reconstruct", str(source), "-o"]
    command += [str(output), "--step-length", str(STEP), "--no-adapt", "--memory", "200MiB"]
    command += ["--denoiser", str(small_stack.denoiser), "--threads", "1"]
    subprocess.run([*command, "--sbatch", str(script), "--parts", "2"], check=True, cwd=tmp_path)
    number = sh("sbatch", "--parsable", str(script)).strip()
    receipts = tmp_path / ".v.zarr.partial" / "receipts"
    wait_for(lambda: list(receipts.glob("*.json")) and processes("/2"), pause=0.01)
    killed = processes("/2")  # the parts, as in --shard 1/2
    os.kill(killed[0], signal.SIGKILL)  # of one that has ended this raises
    assert not output.exists()
    wait_for(lambda: killed[0] not in processes("/2"))
    for task in ("1", "2"):
        subprocess.run(["scontrol", "requeue", f"{number}_{task}"], check=False)
    wait_for(lambda: not sh("squeue", "--noheader"))
    logs = "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))
    print(logs)
    assert "Killed" in logs  # as the script's shell says
    assert store_digest(output) == store_digest(tmp_path / "w.zarr"), logs
    assert not list(tmp_path.glob(".v.zarr*"))


def test_dask_jobs_of_which_one_is_cancelled(
    slurm: None, small_stack: SmallStack, whole: Finished, store_digest: Digest, tmp_path: Path
) -> None:
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    config = pytest.importorskip("dask.config")
    output, cancelled = tmp_path / "v.zarr", []

    def cancel(event: ProgressEvent) -> None:
        if event.stage == "reconstruct" and event.done >= 4 and not cancelled:
            jobs = sh("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()
            cancelled.append(jobs[0])
            sh("scancel", "--signal=KILL", "--full", jobs[0])

    job = {"cores": 1, "memory": "1GB", "walltime": "00:10:00", "python": sys.executable}
    job |= {"log-directory": str(tmp_path), "job-script-prologue": [f"cd {tmp_path}"]}
    with config.set({f"jobqueue.slurm.{name}": value for name, value in job.items()}):
        with connect("slurm:2") as client:
            done = small_stack.run(output, client=client, callback=cancel, threads=None)
    assert done.finished and len(cancelled) == 1
    assert store_digest(output) == whole.digest
    wait_for(lambda: not sh("squeue", "--noheader"))
