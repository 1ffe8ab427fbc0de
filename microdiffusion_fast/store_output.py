"""A volume that is written shard by shard, survives a kill, and appears only when complete.

While it is written it lies in a hidden folder beside its final place:

    .NAME.partial/run.json      what run it is; written last of all that a run begins with
    .NAME.partial/image/        the NGFF 0.5 image
    .NAME.partial/receipts/     one file a finished shard, written after its data

Every file gets its name when it is whole, and a shard is on disk before its receipt is.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .io_common import NAMESPACE, load_json, parse_extra
from .io_output import _replace_folder, is_zarr, prepare_output
from .io_zarr import _node
from .store_layout import Layout, halved
from .tiling_windows import Box


class OutputStore:
    """The output of one run, begun or taken up again; a context, for only one process at a time.

    Args:
        path: of the finished Zarr store.
        layout: sizes.
        run: what makes two runs the same one: JSON values by name, kept in the attributes of the
            image. A run that was begun is taken up if they are equal, and refused otherwise.
        resume: False begins anew.
        overwrite: replace a finished volume, once the new one is complete.

    Raises:
        InputError: the place cannot be written, another run was begun there, or one is at work.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: Layout,
        run: dict[str, Any],
        *,
        resume: bool = True,
        overwrite: bool = False,
    ) -> None:
        if not Path(path).name.lower().endswith(".zarr"):
            raise InputError("output", "a name ending in .ome.zarr or .zarr", str(path))
        self.target = prepare_output(Path(path), overwrite=overwrite, store=True)
        self.layout, self.levels = layout, layout.levels
        self.folder = self.target.with_name(f".{self.target.name}.partial")
        self.image, self.receipts = self.folder / "image", self.folder / "receipts"
        self.run = json.loads(json.dumps(run))
        with _place(self.target):
            self.folder.mkdir(exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                expected = "a volume that no other process is writing"
                raise InputError("output", expected, str(self.target)) from None
            try:
                self._begin(resume=resume)
            except BaseException:
                self.close()
                raise

    def _begin(self, *, resume: bool) -> None:
        record = self.folder / "run.json"
        if resume and record.is_file() and self.image.is_dir():
            _refuse_another(load_json(record), self.run, self.target)
            for stray in self.image.rglob("*.partial"):  # of a kill within a write
                stray.unlink()
        else:
            record.unlink(missing_ok=True)  # first: what is left of a run that is being removed
            for entry in self.folder.iterdir():  # would not be taken for a run
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            self.receipts.mkdir()
            self.layout.create(
                self.image, self.target.name.removesuffix(".zarr").removesuffix(".ome")
            )
            for file in sorted(self.image.rglob("zarr.json")):
                flush(file)
                flush(file.parent)
            write_durably(record, json.dumps(self.run, indent=1).encode())
        self._arrays = [_open_array(self.image / str(number)) for number in range(len(self.levels))]

    def __enter__(self) -> OutputStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write here; what is finished stays."""
        os.close(self._lock)

    def has(self, shard: Box, level: int = 0) -> bool:
        """Whether a shard is finished: it has its receipt, and the size that the receipt says."""
        receipt = self._receipt(shard, level)
        if not receipt.is_file():
            return False
        with suppress(OSError, InputError):
            return self._file(shard, level).stat().st_size == load_json(receipt).get("bytes")
        return False

    def write(
        self, core: Box, data: NDArray[Any], shards: Iterable[Box], *, level: int = 0
    ) -> None:
        """Write the voxels of `core`, which are the given shards, and then their receipts.

        Raises:
            InputError: there is no room, or the place cannot be written.
        """
        files = {shard: self._file(shard, level) for shard in shards}
        with _place(self.target):
            for shard in files:
                self._arrays[level][shard.slices] = data[shard.within(core)]
            for file in files.values():
                flush(file)
            for folder in {file.parent for file in files.values()}:
                while folder != self.image:
                    flush(folder)
                    folder = folder.parent
            for shard, file in files.items():
                record = {"voxels": [list(span) for span in shard], "bytes": file.stat().st_size}
                write_durably(self._receipt(shard, level), json.dumps(record).encode())

    def missing(self) -> int:
        """How many shards of the coarser resolutions are to be made."""
        levels = list(enumerate(self.levels))[1:]
        return sum(not self.has(box, number) for number, level in levels for box in level.boxes())

    def coarsen(self, advance: Callable[[int], None]) -> None:
        """Make the coarser resolutions, each from the one before, when the full one is complete.

        Args:
            advance: told the number of shards made.
        """
        for number, level in list(enumerate(self.levels))[1:]:
            finer = self.levels[number - 1]
            ratio = [a // b for a, b in zip(level.factors, finer.factors, strict=True)]
            for shard in level.boxes():
                if not self.has(shard, number):
                    source = tuple(
                        slice(span.start * r, min(span.stop * r, size))
                        for span, r, size in zip(shard, ratio, finer.shape, strict=True)
                    )
                    data = halved(np.asarray(self._arrays[number - 1][source]), ratio)
                    self.write(shard, data, [shard], level=number)
                    advance(1)

    def finish(self, metadata: dict[str, Any]) -> Path:
        """Put the complete volume in its place, with metadata and the run in its attributes.

        Raises:
            InputError: a shard is missing, or the place cannot be written.
        """
        count = sum(level.count for level in self.levels)
        done = sum(1 for _ in self.receipts.glob("*.json"))
        if done != count:
            raise InputError("output", f"all {count:,} shards", f"{done:,}")
        import zarr

        with _place(self.target):
            group = zarr.open_group(self.image, mode="r+")
            group.attrs[NAMESPACE] = {**metadata, "run": self.run}
            flush(self.image / "zarr.json")
            flush(self.image)
            old = self.folder / "old"
            _replace_folder(self.image, self.target, old)
            flush(self.target.parent)
            shutil.rmtree(self.folder)
        return self.target

    def _file(self, shard: Box, level: int = 0) -> Path:
        index = self.levels[level].index(shard)
        return self.image / str(level) / self._arrays[level].metadata.encode_chunk_key(index)

    def _receipt(self, shard: Box, level: int = 0) -> Path:
        index = self.levels[level].index(shard)
        return self.receipts / "{}.{}.{}.{}.json".format(level, *index)


def is_finished(path: str | os.PathLike[str], run: dict[str, Any]) -> bool:
    """Whether the volume at `path` is the complete result of this run."""
    target = Path(path).resolve()
    if not is_zarr(target):
        return False
    attributes, _ = _node(target)
    stored = parse_extra(attributes.get(NAMESPACE)).get("run")
    return bool(stored == json.loads(json.dumps(run)))


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and have it on disk when this returns."""
    part = path.with_name(path.name + ".new")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Have a file, or the entries of a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_array(folder: Path) -> Any:
    import zarr

    return zarr.open_array(folder, mode="r+", zarr_format=3, config={"write_empty_chunks": True})


def _refuse_another(begun: dict[str, Any], run: dict[str, Any], target: Path) -> None:
    names = sorted({*begun, *run})
    other = [name for name in names if begun.get(name) != run.get(name)]
    if other:
        shown = ", ".join(
            f"{name} {_short(begun.get(name))} instead of {_short(run.get(name))}" for name in other
        )
        expected = f"the run that was begun for {target.name} (resume=False begins anew)"
        raise InputError("resume", expected, f"one with {shown}")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@contextmanager
def _place(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        expected = "a place that can be written and has room"
        raise InputError(
            "output", expected, f"{target} ({error.strerror or error}); what is finished is kept"
        ) from error
