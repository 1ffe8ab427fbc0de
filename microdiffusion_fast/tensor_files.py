"""Tensors in safetensors files: written whole or not at all, checked when they are read."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import InputError

_CHECKSUM = "sha256"  # safetensors itself has none: a flipped bit would be a weight


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file, whole or not at all, with a checksum of its tensors.

    When it returns the file is on the disk, not only in the system's cache.

    Raises:
        OSError: where the place cannot be written or is full; the file that was there stays.
    """
    from safetensors.torch import save

    kept = {name: value.contiguous() for name, value in tensors.items()}
    with whole(path) as part:
        # its save_file leaves a temporary file of its own behind when it is killed
        part.write_bytes(save(kept, {**metadata, _CHECKSUM: digest(kept)}))


@contextmanager
def whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A file beside `path` to write, which takes its place when the block ends well.

    The order that survives a loss of power: the content to the disk, the new name, the folder that
    holds the name. After a failure nothing of the new file is left.

    Args:
        path: what to write.
        shared: other processes may write it at the same time: each has a file of its own beside
            it, which a kill leaves; otherwise the next one to write takes that over.
    """
    mark = f".{secrets.token_hex(4)}" if shared else ""
    part = path.with_name(f"{path.name}{mark}.partial")
    try:
        yield part
        flush(part)
        part.replace(path)
        flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


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


def check_fit(build: Callable[[], nn.Module], tensors: dict[str, Tensor]) -> None:
    """Make sure that a network has the shapes of these tensors, before it is given any memory.

    A checkpoint says itself how large its network is: one that says petabytes is not believed.

    Raises:
        ValueError: saying the first difference.
    """
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    for name in sorted({*shapes, *tensors}):
        one = shapes.get(name)
        other = tuple(tensors[name].shape) if name in tensors else None
        if one != other:
            raise ValueError(f"{name} is {other or 'absent'}, not {one or 'asked for'}")


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors: their names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
