"""The shards of a volume that is being written: data first, on disk, then the receipt.

Every file gets its name when it is whole. Any number of processes may write into one volume, as
long as no two write the same shard at a time; `OutputStore` says how they are kept apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .errors import InputError
from .io_common import load_json
from .io_scaled import Scaling
from .store_layout import Layout
from .store_lock import hold
from .tensor_files import flush, whole
from .tiling_windows import Box

IMAGE, RECEIPTS = "image", "receipts"  # folders in that of an unfinished volume
RUN, BEGIN, WRITING = "run.json", "lock.begin", "lock.writing"  # files there


class ShardWriter:
    """Writes shards into the folder of an unfinished volume, and knows which are finished.

    Args:
        folder: that of an `OutputStore` that has been begun.
        layout: sizes.
        token: of that store, as long as it is the one that the shards are written for.
    """

    def __init__(self, folder: Path, layout: Layout, token: str) -> None:
        self.folder, self.token = folder, token
        self.image, self.receipts = folder / IMAGE, folder / RECEIPTS
        self.levels = layout.levels
        self.arrays = [_open_array(self.image / str(number)) for number in range(len(self.levels))]

    def has(self, shard: Box, level: int = 0) -> bool:
        """Whether a shard is finished: it has its receipt, and the size that the receipt says."""
        receipt = self._receipt(shard, level)
        if not receipt.is_file():
            return False
        with suppress(OSError, InputError):
            return self._file(shard, level).stat().st_size == load_json(receipt).get("bytes")
        return False

    def has_all(self, shards: Iterable[Box]) -> bool:
        """Whether all these shards of the full resolution are finished."""
        return all(self.has(shard) for shard in shards)

    def write(
        self,
        core: Box,
        data: NDArray[Any],
        shards: Iterable[Box],
        *,
        level: int = 0,
        scaling: Scaling | None = None,
    ) -> None:
        """Write the voxels of `core`, which are the given shards, and then their receipts.

        With a scaling they become integers, and a receipt counts those outside of its range.

        Raises:
            InputError: there is no room, the place cannot be written, or the run is over.
        """
        files = {shard: self._file(shard, level) for shard in shards}
        clipped = dict.fromkeys(files, 0)
        with writing(self.folder), self._pen():
            for shard in files:
                part = data[shard.within(core)]
                if scaling is not None:
                    part, clipped[shard] = scaling.encode(part)
                self.arrays[level][shard.slices] = part
            for file in files.values():
                flush(file)
            for folder in {file.parent for file in files.values()}:
                while folder != self.image:
                    flush(folder)
                    folder = folder.parent
            for shard, file in files.items():
                record = {
                    "voxels": [list(span) for span in shard],
                    "bytes": file.stat().st_size,
                    "clipped": clipped[shard],
                }
                write_json(self._receipt(shard, level), record)

    @contextmanager
    def _pen(self) -> Iterator[None]:
        """What every writer holds, as long as its run is the one in the folder."""
        try:
            pen = hold(self.folder / WRITING, shared=True)
        except FileNotFoundError:
            pen = None
        try:
            if pen is None or load_json(self.folder / RUN).get("token") != self.token:
                expected = "the run that this process works for"
                got = f"{self.folder}, which was taken over or finished"
                raise InputError("output", expected, got)
            yield
        finally:
            if pen is not None:
                os.close(pen)

    def clipped(self) -> int:
        """Voxels of finished shards that lay outside of the range of the integers."""
        return sum(
            int(load_json(receipt).get("clipped", 0)) for receipt in self.receipts.glob("0.*.json")
        )

    def _file(self, shard: Box, level: int = 0) -> Path:
        index = self.levels[level].index(shard)
        return self.image / str(level) / self.arrays[level].metadata.encode_chunk_key(index)

    def _receipt(self, shard: Box, level: int = 0) -> Path:
        index = self.levels[level].index(shard)
        return self.receipts / "{}.{}.{}.{}.json".format(level, *index)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a small file whole or not at all, and have it on disk when this returns."""
    with whole(path, shared=True) as part:
        part.write_text(json.dumps(values, indent=1), encoding="utf-8")


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Word what a disk refuses.

    Raises:
        InputError: there is no room, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        expected = "a place that can be written and has room"
        raise InputError(
            "output", expected, f"{target} ({error.strerror or error}); what is finished is kept"
        ) from error


def _open_array(folder: Path) -> Any:
    import zarr

    return zarr.open_array(folder, mode="r+", zarr_format=3, config={"write_empty_chunks": True})
