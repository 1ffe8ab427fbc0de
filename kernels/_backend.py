"""Which compiled backends are there, and why not where they are not.

The one place that looks for the native module and for Triton; kernels ask here and fall back to
their reference. Triton is looked for, not imported: it loads with the first kernel on a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

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

triton_missing: str | None = (
    None
    if importlib.util.find_spec("triton") is not None
    else "not installed: it comes with the CUDA builds of torch on Linux"
)
