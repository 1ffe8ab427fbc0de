"""A volume that is written shard by shard, survives a kill, and appears only when complete.

While it is written it lies in a hidden folder beside its final place:

    .NAME.partial/run.json      what run it is; written last of all that a run begins with
    .NAME.partial/image/        the NGFF 0.5 image
    .NAME.partial/receipts/     one file a finished shard, written after its data

`OutputStore` begins, takes up and finishes it; `ShardWriter` writes into it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .io_common import NAMESPACE, load_json, parse_extra
from .io_output import _replace_folder, is_zarr, prepare_output
from .io_zarr import _node
from .store_layout import Layout, halved
from .store_shards import IMAGE, RECEIPTS, ShardWriter, flush, write_durably, writing


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
        try:
            self.target = prepare_output(Path(path), overwrite=overwrite, store=True)
        except InputError as error:
            raise InputError("output", error.expected, error.got) from error
        self.layout, self.levels = layout, layout.levels
        self.folder = self.target.with_name(f".{self.target.name}.partial")
        self.image, self.receipts = self.folder / IMAGE, self.folder / RECEIPTS
        self.run = json.loads(json.dumps(run))
        with writing(self.target):
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
        self.shards = ShardWriter(self.folder, self.layout)

    def __enter__(self) -> OutputStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write here; what is finished stays."""
        os.close(self._lock)

    def missing(self) -> int:
        """How many shards of the coarser resolutions are to be made."""
        levels = list(enumerate(self.levels))[1:]
        return sum(
            not self.shards.has(box, number) for number, level in levels for box in level.boxes()
        )

    def coarsen(self, advance: Callable[[int], None]) -> None:
        """Make the coarser resolutions, each from the one before, when the full one is complete.

        Args:
            advance: told the number of shards made.

        Raises:
            InputError: a shard of the full one is missing: its mean would be kept as if it were
                right, or there is no room.
        """
        full = self.levels[0]
        left = sum(not self.shards.has(box) for box in full.boxes())
        if left:
            raise InputError("output", f"all {full.count:,} shards", f"{full.count - left:,}")
        for number, level in list(enumerate(self.levels))[1:]:
            finer = self.levels[number - 1]
            ratio = [a // b for a, b in zip(level.factors, finer.factors, strict=True)]
            for shard in level.boxes():
                if not self.shards.has(shard, number):
                    source = tuple(
                        slice(span.start * r, min(span.stop * r, size))
                        for span, r, size in zip(shard, ratio, finer.shape, strict=True)
                    )
                    data = halved(np.asarray(self.shards.arrays[number - 1][source]), ratio)
                    self.shards.write(shard, data, [shard], level=number)
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

        with writing(self.target):
            group = zarr.open_group(self.image, mode="r+")
            group.attrs[NAMESPACE] = {**metadata, "run": self.run}
            flush(self.image / "zarr.json")
            flush(self.image)
            old = self.folder / "old"
            _replace_folder(self.image, self.target, old)
            flush(self.target.parent)
            shutil.rmtree(self.folder)
        return self.target


def is_finished(path: str | os.PathLike[str], run: dict[str, Any]) -> bool:
    """Whether the volume at `path` is the complete result of this run."""
    target = Path(path).resolve()
    if not is_zarr(target):
        return False
    attributes, _ = _node(target)
    stored = parse_extra(attributes.get(NAMESPACE)).get("run")
    return bool(stored == json.loads(json.dumps(run)))


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
