"""What a result was measured on: machine, versions, threads, backends and commit."""

from __future__ import annotations

import importlib.metadata
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.harness import DEVICE, SMOKE
from microdiffusion_fast import info

ROOT = Path(__file__).resolve().parent.parent
PEERS = (
    "diffusers",
    "scikit-image",
    "torchmetrics",
    "pytorch-msssim",
    "fused-ssim",
    "tinycudann",
    "pytest-benchmark",
)


def describe() -> dict[str, Any]:
    """All that a reader needs to know about a run, as plain JSON values."""
    found = info.collect_info()
    cuda = torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "smoke": SMOKE,
        "device": DEVICE.type,
        "gpu": cuda,
        "machine": found["machine"],
        "versions": found["versions"] | {name: _version(name) for name in PEERS},
        "ops": {name: used.get(DEVICE.type) for name, used in found["ops"].items()},
    }


def commit() -> str | None:
    """The commit of the source tree, with a plus for changes on top; None outside a clone."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        # Results themselves are no change of what was measured.
        changed = _git("status", "--porcelain", "--", ".", ":(exclude)bench/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
