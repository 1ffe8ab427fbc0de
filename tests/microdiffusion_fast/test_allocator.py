"""Freed memory that stays: fewer pages to clear, nothing kept when the block is over."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from microdiffusion_fast import allocator
from microdiffusion_fast.allocator import give_back, keeping

MIB = 2**20

FAULTS = """
import resource, numpy
from microdiffusion_fast.allocator import keeping
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        numpy.empty(40 * 2**18, numpy.float32).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
outside = faults()
with keeping(40 * 2**20):
    faults()
    inside = faults()
with open("/proc/self/statm") as file:
    kept = int(file.read().split()[1]) * resource.getpagesize()
print(outside, inside, faults(), kept)
"""


def faults(**environment: str) -> list[int]:
    """Page faults outside, within and after a block, and bytes that are resident in the end."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=plain | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in done.stdout.split()]


needs_glibc = pytest.mark.skipif(not allocator._tunable(), reason="the C library is not glibc")


@needs_glibc
def test_arrays_reuse_their_pages_within_the_block_only() -> None:
    outside, inside, after, _ = faults()
    assert inside < outside / 10
    assert after > 10 * inside


@needs_glibc
def test_limits_of_the_environment_stay() -> None:
    outside, inside, *_ = faults(MALLOC_MMAP_THRESHOLD_="1048576")
    assert inside > outside / 2


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the C library is told."""
    told: list[tuple[int, int]] = []

    class Library:
        gnu_get_libc_version = None

        def mallopt(self, name: int, value: int) -> int:
            told.append((name, value))
            return 1

        def malloc_trim(self, pad: int) -> int:
            told.append((0, pad))
            return 1

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(allocator, "_tunable", lambda: True)
    return told


def test_overlapping_blocks_keep_until_the_last_one_ends(calls: list[tuple[int, int]]) -> None:
    with keeping(100 * MIB):
        assert calls[-2:] == [(-3, 200 * MIB), (-1, 800 * MIB)]
        with keeping(300 * MIB, 8):
            assert calls[-2:] == [(-3, 600 * MIB), (-1, 2**31 - 1)]
        assert calls[-2:] == [(-3, 200 * MIB), (-1, 800 * MIB)]
        assert (0, 0) not in calls
    assert calls[-3:] == [(-3, 32 * MIB), (-1, 64 * MIB), (0, 0)]


def test_blocks_of_threads_and_errors_are_counted(calls: list[tuple[int, int]]) -> None:
    def block() -> None:
        with pytest.raises(ZeroDivisionError), keeping(50 * MIB):
            raise ZeroDivisionError

    threads = [threading.Thread(target=block) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert allocator._asked == []
    assert calls[-1] == (0, 0)


def test_small_arrays_change_nothing(calls: list[tuple[int, int]]) -> None:
    with keeping(MIB), keeping(0):
        pass
    assert calls == []


def test_memory_is_given_back_within_a_block_only(calls: list[tuple[int, int]]) -> None:
    give_back()
    assert calls == []
    with keeping(50 * MIB):
        give_back()
        assert calls[-1] == (0, 0)
        give_back()
        assert calls[-2:] == [(0, 0)] * 2
