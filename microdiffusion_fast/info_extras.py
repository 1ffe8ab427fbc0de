"""What can be added to an installation: whether it is there, what for, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microdiffusion_fast.provenance import version_of

_QT = ("PyQt6", "PySide6", "PyQt5", "PySide2")
_DISTRIBUTION = "microdiffusion-fast"
TINYCUDANN = (
    "pip install 'setuptools<82' ninja && pip install --no-build-isolation "
    "'git+https://github.com/NVlabs/tiny-cuda-nn#subdirectory=bindings/torch'"
)
NATIVE = "install a C++ compiler, then: pip install --force-reinstall --no-deps ."
CUDA = "pip install --force-reinstall torch"


@dataclass(frozen=True)
class Extra:
    """An optional part.

    Attributes:
        package: the distribution that it stands on.
        purpose: what it is good for.
        fallback: its requirement, where the metadata of the installation do not know it.
    """

    package: str
    purpose: str
    fallback: str


EXTRAS = {
    "napari": Extra("napari", "the napari plugin", "napari[pyqt6]"),
    "diffusers": Extra("diffusers", "schedulers for diffusers", "diffusers"),
    "torchmetrics": Extra("torchmetrics", "metrics for torchmetrics", "torchmetrics"),
    "dask": Extra("distributed", "reconstruction on a cluster", "distributed"),
    "io": Extra("imagecodecs", "LZW, JPEG 2000 and other TIFF compressions", "imagecodecs"),
}


def collect_extras() -> dict[str, dict[str, Any]]:
    """By extra: `version` (None where absent), `purpose`, `reason` it is not used (None where it
    is), and `install`, the command that mends it.
    """
    found = {}
    for name, extra in EXTRAS.items():
        version = version_of(extra.package)
        reason = None if version else "not installed"
        if name == "napari" and version and not any(map(importlib.util.find_spec, _QT)):
            reason = "has no Qt binding"
        found[name] = {
            "version": version,
            "purpose": extra.purpose,
            "reason": reason,
            "install": None if reason is None else install_line(name),
        }
    return found


def install_line(name: str) -> str:
    """The command that installs what an extra stands on, as the metadata of the package say."""
    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    marked = re.compile(rf"""extra\s*==\s*['"]{name}['"]""")
    wanted = [line.split(";")[0].strip() for line in lines if marked.search(line)]
    return f"pip install {shlex.join(wanted or [EXTRAS[name].fallback])}"


def has_nvidia_gpu() -> bool:
    """Whether the machine shows an NVIDIA GPU, whatever torch says."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def cuda_line(reason: str) -> str | None:
    """The command that gives torch CUDA; None where there is no GPU for it."""
    if not has_nvidia_gpu():
        return None
    # On other systems the default build of torch has no CUDA at all.
    return CUDA if "CPU build" in reason and sys.platform == "linux" else None
