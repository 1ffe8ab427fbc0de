"""Tensors in safetensors files: written whole or not at all, checked when they are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from .errors import InputError

_CHECKSUM = "sha256"  # safetensors itself has none: a flipped bit would be a weight


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file, whole or not at all, with a checksum of its tensors."""
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".partial")
    kept = {name: value.contiguous() for name, value in tensors.items()}
    save_file(kept, part, {**metadata, _CHECKSUM: digest(kept)})
    part.chmod(0o644)  # safetensors writes for the owner alone
    part.replace(path)


def read_tensors(
    path: Path, argument: str, expected: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: the file is not one, or its tensors are not those that were written; names
            `argument` and says what was `expected`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(argument, expected, f"{path}: {error}") from None
    if metadata.pop(_CHECKSUM, None) not in (None, digest(tensors)):  # older files have none
        raise InputError(argument, expected, f"{path}: damaged, its checksum does not fit")
    return tensors, metadata


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors: their names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
