"""Freed memory that is kept for the next array, for networks on a CPU.

glibc gives every array of 32 MiB or more back to the system when it is freed, often smaller ones
too, and the system clears the pages of the next one. A convolutional network makes and frees such
arrays all the time: at 384 x 384 pixels half of the time went there.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SMALL = 2**20  # arrays up to this size stay anyway
_LEAST = 128 * 2**20
_USUAL = (32 * 2**20, 64 * 2**20)  # where glibc's own thresholds end, which move with what is freed
_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h

_lock = threading.Lock()
_asked: list[tuple[int, int]] = []  # by the blocks at work


@contextmanager
def keeping(size: int, count: int = 8) -> Iterator[None]:
    """Within the block freed arrays of up to `size` bytes stay with the process, some `count`.

    They are given back at its end; glibc's limits, which move by themselves before, then stay where
    they end in a program that frees large arrays. Blocks may overlap, in other threads too. Nothing
    happens where arrays are small, where the C library is not glibc, and where the environment sets
    its limits.
    """
    if size <= SMALL or not _tunable():
        yield
        return
    _change(_asked.append, (size, count))
    try:
        yield
    finally:
        _change(_asked.remove, (size, count))


def give_back() -> None:
    """Within a block of `keeping`: give back what is kept, for arrays of other sizes to come.

    Arrays of many sizes leave gaps. At 512 x 512 pixels what was kept in them after two windows was
    as much as the encoder takes at work, with this call before each window half of that, in no
    more time.
    """
    if _asked:
        ctypes.CDLL(None).malloc_trim(0)


def _change(how: Callable[[tuple[int, int]], None], block: tuple[int, int]) -> None:
    library = ctypes.CDLL(None)
    with _lock:
        how(block)
        mapped, trimmed = _thresholds()
        if not library.mallopt(_MAP, mapped):  # before 2.35 glibc takes no more than this
            library.mallopt(_MAP, _USUAL[0])
        library.mallopt(_TRIM, min(trimmed, 2**31 - 1))  # an int
        if not _asked:
            library.malloc_trim(0)


def _thresholds() -> tuple[int, int]:
    """Bytes from which an array is mapped, and from which free memory is given back."""
    if not _asked:
        return _USUAL
    mapped = max([_LEAST, *(2 * size for size, _ in _asked)])
    mapped = min(mapped, 2**30)
    return mapped, max([4 * mapped, *(size * count for size, count in _asked)])


def _tunable() -> bool:
    limits = any(name.startswith("MALLOC_") for name in os.environ)
    if limits or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    except (OSError, TypeError):  # Windows
        return False
