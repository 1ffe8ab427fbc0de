"""How a streamed volume lies on disk: NGFF 0.5, its resolutions, chunks and shards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .io_common import VoxelSize
from .io_scaled import UNWRITTEN
from .tiling import intervals
from .tiling_windows import Box

Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Level:
    """One resolution: voxels of the volume in one of its own, along (z, y, x), and sizes."""

    factors: Sizes
    shape: Sizes
    chunks: Sizes
    shards: Sizes

    @property
    def count(self) -> int:
        """How many shards it has."""
        return math.prod(-(-n // s) for n, s in zip(self.shape, self.shards, strict=True))

    def boxes(self) -> Iterator[Box]:
        """Its shards."""
        z, y, x = (intervals(n, s) for n, s in zip(self.shape, self.shards, strict=True))
        return (Box(a, b, c) for a in z for b in y for c in x)

    def index(self, shard: Box) -> tuple[int, ...]:
        """Place of a shard among the shards."""
        return tuple(start // step for start, step in zip(shard.offset, self.shards, strict=True))


@dataclass(frozen=True)
class Layout:
    """A volume on disk: (z, y, x) voxels of it, of a chunk and of a shard, and their size in um.

    `dtype` is "float32", or "uint16" for scaled integers (`io_scaled`).
    """

    shape: Sizes
    chunks: Sizes
    shards: Sizes
    voxel_size: VoxelSize | None = None
    dtype: Literal["float32", "uint16"] = "float32"

    @property
    def levels(self) -> tuple[Level, ...]:
        """Resolutions, the full one first, until an image fits into a chunk.

        Each halves the axes along which voxels are short (less than 1.5 times the shortest), so
        that they approach cubes.
        """
        levels = [Level((1, 1, 1), self.shape, self.chunks, self.shards)]
        spacing = self.voxel_size or (1.0, 1.0, 1.0)
        while any(n > c for n, c in zip(levels[-1].shape[1:], self.chunks[1:], strict=True)):
            before = levels[-1]
            lengths = [f * size for f, size in zip(before.factors, spacing, strict=True)]
            short = [
                length < 1.5 * min(lengths) and n > 1
                for length, n in zip(lengths, before.shape, strict=True)
            ]
            if not any(short):
                break
            z, y, x = (
                _sizes(n, 2 if halved else 1, factor, chunk, shard)
                for n, halved, factor, chunk, shard in zip(
                    before.shape, short, before.factors, self.chunks, self.shards, strict=True
                )
            )
            factors, shape, chunks, shards = zip(z, y, x, strict=True)
            levels.append(Level(factors, shape, chunks, shards))
        return tuple(levels)

    def create(self, folder: Path, name: str) -> None:
        """Make the empty image in a folder that is not there yet."""
        group = _group(folder, name, self.levels, self.voxel_size, {})
        for number, level in enumerate(self.levels):
            _array(group, str(number), level, self.dtype)


def _group(
    folder: Path,
    name: str,
    levels: Sequence[Level],
    voxel_size: VoxelSize | None,
    attributes: dict[str, Any],
) -> Any:
    """Make the group of a NGFF 0.5 image, with its description."""
    import zarr

    unit = {} if voxel_size is None else {"unit": "micrometer"}
    spacing = voxel_size or (1.0, 1.0, 1.0)
    datasets = []
    for number, level in enumerate(levels):
        pairs = list(zip(level.factors, spacing, strict=True))
        transforms: list[dict[str, Any]] = [
            {"type": "scale", "scale": [factor * size for factor, size in pairs]}
        ]
        if number:  # a mean lies in the middle of what it is the mean of
            middle = [(factor - 1) / 2 * size for factor, size in pairs]
            transforms.append({"type": "translation", "translation": middle})
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    axes = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    image: dict[str, Any] = {"name": name, "axes": axes, "datasets": datasets}
    if len(levels) > 1:
        image["type"] = "mean"
    described = {"ome": {"version": "0.5", "multiscales": [image]}, **attributes}
    return zarr.open_group(folder, mode="w-", zarr_format=3, attributes=described)


def _array(group: Any, path: str, level: Level, dtype: str, *, sharded: bool = True) -> Any:
    """Make one array of an image."""
    from zarr.codecs import ZstdCodec

    return group.create_array(
        path,
        shape=level.shape,
        dtype=dtype,
        chunks=level.chunks,
        shards=level.shards if sharded else None,
        # Without the checksum a flipped bit on disk decodes to wrong voxels with no error.
        compressors=ZstdCodec(level=3, checksum=True),
        # what was never written shows
        fill_value=float("nan") if dtype == "float32" else UNWRITTEN,
        dimension_names=["z", "y", "x"],
        config={"write_empty_chunks": True},
    )


def create_image(
    folder: Path,
    name: str,
    *,
    shape: Sizes,
    chunks: Sizes,
    spacing: VoxelSize | None,
    attributes: dict[str, Any],
) -> Any:
    """Make an empty NGFF 0.5 image of one resolution, without shards; returns its array."""
    sizes = tuple(min(n, c) for n, c in zip(shape, chunks, strict=True))
    level = Level((1, 1, 1), shape, (sizes[0], sizes[1], sizes[2]), shape)
    plain = name.removesuffix(".zarr").removesuffix(".ome")
    group = _group(folder, plain, (level,), spacing, attributes)
    return _array(group, "0", level, "float32", sharded=False)


def _sizes(n: int, halving: int, factor: int, chunk: int, shard: int) -> tuple[int, int, int, int]:
    """Factor, size, chunk and shard of one axis of the next level."""
    size = -(-n // halving)
    small = min(size, chunk)
    return factor * halving, size, small, min(shard // chunk, -(-size // small)) * small


def halved(stored: NDArray[Any], factors: Sequence[int]) -> NDArray[Any]:
    """Means of neighbours along the axes whose factor is 2; one that is left over stays itself.

    Those of integers are rounded.
    """
    data = stored.astype(np.float32, copy=False)
    for axis, factor in enumerate(factors):
        if factor == 2:
            even, odd = (np.moveaxis(data, axis, 0)[start::2] for start in (0, 1))
            mean = even.copy()
            mean[: len(odd)] += odd
            mean[: len(odd)] *= 0.5
            data = np.moveaxis(mean, 0, axis)
    if stored.dtype.kind == "u":
        data = np.rint(data)
    return np.ascontiguousarray(data, dtype=stored.dtype)
