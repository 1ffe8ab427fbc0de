"""Whether a stored volume is what was written: every shard there, every bit right, no NaN."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import io_zarr
from .errors import InputError
from .io_common import NAMESPACE, as_path, parse_extra
from .io_output import is_zarr
from .io_scaled import UNWRITTEN, Scaling
from .progress import Progress, ProgressCallback

LISTED = 20  # faults that are named; the others are counted


@dataclass
class Verification:
    """What `verify` found.

    Attributes:
        shards: files that the array should have.
        missing: how many of them are not there.
        damaged: how many cannot be decoded: their checksum, or the index of their chunks, is wrong.
        unwritten: voxels that are NaN or infinite, or the integer that stands for a voxel that was
            never written.
        faults: one line for each of the first faults.
    """

    shards: int
    missing: int = 0
    damaged: int = 0
    unwritten: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.missing or self.damaged or self.unwritten)

    def _fault(self, line: str) -> None:
        if len(self.faults) < LISTED:
            self.faults.append(line)


def verify(
    path: str | os.PathLike[str],
    *,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> Verification:
    """Read every shard of a Zarr volume and check it, one at a time.

    Chunks that this package writes have checksums; in stores from elsewhere a flipped bit may
    decode to a wrong voxel, and a chunk that is not there may be meant as zeros.

    Args:
        path: the folder of a Zarr store.

    Raises:
        InputError: no Zarr store with a readable description.
    """
    source = as_path(path)
    if not is_zarr(source):
        raise InputError("path", "a Zarr store", f"{source}, which is none")
    attributes, is_array = io_zarr.read_node(source)
    scaled = Scaling.of(parse_extra(attributes.get(NAMESPACE))) is not None
    folders = [source] if is_array else levels_of(source, attributes)
    try:
        arrays = [io_zarr.open_array(folder) for folder in folders]
        sizes = [array.shards or array.chunks for array in arrays]
        grids = [io_zarr.grid_of(array) for array in arrays]
    except Exception as error:
        got = f"{source} ({error or type(error).__name__})"
        raise InputError("path", "a Zarr store with a readable description", got) from error
    found = Verification(sum(map(math.prod, grids)))
    with Progress("verify", found.shards, enabled=progress, callback=callback, unit="shard") as bar:
        for folder, array, stored, grid in zip(folders, arrays, sizes, grids, strict=True):
            _check(found, source, folder, array, stored, grid, bar, scaled=scaled)
    return found


def levels_of(path: Path, attributes: dict[str, Any]) -> list[Path]:
    """The folders of all resolutions of a NGFF image, the first checked as for reading."""
    first = io_zarr._multiscale(path, attributes)[0]
    datasets = attributes.get("ome", attributes)["multiscales"][0]["datasets"][1:]
    others = [path / str(dataset["path"]) for dataset in datasets]
    for folder in others:
        if not folder.resolve().is_relative_to(path.resolve()) or not folder.is_dir():
            raise InputError("path", "a NGFF dataset inside its store", str(folder))
    return [first, *others]


def _check(
    found: Verification,
    source: Path,
    folder: Path,
    array: Any,
    stored: tuple[int, ...],
    grid: list[int],
    bar: Progress,
    *,
    scaled: bool,
) -> None:
    for index in np.ndindex(*grid):
        file = folder / array.metadata.encode_chunk_key(index)
        key = file.relative_to(source)
        if not file.is_file():
            found.missing += 1
            found._fault(f"{key}: missing")
        else:
            start = [i * c for i, c in zip(index, stored, strict=True)]
            part = tuple(slice(a, a + c) for a, c in zip(start, stored, strict=True))
            try:
                data = np.asarray(array[part])
            except Exception as error:  # whatever a codec makes of wrong bytes
                found.damaged += 1
                found._fault(f"{key}: damaged ({error or type(error).__name__})")
            else:
                bad = 0
                if data.dtype.kind == "f":
                    bad = int((~np.isfinite(data)).sum())
                elif scaled:
                    bad = int((data == UNWRITTEN).sum())
                found.unwritten += bad
                if bad:
                    found._fault(f"{key}: {bad:,} voxels are NaN, infinite or unwritten")
        bar.advance(1)
