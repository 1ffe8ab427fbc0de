"""Shared fixtures: hypothesis settings, the real volumes, poisoned memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Triton reads this when a kernel module is imported: without a GPU its interpreter runs them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Derandomised: a red run is red again. No deadline: first calls compile, import and warm up.
settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY.parent / "shared" / "data"


def _real_volume(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"real volume {name} is not in ../shared/data")
    return path


@pytest.fixture
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(
    params=[
        "vesselexpress_brain_100.tif",
        "trailmap_A_dev_130x128x128.tif",
        "cellseg3d_nuclei_124.tif",
    ],
    ids=["vessels", "axons", "nuclei"],
)
def real_volume(request: pytest.FixtureRequest) -> Path:
    """The path of each real volume in turn; skips where it is absent."""
    return _real_volume(request.param)


@pytest.fixture
def vessel_volume() -> Path:
    """The path of the real vessel volume; skips where it is absent."""
    return _real_volume("vesselexpress_brain_100.tif")


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN (integers their largest), so that a value never written shows.

    torch's own fill: it covers `Tensor.new_empty` and `empty_strided` too.
    """
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_deterministic_debug_mode(mode)
