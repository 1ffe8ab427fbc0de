"""The property that every case has to keep, and the limits that make a breach visible."""

from __future__ import annotations

import faulthandler
import gc
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from microdiffusion_fast.errors import InputError

SECONDS = 10.0  # a case that takes longer hangs
MEMORY = 2**30  # bytes of address space that a case may add; 16 times what a reader may give back
MAX_MESSAGE = 2000  # characters of a message that people are to read


class Hang(BaseException):
    """A case took too long. No Exception, so that no reader can take it for a fault of the file."""


@contextmanager
def limited() -> Iterator[None]:
    """Let no case run for long or take much memory; for a process that does nothing else."""

    def hung(number: int, frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hung)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + MEMORY, hard))
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def watch() -> None:
    """End this process unless it is called again in time: for code that takes no signals."""
    faulthandler.dump_traceback_later(30 * SECONDS, exit=True)


def judge(read: Callable[[bytes], object], content: bytes) -> str | None:
    """Read a case within the limits.

    Returns:
        None where it loads, "" where it is refused as it should be, else what is wrong.
    """
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        read(content)
    except InputError as error:
        return _refusal(error)
    except Hang:
        return f"hangs: more than {SECONDS:g} s"
    except BaseException as error:  # KeyboardInterrupt too: no file may raise one
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__} at {_where(error)}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _refusal(error: InputError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        # torch's allocator raises a RuntimeError
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            return f"asks for too much memory at {_where(cause)}: {cause}"
        if isinstance(cause, RecursionError):
            break  # Python's own bound, reported as a fault of the file
        cause = cause.__cause__ or cause.__context__
    if len(str(error)) > MAX_MESSAGE or not str(error).isprintable():
        return f"not one clear line of text: {len(str(error))} characters, {str(error)[:200]!r}"
    return ""


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))


def address_space() -> int:
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def peak_memory() -> int:
    """The largest resident set so far, in bytes."""
    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
