"""Which compiled backends are there, and why not where they are not.

The one place that looks for the native module and for Triton; kernels ask here and fall back to
their reference. Triton is looked for, not imported: it loads with the first kernel on a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

import torch

# The module lies beside this package: ..._native for ...kernels.
_NATIVE = f"{__package__.rpartition('.')[0]}._native"


def _load() -> tuple[ModuleType | None, str | None]:
    if importlib.util.find_spec(_NATIVE) is None:
        return None, (
            "not built: no C++ compiler or CMake at installation, or MDF_BUILD_NATIVE=0 "
            "(reinstall to build it)"
        )
    try:
        return importlib.import_module(_NATIVE), None
    except ImportError as error:
        return None, f"built but does not load: {error}"


native: ModuleType | None
native_missing: str | None
native, native_missing = _load()


def _one_thread() -> None:
    # libgomp's threads do not survive a fork, and it waits for them for ever, in torch's own
    # operators too. One thread asks for none; who forks before any parallel work may set more.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread)

triton_missing: str | None = (
    None
    if importlib.util.find_spec("triton") is not None
    else "not installed: it comes with the CUDA builds of torch on Linux"
)
