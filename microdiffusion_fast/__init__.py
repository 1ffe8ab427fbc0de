"""Depth-resolved volumes from axially averaged projections.

import microdiffusion_fast as mdf

result = mdf.reconstruct("projections.ome.tif", step_length=6)
result.save("volume.ome.zarr")
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import metrics as metrics
    from .errors import InputError as InputError
    from .forward_model import AxialProjection as AxialProjection
    from .io import read_volume as read_volume
    from .io import write_volume as write_volume
    from .metrics_stream import evaluate_stored as evaluate_stored
    from .projections import Projections as Projections
    from .reconstruct import Reconstruction as Reconstruction
    from .reconstruct import reconstruct as reconstruct
    from .simulate import simulate_projections as simulate_projections
    from .simulate import simulate_volume as simulate_volume
    from .simulate_stream import simulate_stored as simulate_stored
    from .store_verify import verify as verify
    from .streaming import stream_reconstruct as stream_reconstruct

# name -> module; loaded on first use, so that importing the package or asking for --help is quick
_LAZY = {
    "AxialProjection": "forward_model",
    "InputError": "errors",
    "evaluate_stored": "metrics_stream",
    "Projections": "projections",
    "Reconstruction": "reconstruct",
    "read_volume": "io",
    "reconstruct": "reconstruct",
    "simulate_projections": "simulate",
    "simulate_stored": "simulate_stream",
    "simulate_volume": "simulate",
    "stream_reconstruct": "streaming",
    "verify": "store_verify",
    "write_volume": "io",
}
_MODULES = ("metrics", "kernels", "simulate", "training", "experiments")

__all__ = [*_LAZY, "__version__", "metrics"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("microdiffusion-fast")
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `mdf.reconstruct` the function: importing the submodule would put the module there."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
