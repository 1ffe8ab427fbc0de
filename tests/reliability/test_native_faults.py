"""The kernels in several threads, after a fork, in spawned processes, and without memory."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.axial_projection import axial_pseudo_inverse
from microdiffusion_fast.kernels.blended_step import COLUMNS, NoiseKey, blended_step
from microdiffusion_fast.kernels.counter_noise import counter_noise
from microdiffusion_fast.kernels.hash_encoding import HashGridSpec, hash_encoding
from microdiffusion_fast.kernels.volume_metrics import evaluate_sums
from microdiffusion_fast.kernels.windowed_ssim import windowed_ssim

sanitized = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="a sanitizer needs more address space than the limit, and keeps its own threads",
)


def python(code: str, threads: int = 2) -> subprocess.CompletedProcess[str]:
    """A process that imports what this one does."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def volume(seed: int) -> Tensor:
    return counter_noise((20, 24, 40), seed=seed, step=0)


def project(x: Tensor) -> Tensor:
    return axial_pseudo_inverse(x, [0.2, 0.3, 0.3, 0.2], 2, 0, 42)  # windows overlap: a solve


def step(x: Tensor) -> Tensor:
    x = x.clone()
    table = torch.zeros(1, len(COLUMNS))
    table[0, COLUMNS.index("a")] = 0.5
    table[0, COLUMNS.index("d")] = 0.5
    table[0, COLUMNS.index("low")], table[0, COLUMNS.index("high")] = -1, 1
    key = NoiseKey(seed=3, stream=0, offset=(0, 0, 0), volume_shape=tuple(x.shape))
    blended_step(x, x * 0.5, x * 0.25, table, torch.zeros((), dtype=torch.int64), noise=key)
    return x


def encode(x: Tensor) -> Tensor:
    spec = HashGridSpec(n_levels=4, n_features=2, log2_hashmap_size=10, base_resolution=4)
    table = counter_noise((1, 1, spec.n_params), seed=1, step=0)[0, 0]
    return hash_encoding(x.flatten()[:3000].sigmoid().reshape(-1, 3), table, spec)


def ssim(x: Tensor) -> Tensor:
    return windowed_ssim(x, x + 0.1, data_range=2.0, window="gaussian", ndim=3)


def sums(x: Tensor) -> Tensor:
    return evaluate_sums(x, x * 1.1, clip=(-2.0, 2.0)).histogram_x


OPS: list[Callable[[Tensor], Tensor]] = [project, step, encode, ssim, sums]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_threads_give_the_same_bits(op: Callable[[Tensor], Tensor]) -> None:
    """Two threads at a time, on one tensor that they share and on one that each has for itself."""
    inputs = [volume(0), volume(1)]
    alone = [op(x) for x in inputs]
    jobs = [0, 1, 0, 0, 1, 1, 0, 1] * 4
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda which: op(inputs[which]), jobs))
    for which, result in zip(jobs, found, strict=True):
        assert torch.equal(result, alone[which])
    assert torch.equal(inputs[0], volume(0))


USE = """
    import os, signal, torch
    from microdiffusion_fast.kernels.counter_noise import counter_noise
    from microdiffusion_fast.kernels.windowed_ssim import windowed_ssim
    torch.set_num_threads(2)

    def work():
        x = counter_noise((16, 128, 128), seed=0, step=0)
        net = torch.nn.functional.conv2d(x[:, None], torch.ones(4, 1, 3, 3))
        return float(windowed_ssim(x, x + 0.1, data_range=4.0, ndim=3)), float(net.mean())
"""


@sanitized
def test_a_forked_process_computes() -> None:
    """libgomp waits for ever for threads that a fork left behind; torch's operators do too."""
    code = f"""{USE}
    def fork(expected):
        pid = os.fork()
        if not pid:
            signal.alarm(30)
            found = work()[0]
            os._exit(0 if expected in (None, found) else 3)
        status = os.waitpid(pid, 0)[1]
        assert status == 0, status
        assert torch.get_num_threads() == 2  # the parent keeps its own

    fork(None)  # after import
    fork(work()[0])  # after a parallel region
    """
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_a_spawned_process_computes() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(counter_noise, ((4, 8, 8),), {"seed": 0, "step": 0}).get(60)
    assert torch.equal(found, counter_noise((4, 8, 8), seed=0, step=0))


@sanitized
@pytest.mark.skipif(_backend.native is None, reason="the native module is not built")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_no_memory_inside_a_parallel_region_is_a_memory_error() -> None:
    """An exception that left the region would end the process."""
    done = python(
        """
        import resource, torch
        from microdiffusion_fast.kernels import _backend
        from microdiffusion_fast.kernels.axial_projection import axial_pseudo_inverse
        torch.set_num_threads(2)
        warm = axial_pseudo_inverse(torch.rand(4, 80, 80), [0.5, 0.5], 1, 0, 5)
        y = torch.rand(150_000, 1, 32)
        axial_pseudo_inverse(y[:1000], [0.5, 0.5], 1, 0, 1001)
        # the solution takes 19 MB, the scratch of each thread as much again
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 30_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        try:
            axial_pseudo_inverse(y, [0.5, 0.5], 1, 0, 150_001)
        except MemoryError:
            print("MemoryError")
        again = axial_pseudo_inverse(torch.rand(4, 80, 80), [0.5, 0.5], 1, 0, 5)
        print(tuple(again.shape))
        """
    )
    assert done.stdout.split("\n")[:2] == ["MemoryError", "(5, 80, 80)"], done.stdout + done.stderr
