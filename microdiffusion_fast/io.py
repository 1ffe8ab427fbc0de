"""Volumes and projections in and out of files: TIFF, ImageJ TIFF, OME-TIFF, OME-Zarr and NPY.

Axes, voxel size (micrometres), dtype and our own metadata survive the round trip through each of
them. A voxel size that a file does not state is None, never 1.0. Files are data: nothing in one is
executed, followed out of its folder, or allocated before its declared size has been bounded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io_common import (
    DEFAULT_MAX_BYTES,
    Image,
    as_path,
    check_declared,
    check_dtype,
    check_volume_shape,
    checked_voxel_size,
    load_json,
    metadata_json,
    native,
    parse_extra,
)
from microdiffusion_fast.io_output import is_zarr, prepare_output, staged
from microdiffusion_fast.io_scaled import Scaling, without_scaling

__all__ = ["DEFAULT_MAX_BYTES", "Image", "check_output", "read_volume", "write_volume"]

_SUFFIXES = {
    ".ome.tif": "ome",
    ".ome.tiff": "ome",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".ome.zarr": "zarr",
    ".zarr": "zarr",
    ".npy": "npy",
}
MAX_NPY_HEADER = 10_000  # bytes; numpy's own limit, which it applies after reading
_KNOWN = ".tif, .tiff, .ome.tif, .ome.tiff, .ome.zarr, .zarr or .npy"


def read_volume(
    path: str | os.PathLike[str],
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    allow_missing_chunks: bool = False,
) -> Image:
    """Read a 3D stack [Z, Y, X] with its voxel size and metadata.

    Axes of length 1 (T, C) are dropped. A TIFF that does not name its first axis is read as ZYX,
    because the inputs of this package are stacks; one that names it T or C is refused. A NGFF 0.4
    or 0.5 image is read at full resolution (its first dataset), as is a plain 3D Zarr array.

    Args:
        path: .tif, .tiff, .ome.tif(f), .npy, or the folder of a Zarr store (v2 or v3).
        max_bytes: the largest decoded size to accept, in bytes.
        allow_missing_chunks: read absent Zarr chunks as the fill value, as sparse stores intend,
            instead of refusing.

    Returns:
        The image in the dtype of the file; float32 intensities where it has scaled integers.

    Raises:
        InputError: naming `path`, for anything that is not one complete, single-channel,
            real-valued stack.
    """
    source = as_path(path)
    try:
        exists, folder = source.exists(), source.is_dir()
    except OSError as error:
        raise InputError("path", "a readable file", f"{source} ({error.strerror})") from error
    if not exists:
        raise InputError(
            "path", "an existing file or Zarr store", f"{source}, which does not exist"
        )
    if folder:
        if not is_zarr(source):
            raise InputError(
                "path", "a file or Zarr store", f"{source}, a folder without Zarr metadata"
            )
        from microdiffusion_fast.io_zarr import read_zarr

        found = read_zarr(source, max_bytes=max_bytes, allow_missing_chunks=allow_missing_chunks)
        scaling = Scaling.of(found.extra)
        if scaling is None:
            return found
        return replace(found, data=scaling.decode(found.data), extra=without_scaling(found.extra))
    kind = _format(source)
    if not source.is_file():
        raise InputError("path", "a regular file", f"{source}, which is not one")
    if kind == "zarr":
        raise InputError("path", "a Zarr store (a folder)", f"{source}, a file")
    if kind == "npy":
        return _read_npy(source, max_bytes)
    from microdiffusion_fast.io_tiff import read_tiff

    return read_tiff(source, max_bytes=max_bytes)


def write_volume(
    path: str | os.PathLike[str],
    data: Any,
    *,
    voxel_size: Sequence[float] | None = None,
    overwrite: bool = False,
    dtype: DTypeLike | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a 3D stack [Z, Y, X] in the format of the suffix, whole or not at all.

    `.tif` is an ImageJ TIFF for uint8, uint16 and float32 below 4 GB (the voxel size shows in Fiji)
    and a plain TIFF or BigTIFF otherwise; `.zarr` is NGFF 0.5 with checksummed chunks; `.npy` puts
    voxel size and metadata, where there are any, in a sidecar `NAME.npy.json`. The old file is kept
    until the new one is complete.

    Args:
        path: .tif, .tiff, .ome.tif(f), .ome.zarr, .zarr or .npy.
        data: array or tensor [Z, Y, X], integer or float.
        voxel_size: (z, y, x) in micrometres.
        overwrite: replace what is there.
        dtype: the dtype in the file; None keeps that of `data`. Floats are rounded to the nearest
            integer.
        metadata: a dict of JSON values, given back as `Image.extra`.

    Returns:
        The path written.

    Raises:
        InputError: for data that is no real 3D array, values that `dtype` cannot hold, a dtype that
            the format cannot hold, or an output that exists (without `overwrite`) or cannot be
            written.
    """
    array = _as_stack(data, dtype)
    size = checked_voxel_size(voxel_size)
    text = metadata_json(metadata)
    target = check_output(path, overwrite=overwrite)
    kind = _format(as_path(path))
    if kind == "npy":
        _write_npy(target, array, size, text)
    elif kind == "zarr":
        from microdiffusion_fast.io_zarr import write_zarr

        write_zarr(target, array, voxel_size=size, metadata=parse_extra(text))
    else:
        from microdiffusion_fast.io_tiff import write_tiff

        write_tiff(target, array, voxel_size=size, metadata=text, ome=kind == "ome")
    return as_path(path)


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Make sure that `write_volume` may write `path`, before hours are spent on its contents.

    Returns:
        The absolute path, links followed.

    Raises:
        InputError: for an unknown suffix, an existing output without `overwrite`, or a folder that
            is absent or read-only.
    """
    target = as_path(path)
    return prepare_output(target, overwrite=overwrite, store=_format(target) == "zarr")


def _format(path: Path) -> str:
    name = path.name.lower()
    for suffix, kind in _SUFFIXES.items():  # longest first: .ome.tif before .tif
        if name.endswith(suffix):
            return kind
    raise InputError("path", f"a name ending in {_KNOWN}", str(path))


def _as_stack(data: Any, dtype: DTypeLike | None) -> NDArray[Any]:
    if hasattr(data, "detach"):
        data = data.detach().cpu()
        data = data.float() if str(data.dtype) == "torch.bfloat16" else data
    array = np.asarray(data)
    check_dtype(array.dtype, "data")
    if array.ndim != 3 or array.size == 0:
        raise InputError(
            "data", "a 3D array [Z, Y, X] with at least one voxel", f"shape {array.shape}"
        )
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if dtype is None:
        return array
    try:
        wanted = np.dtype(dtype)
    except TypeError as error:
        raise InputError("dtype", "the name of an integer or float dtype", repr(dtype)) from error
    check_dtype(wanted, "dtype")
    return _cast(array, wanted.newbyteorder("="))


def _cast(array: NDArray[Any], wanted: np.dtype[Any]) -> NDArray[Any]:
    if np.can_cast(array.dtype, wanted, "safe"):
        return array.astype(wanted, copy=False)
    low, high = array.min(), array.max()
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        rounded = np.rint(array) if array.dtype.kind == "f" else array
        # Python integers compare exactly with floats and with 64-bit limits; numpy would round the
        # limits.
        fits = bool(np.isfinite(low) and np.isfinite(high))
        if not fits or int(rounded.min()) < limits.min or int(rounded.max()) > limits.max:
            raise InputError(
                "dtype",
                f"one that holds every value ({wanted}: {limits.min} to {limits.max})",
                f"{low} to {high}",
            )
        return rounded.astype(wanted)
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if np.isinf(cast).sum() != np.isinf(array).sum():
        raise InputError(
            "dtype",
            f"one that holds every value ({wanted}: up to {np.finfo(wanted).max})",
            f"{low} to {high}",
        )
    return cast


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _check_npy_header(path: Path) -> None:
    # numpy reads as many bytes as the header claims before it looks at them: up to 4 GiB.
    with path.open("rb") as file:
        start = file.read(12)
    length = int.from_bytes(start[8:12] if start[6:7] >= b"\x02" else start[8:10], "little")
    if start[:6] == b"\x93NUMPY" and length > MAX_NPY_HEADER:
        raise ValueError(f"a header of {length:,} bytes")


def _read_npy(path: Path, max_bytes: int) -> Image:
    try:
        _check_npy_header(path)
        # Mapping reads the header only, refuses pickled objects, and fails where the file is
        # shorter than declared.
        mapped = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a corrupt header can fail anywhere in numpy's parser
        raise InputError(
            "path", "a complete NPY file of numbers (no pickled objects)", f"{path} ({error})"
        ) from error
    check_dtype(mapped.dtype, "path", f" in {path}")
    check_declared(mapped.shape, mapped.dtype, path=path, stored=None, max_bytes=max_bytes)
    check_volume_shape(mapped.shape, "ZYX" if mapped.ndim == 3 else "Q" * mapped.ndim, path)
    data = native(np.array(mapped), path)
    if not _sidecar(path).is_file():
        return Image(data, source=path)
    side = load_json(_sidecar(path))
    if side.get("shape") != list(data.shape) or side.get("dtype") != data.dtype.name:
        described = f"{side.get('shape')} {side.get('dtype')} in {_sidecar(path)}"
        raise InputError("path", f"a sidecar of this {data.shape} {data.dtype} array", described)
    size = checked_voxel_size(side.get("voxel_size"), "path")
    return Image(data, size, source=path, extra=parse_extra(side.get("metadata")))


def _write_npy(
    target: Path, data: NDArray[Any], voxel_size: tuple[float, ...] | None, metadata: str | None
) -> None:
    import json

    side = _sidecar(target)
    with staged(target) as temporary:
        with temporary.open("wb") as file:
            np.lib.format.write_array(file, data, allow_pickle=False)
        # The old sidecar goes first: a kill in between leaves an array without a voxel size, never
        # with a wrong one.
        side.unlink(missing_ok=True)
    if voxel_size is None and metadata is None:
        return
    record: dict[str, Any] = {"shape": list(data.shape), "dtype": data.dtype.name, "axes": "ZYX"}
    record |= {"voxel_size": voxel_size, "unit": "micrometer", "metadata": parse_extra(metadata)}
    with staged(side) as temporary:
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
