"""Locks between processes, of one machine or many: kept by the file system, gone with their holder.

They are advisory, and lie in files of their own. A network file system has to pass them on: NFS
does; Lustre does where it is mounted with `-o flock`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

PATIENCE = 1.0  # seconds before it is said that a lock is waited for
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def hold(
    path: Path, *, shared: bool = False, wait: bool = True, whose: str | None = None
) -> int | None:
    """Take the lock of a file, which is made where it is not there.

    Args:
        path: of the file.
        shared: with others that share it; alone otherwise.
        wait: until it is to be had.
        whose: the process that is waited for, in words: said once on stderr if it takes long.

    Returns:
        A descriptor, whose end is that of the lock; None where another process has it.

    Raises:
        InputError: a file system without locks.
        FileNotFoundError: the folder is not there.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    patience = time.monotonic() + PATIENCE
    while True:
        at_once = not wait or whose is not None
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind | (fcntl.LOCK_NB if at_once else 0))
            # who had it may have removed the file: then this is the lock of nothing
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            if not wait:
                return None
            if time.monotonic() < patience:
                time.sleep(PATIENCE / 20)
            else:
                print(f"waiting for {whose} ({path.parent})", file=sys.stderr, flush=True)
                whose = None
            continue
        except FileNotFoundError:
            pass  # removed
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError) and error.errno in _UNSUPPORTED:
                expected = "a file system with locks (flock; of Lustre, one mounted with it)"
                raise InputError("output", expected, str(path.parent)) from error
            raise
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, shared: bool = False, whose: str | None = None) -> Iterator[None]:
    """Hold the lock of a file within a block, see `hold`; it is waited for."""
    descriptor = hold(path, shared=shared, whose=whose)
    assert descriptor is not None  # it was waited for
    try:
        yield
    finally:
        os.close(descriptor)


def share(descriptor: int) -> None:
    """Let others share a lock that was held alone."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)
