"""OME-Zarr: NGFF 0.5 out; NGFF 0.5, 0.4 and plain 3D arrays in; missing chunks refused."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io_common import (
    NAMESPACE,
    Image,
    VoxelSize,
    check_declared,
    check_dtype,
    check_volume_shape,
    load_json,
    micrometres_per,
    native,
    parse_extra,
)
from microdiffusion_fast.io_output import staged
from microdiffusion_fast.io_zarr_bounds import check_chunks

if TYPE_CHECKING:
    import zarr

Axis = tuple[str, str | None]  # name, unit

MAX_CHUNK_BYTES = 512 * 2**20
# About 2 MB of float32: small enough to read slab-wise, 16k files for a volume of 2048^3.
CHUNKS = (32, 128, 128)


def read_zarr(path: Path, *, max_bytes: int, allow_missing_chunks: bool) -> Image:
    """Read the first dataset of a NGFF image, or a plain 3D array; see `io.read_volume`.

    Raises:
        InputError: for a store that is not one complete single-channel stack.
    """
    _refuse_links(path)
    attributes, is_array = read_node(path)
    extra = parse_extra(attributes.get(NAMESPACE))
    if is_array:
        folder, axes, scale = path, None, None
    else:
        folder, axes, scale = _multiscale(path, attributes)
    try:
        array = open_array(folder)
        _check_array(array, path, max_bytes)
        if not allow_missing_chunks:
            _refuse_missing(array, folder)
        files = (file for _, file in chunk_files(array, folder) if file.is_file())
        check_chunks(array, folder, files)
        letters = _letters(array, axes, folder)
        kept = [i for i, n in enumerate(array.shape) if n != 1 or letters[i] in "ZYX"]
        shape = [array.shape[i] for i in kept]
        check_volume_shape(shape, "".join(letters[i] for i in kept), path)
        data = native(np.asarray(array[...]).reshape(shape), path)
    except InputError:
        raise
    except Exception as error:  # corruption shows in the metadata, a codec or a checksum
        raise InputError(
            "path", "a complete Zarr store", f"{path} ({error or type(error).__name__})"
        ) from error
    return Image(data, _voxel_size(axes, scale, path), source=path, extra=extra)


def write_zarr(
    target: Path, data: NDArray[Any], *, voxel_size: VoxelSize | None, metadata: dict[str, Any]
) -> None:
    """Write a NGFF 0.5 image of one scale [Z, Y, X]; see `microdiffusion_fast.io.write_volume`.

    Raises:
        InputError: where the place cannot be written.
    """
    import zarr
    from zarr.codecs import ZstdCodec

    unit = {} if voxel_size is None else {"unit": "micrometer"}
    name = target.name.removesuffix(".zarr").removesuffix(".ome")
    transforms = [{"type": "scale", "scale": list(voxel_size or (1.0, 1.0, 1.0))}]
    image = {
        "name": name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": transforms}],
    }
    attributes: dict[str, Any] = {"ome": {"version": "0.5", "multiscales": [image]}}
    if metadata:
        attributes[NAMESPACE] = metadata
    with staged(target) as temporary:
        group = zarr.open_group(temporary, mode="w-", zarr_format=3, attributes=attributes)
        array = group.create_array(
            "0",
            shape=data.shape,
            dtype=data.dtype,
            chunks=tuple(min(n, c) for n, c in zip(data.shape, CHUNKS, strict=True)),
            # Without the checksum a flipped bit on disk decodes to wrong voxels with no error.
            compressors=ZstdCodec(level=3, checksum=True),
            fill_value=float("nan") if data.dtype.kind == "f" else 0,
            dimension_names=["z", "y", "x"],
            config={"write_empty_chunks": True},  # so that an absent chunk always means a loss
        )
        array[...] = data


def open_array(folder: Path) -> zarr.Array[Any]:
    """Open an array to read it."""
    import zarr

    array = zarr.open_array(zarr.storage.LocalStore(folder, read_only=True), mode="r")
    return array


def _letters(array: zarr.Array[Any], axes: list[Axis] | None, folder: Path) -> str:
    """Return one upper-case letter an axis; a plain array without known names ends in ZYX."""
    if axes is not None:
        if len(axes) != array.ndim:
            named = "".join(name for name, _ in axes)
            raise InputError("path", f"{len(axes)} axes ({named})", f"{array.ndim} in {folder}")
        return "".join(name.upper() if len(name) == 1 else "?" for name, _ in axes)
    names = [str(name).upper() for name in getattr(array.metadata, "dimension_names", None) or ()]
    if len(names) == array.ndim and set(names) <= set("TCZYX"):
        return "".join(names)
    return "?" * (array.ndim - 3) + "ZYX"[-array.ndim :]


def _refuse_links(path: Path) -> None:
    root = path.resolve()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            entry = Path(folder, name)
            if entry.is_symlink() and not entry.resolve().is_relative_to(root):
                raise InputError(
                    "path", "a Zarr store without links out of it", f"{entry} -> {entry.resolve()}"
                )
            if not (entry.is_file() or entry.is_dir() or entry.is_symlink()):
                raise InputError("path", "a Zarr store of regular files", f"{entry}")


def read_node(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the attributes in the files of a node, and whether it is an array."""
    if (path / "zarr.json").is_file():
        node = load_json(path / "zarr.json")
        attributes = node.get("attributes", {})
        return (attributes if isinstance(attributes, dict) else {}), node.get(
            "node_type"
        ) == "array"
    attributes = load_json(path / ".zattrs") if (path / ".zattrs").is_file() else {}
    return attributes, (path / ".zarray").is_file()


def _multiscale(
    path: Path, attributes: dict[str, Any]
) -> tuple[Path, list[Axis], list[float] | None]:
    """Return the folder, axes and scale of the full-resolution dataset of a NGFF image."""
    ome = attributes.get("ome", attributes)
    try:
        image = ome["multiscales"][0]
        units = [axis.get("unit") for axis in image["axes"]]
        axes = [
            (str(axis["name"]), None if unit is None else str(unit))
            for axis, unit in zip(image["axes"], units, strict=True)
        ]
        dataset = image["datasets"][0]
        relative = str(dataset["path"])
        scale: list[float] | None = None
        for transform in (
            *dataset.get("coordinateTransformations", ()),
            *image.get("coordinateTransformations", ()),
        ):
            if transform["type"] == "scale":
                factors = [float(factor) for factor in transform["scale"]]
                scale = (
                    factors
                    if scale is None
                    else [a * b for a, b in zip(scale, factors, strict=True)]
                )
        if scale is not None and len(scale) != len(axes):
            raise ValueError(f"{len(scale)} scale factors for {len(axes)} axes")
        parts = relative.split("/")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        images = sorted(entry.name for entry in islice(path.iterdir(), 1000) if entry.is_dir())[:4]
        hint = f"; it holds {', '.join(images)}" if images else ""
        raise InputError(
            "path",
            "a NGFF 0.4 or 0.5 image or a 3D Zarr array",
            f"{path} ({type(error).__name__}: {error}{hint})",
        ) from error
    folder = path.joinpath(*parts)
    outside = any(part in ("", ".", "..") for part in parts) or "\\" in relative
    # os.path says False where pathlib raises: for a name too long, for one.
    if outside or not os.path.isdir(folder):  # noqa: PTH112
        raise InputError("path", "a NGFF dataset inside its store", f"{relative!r} in {path}")
    return folder, axes, scale


def _voxel_size(axes: list[Axis] | None, scale: list[float] | None, path: Path) -> VoxelSize | None:
    if axes is None or scale is None:
        return None
    sizes = []
    for (name, unit), factor in zip(axes, scale, strict=True):
        if name.lower() not in ("z", "y", "x"):
            continue
        micrometres = micrometres_per(unit, path)
        if micrometres is None:  # a scale without a unit counts pixels
            return None
        if not (math.isfinite(factor) and factor > 0):
            raise InputError("path", f"a positive scale along {name}", f"{factor} in {path}")
        sizes.append(factor * micrometres)
    return sizes[0], sizes[1], sizes[2]


def _check_array(array: zarr.Array[Any], path: Path, max_bytes: int) -> None:
    check_dtype(array.dtype, "path", f" in {path}")
    # One numcodecs filter unpickles what it reads, whatever the dtype says.
    codecs = {k: v for k, v in array.metadata.to_dict().items() if k != "attributes"}
    if "pickle" in str(codecs).lower():
        raise InputError("path", "codecs that hold data only", f"a pickle codec in {path}")
    # No ratio: chunks of zeros pack beyond any limit, and each is bounded here instead.
    check_declared(array.shape, array.dtype, path=path, stored=None, max_bytes=max_bytes)
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    if chunk > MAX_CHUNK_BYTES and chunk > 8 * array.nbytes:
        raise InputError(
            "path", f"chunks of at most {MAX_CHUNK_BYTES:,} bytes", f"{array.chunks} in {path}"
        )


def _refuse_missing(array: zarr.Array[Any], folder: Path) -> None:
    # Zarr returns the fill value for a file that is gone, without a word.
    for key, file in chunk_files(array, folder):
        if not file.is_file():
            count = math.prod(grid_of(array))
            raise InputError(
                "path", f"all {count:,} chunks of the store", f"no chunk {key} in {folder}"
            )


def grid_of(array: zarr.Array[Any]) -> list[int]:
    """How many chunks, or shards, lie along each axis."""
    stored = array.shards or array.chunks
    return [-(-n // size) for n, size in zip(array.shape, stored, strict=True)]


def chunk_files(array: zarr.Array[Any], folder: Path) -> Iterator[tuple[str, Path]]:
    """The keys and files of all chunks, or of all shards."""
    for index in np.ndindex(*grid_of(array)):
        key = array.metadata.encode_chunk_key(index)
        yield key, folder / key


def chunks_of(
    array: zarr.Array[Any], folder: Path, selection: Sequence[int | slice]
) -> Iterator[tuple[int, Path]]:
    """The chunks, or the shards, that a selection with a start and an end meets: their numbers in
    the order of `chunk_files`, and their files."""
    stored = array.shards or array.chunks
    ranges = [
        range(part // size, part // size + 1)
        if isinstance(part, int)
        else range(part.start // size, -(-part.stop // size))
        for part, size in zip(selection, stored, strict=True)
    ]
    for index in product(*ranges):
        number = int(np.ravel_multi_index(index, grid_of(array)))
        yield number, folder / array.metadata.encode_chunk_key(index)
