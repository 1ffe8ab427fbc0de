"""What a result came from: versions, seed, and hashes of what went in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

# Distributions whose version may decide a result.
_DECISIVE = ("torch", "numpy", "zarr", "tifffile", "safetensors", "triton")


def provenance(
    *, seed: int | None, inputs: Mapping[str, np.ndarray], weights: str | None = None
) -> dict[str, Any]:
    """The record that lies in every output, as plain JSON values.

    Args:
        seed: of everything random.
        inputs: arrays that the result was made from, by what they are.
        weights: SHA-256 of the network's tensors, as `tensor_files.digest` has it.
    """
    return {
        "seed": seed,
        "inputs": {
            name: {"shape": list(data.shape), "sha256": array_hash(data)}
            for name, data in inputs.items()
        },
        "weights_sha256": weights,
        "torch_threads": torch.get_num_threads(),
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Versions of what decides a result, None where it is absent."""
    return {
        "microdiffusion_fast": version_of("microdiffusion-fast"),
        "python": platform.python_version(),
        **{name: version_of(name) for name in _DECISIVE},
    }


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def array_hash(data: np.ndarray) -> str:
    """SHA-256 of an array: its shape, its type and its values."""
    digest = hashlib.sha256(f"{data.shape} {data.dtype.str}".encode())
    digest.update(np.ascontiguousarray(data).data)
    return digest.hexdigest()
