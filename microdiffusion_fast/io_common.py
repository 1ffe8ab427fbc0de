"""What every file format shares: the image record, units, bounds and metadata."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion_fast.errors import InputError

NAMESPACE = "microdiffusion_fast"  # the key of our own metadata in every format
DEFAULT_MAX_BYTES = 64 * 2**30
# No codec in use packs more than about 2,000 : 1, so a larger claim is a corrupt header or a
# decompression bomb.
MAX_RATIO = 10_000
RATIO_FLOOR_BYTES = 16 * 2**20
MAX_JSON_BYTES = 16 * 2**20

VoxelSize = tuple[float, float, float]

_MICROMETRES = {
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "micron", "microns"), 1.0),
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micrometres"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 1e4),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e6),
    **dict.fromkeys(("pm", "picometer", "picometre"), 1e-6),
    # Lower case maps the Angstrom sign (U+212B) and the letter (U+00C5) to the same character.
    **dict.fromkeys(("å", "angstrom", "angstroms", "ångström", "ångstrom"), 1e-4),
    **dict.fromkeys(("in", "inch", "inches", '"'), 25_400.0),
}
_NO_UNIT = ("", "pixel", "pixels", "px", "voxel", "voxels", "none", "reference frame", "null")


@dataclass(frozen=True, eq=False)
class Image:
    """A volume or stack of projections as it lies in a file.

    Attributes:
        data: intensities [Z, Y, X] in the dtype of the file, native byte order.
        voxel_size: (z, y, x) in micrometres, or None where the file does not say all three.
        axes: always "ZYX".
        source: the file it was read from.
        extra: metadata that `write_volume(metadata=...)` stored (for projections their geometry).
    """

    data: NDArray[Any]
    voxel_size: VoxelSize | None = None
    axes: str = "ZYX"
    source: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def micrometres_per(unit: str | None, path: Path) -> float | None:
    """Return the length of `unit` in micrometres, or None for pixels and for no unit.

    Raises:
        InputError: for a unit that is not a known length (a wrong scale is worse than none).
    """
    name = (unit or "").strip().rstrip("\0").lower()
    if name in _NO_UNIT:
        return None
    if name not in _MICROMETRES:
        raise InputError(
            "path",
            "a voxel size in a known unit of length (um, nm, mm, inch...)",
            f"{unit!r} in {path}",
        )
    return _MICROMETRES[name]


def checked_voxel_size(
    voxel_size: Sequence[float] | None, argument: str = "voxel_size"
) -> VoxelSize | None:
    """Return `voxel_size` as three positive finite floats (z, y, x) in micrometres; None stays
    None.

    Raises:
        InputError: for another count, or a size that is not a positive finite number.
    """
    if voxel_size is None:
        return None
    expected = "three positive finite numbers (z, y, x) in micrometres"
    try:
        sizes = tuple(float(size) for size in voxel_size)
    except (TypeError, ValueError) as error:
        raise InputError(argument, expected, repr(voxel_size)) from error
    if len(sizes) != 3 or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise InputError(argument, expected, repr(voxel_size))
    return sizes[0], sizes[1], sizes[2]


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return `path` as a Path.

    Raises:
        InputError: for anything but a path, or one that no file system takes.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise InputError("path", "the path of a file or Zarr store", repr(path))
    if "\0" in os.fspath(path):
        raise InputError("path", "a path without NUL characters", repr(path))
    return Path(path)


def native(data: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return `data` contiguous and in native byte order.

    Raises:
        InputError: unless the dtype is a real integer or float of at most 64 bits.
    """
    check_dtype(data.dtype, "path", f" in {path}")
    return np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("="))


def check_dtype(dtype: np.dtype[Any], argument: str, where: str = "") -> None:
    """Raise InputError unless `dtype` is a real integer or float of at most 64 bits."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(
            argument, "real integer or float intensities of at most 64 bits", f"{dtype}{where}"
        )


def check_declared(
    shape: Sequence[int], dtype: np.dtype[Any], *, path: Path, stored: int | None, max_bytes: int
) -> None:
    """Bound what a header asks for before anything is allocated.

    Args:
        shape: the declared shape.
        dtype: the declared dtype.
        path: the file, for the message.
        stored: its size on disk in bytes; None skips the ratio.
        max_bytes: the largest decoded size to accept.

    Raises:
        InputError: for a declared size above `max_bytes`, above `MAX_RATIO` times what is stored,
            or zero.
    """
    declared = math.prod(int(n) for n in shape) * dtype.itemsize
    described = f"{tuple(int(n) for n in shape)} {dtype} = {declared:,} bytes declared in {path}"
    if declared <= 0:
        raise InputError("path", "an image with at least one voxel", described)
    if declared > max_bytes:
        raise InputError("path", f"an image of at most {max_bytes:,} bytes (max_bytes)", described)
    if stored is not None and declared > RATIO_FLOOR_BYTES and declared > MAX_RATIO * stored:
        raise InputError(
            "path", f"at most {MAX_RATIO:,} times the {stored:,} bytes on disk", described
        )


def check_volume_shape(shape: Sequence[int], axes: str, path: Path) -> None:
    """Raise InputError unless a file's squeezed shape is that of a stack of planes [Z, Y, X]."""
    described = f"axes {axes} {tuple(int(n) for n in shape)} in {path}"
    if "S" in axes:
        raise InputError("path", "a single-channel 3D stack [Z, Y, X]", f"RGB samples: {described}")
    if len(shape) != 3:
        raise InputError(
            "path", "a single-channel 3D stack [Z, Y, X]", f"{len(shape)}D: {described}"
        )
    # Q and I are tifffile's names for "unknown" and "sequence of pages": the tool's inputs are
    # stacks, so these are Z.
    if axes[0] not in "ZQI" or axes[1:] != "YX":
        raise InputError("path", "a 3D stack with axes ZYX (T and C of length 1)", described)


def load_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a small file.

    Raises:
        InputError: where the file is unreadable, larger than 16 MiB, or holds no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(
                "path",
                f"metadata of at most {MAX_JSON_BYTES:,} bytes",
                f"{path.stat().st_size:,} in {path}",
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("path", "readable JSON metadata", f"{path} ({error})") from error
    if not isinstance(value, dict):
        raise InputError("path", "a JSON object", f"{type(value).__name__} in {path}")
    return value


def metadata_json(metadata: Mapping[str, Any] | None) -> str | None:
    """Return `metadata` as ASCII JSON, which every format can carry; None where there is none.

    Raises:
        InputError: where it is no mapping, or holds NaN or values that are not JSON.
    """
    if not metadata:
        return None
    try:
        return json.dumps(dict(metadata), allow_nan=False, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError("metadata", "a dict that JSON can hold (no NaN)", str(error)) from error


def parse_extra(text: object) -> dict[str, Any]:
    """Return the dict in `text` written by `metadata_json`, or an empty one for anything else."""
    if isinstance(text, dict):
        return text
    if not isinstance(text, str) or len(text) > MAX_JSON_BYTES:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
