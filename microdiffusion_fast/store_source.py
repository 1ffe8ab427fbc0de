"""Projections that stay in their file, read block by block: Zarr, TIFF and NPY."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import io_tiff, io_zarr
from .errors import InputError
from .io_common import (
    NAMESPACE,
    VoxelSize,
    as_path,
    check_declared,
    check_dtype,
    check_volume_shape,
    parse_extra,
)
from .io_output import is_zarr
from .io_scaled import Scaling, without_scaling
from .io_tiff_bounds import check_directories, check_segments
from .io_zarr_bounds import chunk_check
from .tiling_windows import Box

_ANY_SIZE = sys.maxsize  # nothing is allocated at the size of the file


@dataclass(frozen=True, eq=False)
class StoredStack:
    """A stack of projections [K, Y, X], or a volume [Z, Y, X], in a file.

    Attributes:
        path: the file, or the folder of the store.
        shape: (K, Y, X).
        dtype: of the file.
        chunks: (k, y, x) pixels that are best read together: those of a chunk of the file; 1
            in one that is mapped.
        voxel_size: (z, y, x) in micrometres as the file states it, or None.
        extra: metadata that `Projections.save` left.
        load: gives the pixels of a box, in the dtype of the file.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    load: Callable[[Box], NDArray[Any]]
    chunks: tuple[int, int, int] = (1, 1, 1)
    voxel_size: VoxelSize | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def read(self, box: Box) -> NDArray[Any]:
        """The pixels of a box, [k, y, x], in the dtype of the file.

        Raises:
            InputError: they cannot be read, or are not finite.
        """
        try:
            data = np.ascontiguousarray(self.load(box), dtype=self.dtype.newbyteorder("="))
        except InputError:
            raise
        except Exception as error:  # corruption shows in a codec or a checksum
            got = f"{self.path} ({error or type(error).__name__})"
            raise InputError("path", "a complete file or store", got) from error
        # both extremes are NaN where a value is: found without an array of answers
        if data.dtype.kind == "f" and not (np.isfinite(data.min()) and np.isfinite(data.max())):
            first = np.argwhere(~np.isfinite(data))[0] + np.array(box.offset)
            got = f"NaN or Inf at {first.tolist()} of {self.path}"
            raise InputError("path", "finite intensities", got)
        return data

    def fingerprint(self) -> str:
        """A digest of the names, sizes and times of change of the files, not of their contents:
        those may be terabytes."""
        digest = hashlib.sha256()
        for file in _files(self.path):
            status = file.stat()
            entry = (str(file.relative_to(self.path)), status.st_size, status.st_mtime_ns)
            digest.update(repr(entry).encode())
        return digest.hexdigest()


def open_stack(path: str | os.PathLike[str]) -> StoredStack:
    """Open a stack of projections without reading it.

    Args:
        path: .tif, .tiff, .ome.tif(f), .npy, or the folder of a Zarr store (v2 or v3).

    Raises:
        InputError: naming `path`, for anything that is not one complete, single-channel stack.
    """
    source = as_path(path)
    if not source.exists():
        raise InputError("path", "an existing file or Zarr store", f"{source}, which is not there")
    if source.is_dir():
        if not is_zarr(source):
            expected = "a file or Zarr store"
            raise InputError("path", expected, f"{source}, a folder without Zarr metadata")
        return _open_zarr(source)
    if source.name.lower().endswith(".npy"):
        return _open_npy(source)
    if source.name.lower().endswith((".tif", ".tiff")):
        return _open_tiff(source)
    raise InputError("path", "a .tif, .tiff or .npy file or a Zarr store", str(source))


def _open_zarr(path: Path) -> StoredStack:
    io_zarr._refuse_links(path)
    attributes, is_array = io_zarr.read_node(path)
    folder, axes, scale = path, None, None
    if not is_array:
        folder, axes, scale = io_zarr._multiscale(path, attributes)
    try:
        array = io_zarr.open_array(folder)
        io_zarr._check_array(array, path, _ANY_SIZE)
        letters = io_zarr._letters(array, axes, folder)
        kept = [i for i, n in enumerate(array.shape) if n != 1 or letters[i] in "ZYX"]
        shape = tuple(array.shape[i] for i in kept)
        check_volume_shape(shape, "".join(letters[i] for i in kept), path)
        io_zarr._refuse_missing(array, folder)
        check = chunk_check(array, folder)
    except InputError:
        raise
    except Exception as error:
        got = f"{path} ({error or type(error).__name__})"
        raise InputError("path", "a complete Zarr store", got) from error

    checked = bytearray(math.prod(io_zarr.grid_of(array)))

    def stored(box: Box) -> NDArray[Any]:
        selection: list[int | slice] = [0] * array.ndim
        for axis, part in zip(kept, box.slices, strict=True):
            selection[axis] = part
        for number, file in io_zarr.chunks_of(array, folder, selection):
            if not checked[number] and file.is_file():  # when it is first read: all takes long
                check(file)
                checked[number] = True
        return np.asarray(array[tuple(selection)])

    extra = parse_extra(attributes.get(NAMESPACE))
    scaling = Scaling.of(extra)

    def intensities(box: Box) -> NDArray[Any]:
        assert scaling is not None
        return scaling.decode(stored(box))

    return StoredStack(
        path,
        (shape[0], shape[1], shape[2]),
        np.dtype(array.dtype if scaling is None else np.float32),
        stored if scaling is None else intensities,
        (array.chunks[kept[0]], array.chunks[kept[1]], array.chunks[kept[2]]),
        io_zarr._voxel_size(axes, scale, path),
        without_scaling(extra),
    )


def _open_npy(path: Path) -> StoredStack:
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")  # refuses pickles and short files
    except Exception as error:
        expected = "a complete NPY file of numbers (no pickled objects)"
        raise InputError("path", expected, f"{path} ({error})") from error
    check_dtype(mapped.dtype, "path", f" in {path}")
    check_volume_shape(mapped.shape, "ZYX" if mapped.ndim == 3 else "Q" * mapped.ndim, path)
    shape = (mapped.shape[0], mapped.shape[1], mapped.shape[2])
    if mapped.flags.c_contiguous:
        return StoredStack(
            path, shape, mapped.dtype, _mapped(path, mapped.dtype, mapped.offset, shape)
        )

    def load(box: Box) -> NDArray[Any]:
        return np.array(np.lib.format.open_memmap(path, mode="r")[box.slices])

    return StoredStack(path, shape, mapped.dtype, load)


def _open_tiff(path: Path) -> StoredStack:
    import tifffile

    try:
        check_directories(path)
        with io_tiff._warnings() as warnings:
            tif = tifffile.TiffFile(path, _multifile=False)
            ome = io_tiff._check_ome(tif, path)
            series = io_tiff._only_series(tif, path)
            shape, axes = io_tiff._squeezed(series)
            dtype, stored = np.dtype(series.dtype), path.stat().st_size
            check_declared(shape, dtype, path=path, stored=stored, max_bytes=_ANY_SIZE)
            io_tiff._check_complete(tif, series, stored, path)
            check_volume_shape(shape, axes, path)
            if ome is not None:
                voxel_size, extra = io_tiff._ome_metadata(ome, path)
            else:
                voxel_size, extra = io_tiff._plain_metadata(tif, path)
            load, chunks = _tiff_loader(tif, series, path, shape)
            io_tiff._refuse_warnings(warnings, path)
    except InputError:
        raise
    except Exception as error:  # a corrupt file can fail anywhere in the decoder
        got = f"{path} ({error or type(error).__name__})"
        raise InputError("path", "a complete TIFF file", got) from error
    check_dtype(dtype, "path", f" in {path}")
    return StoredStack(path, (shape[0], shape[1], shape[2]), dtype, load, chunks, voxel_size, extra)


def _tiff_loader(
    tif: Any, series: Any, path: Path, shape: tuple[int, ...]
) -> tuple[Callable[[Box], NDArray[Any]], tuple[int, int, int]]:
    if series.dataoffset is not None:
        dtype = np.dtype(series.dtype).newbyteorder(tif.byteorder)
        offset = int(series.dataoffset)
        tif.close()
        return _mapped(path, dtype, offset, shape), (1, 1, 1)
    import zarr

    # compressed: tifffile decodes the strips or tiles that a block touches
    array = zarr.open_array(series.aszarr(), mode="r")
    if array.shape != shape:
        raise InputError("path", f"{shape} voxels", f"{array.shape} in {path}")
    checked: set[int] = set()

    def load(box: Box) -> NDArray[Any]:
        # when they are first read: those of all pages would take long
        pages = set(range(box.z.start, box.z.stop) if len(series.pages) == shape[0] else (0,))
        new = sorted(pages - checked)
        check_segments(tif, path, pages=(series.pages[number] for number in new))
        checked.update(new)
        return np.asarray(array[box.slices])

    z, y, x = array.chunks
    return load, (z, y, x)


def _mapped(
    path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]
) -> Callable[[Box], NDArray[Any]]:
    """Blocks of an array that lies in a file as it is."""
    plane = shape[1] * shape[2]

    def load(box: Box) -> NDArray[Any]:
        if (box.y.length, box.x.length) == shape[1:]:  # one read, at the speed of the disk
            start = offset + box.z.start * plane * dtype.itemsize
            data = np.fromfile(path, dtype, box.z.length * plane, offset=start)
            return data.reshape(box.shape)
        # mapped anew for each block: pages that were read do not stay in memory
        return np.array(
            np.memmap(path, dtype, "r", offset, shape)[box.slices]  # type: ignore[call-overload]
        )

    return load


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            yield Path(folder, name)
