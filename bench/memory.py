"""Peak memory of one call, and memory that shows what was never written."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """How much more memory one call takes at its peak, result included; None where unknown.

    On a GPU it is torch's allocator that counts. On Linux it is the kernel: the high-water mark of
    the resident set, reset before the call, sees every allocator, ours and numpy's. Memory that
    malloc holds back from earlier calls is returned first, or the call would reuse it unseen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5", encoding="ascii")
        resident = _kilobytes("VmRSS")
        run()
        return max(_kilobytes("VmHWM") - resident, 0) * 1024
    except (OSError, AttributeError):
        return None


def _kilobytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"no {name} in {_STATUS}")
    return int(found[1])


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN (integers their largest), so that a value never written shows."""
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
