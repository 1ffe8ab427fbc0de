"""A volume that is written shard by shard, survives a kill, and appears only when complete.

While it is written it lies in a hidden folder beside its final place:

    .NAME.partial/run.json      what run it is; written last of all that a run begins with
    .NAME.partial/image/        the NGFF 0.5 image
    .NAME.partial/receipts/     one file a finished shard, written after its data
    .NAME.partial/lock.*        who is at work, see `OutputStore`
    .NAME.partial/old/          the volume that is being replaced

`OutputStore` begins, takes up and finishes it; `ShardWriter` writes into it, `coarsen` makes the
coarser resolutions, and `store_finished` knows it when it is complete.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError
from .io_common import NAMESPACE, load_json
from .io_output import prepare_output, replace_folder
from .store_difference import refuse_another, short
from .store_finished import is_finished, partial_of, plain, remove, stored_bytes
from .store_layout import Layout
from .store_lock import hold, locked, share
from .store_shards import BEGIN, IMAGE, RECEIPTS, RUN, WRITING, ShardWriter, write_json, writing
from .tensor_files import flush

_RUN_LOCK, _FINISH_LOCK = "lock.run", "lock.finish"
_DIVISION, _OLD = "division.json", "old"
_WORKER = "a worker of an earlier process that writes its last tile"


class Finished(Exception):
    """Another process finished this run meanwhile."""


class Part(NamedTuple):
    """Part `number` of `total`, from 1, of a run that as many processes divide among them.

    `rule` says how: JSON values that they must agree on.
    """

    number: int
    total: int
    rule: dict[str, Any]


class OutputStore:
    """The output of one run, begun or taken up again; a context.

    One process works on a run, with workers of its own (`ShardWriter`), or several do, each on its
    part. Four locks keep them apart; the system releases those of a process that dies.

        lock.run        held as long as the store is open: alone, or shared by parts
        lock.part.N     likewise: of a part
        lock.begin      while a process comes to the run, and while one finishes it
        lock.writing    shared while a shard is written; alone where a run begins and where it ends:
                        a worker whose run is over never writes into another

    Args:
        path: of the finished Zarr store.
        layout: sizes.
        run: what makes two runs the same one: JSON values by name, kept in the attributes of the
            image. A run that was begun is taken up if they are equal, and refused otherwise.
        settings: JSON values by name that change the volume by rounding only. A run that is taken
            up keeps those that it was begun with, see the attribute `settings`.
        part: of the run that this process does; None is all of it.
        resume: False begins anew.
        overwrite: replace a finished volume, once the new one is complete.

    Raises:
        InputError: the place cannot be written, another run was begun there, or one is at work.
        Finished: by another process, meanwhile.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: Layout,
        run: dict[str, Any],
        *,
        settings: dict[str, Any] | None = None,
        part: Part | None = None,
        resume: bool = True,
        overwrite: bool = False,
    ) -> None:
        if not Path(path).name.lower().endswith(".zarr"):
            raise InputError("output", "a name ending in .ome.zarr or .zarr", str(path))
        if part is not None and not resume:
            raise InputError("resume", "True for a part: the others would be lost", "False")
        if part is not None and is_finished(path, run, overwrite=overwrite):
            raise Finished(str(path))
        self.overwrite = overwrite
        self.target = self._place(Path(path))
        self.layout, self.levels = layout, layout.levels
        self.folder = partial_of(self.target)
        self.image, self.receipts = self.folder / IMAGE, self.folder / RECEIPTS
        self.run = plain(run)
        self.settings = plain(settings or {})
        self._held: list[int] = []
        with writing(self.target):
            entrance = self._enter()
            try:
                self._join(part, resume=resume)
            except BaseException:
                self.close()
                raise
            finally:
                os.close(entrance)

    def _place(self, path: Path) -> Path:
        """Where the volume is to be, having made sure that it may be put there."""
        return prepare_output(path, overwrite=self.overwrite, store=True, argument="output")

    def _enter(self) -> int:
        """Take the lock of those who come, in a folder that is there and stays."""
        while True:
            self.folder.mkdir(exist_ok=True)
            try:
                entrance = hold(self.folder / BEGIN, whose="one that begins or finishes this run")
            except FileNotFoundError:  # it was finished between these two lines
                continue
            assert entrance is not None
            return entrance

    def _join(self, part: Part | None, *, resume: bool) -> None:
        if resume and not (self.folder / RUN).is_file():
            if is_finished(self.target, self.run, overwrite=self.overwrite):
                remove(self.folder)  # made by `_enter`
                raise Finished(str(self.target))
        at_work = hold(self.folder / _RUN_LOCK, wait=False)
        alone = at_work is not None
        if at_work is None and part is not None:
            at_work = hold(self.folder / _RUN_LOCK, shared=True, wait=False)
        if at_work is None:
            expected = "a volume that no other process is writing"
            raise InputError("output", expected, str(self.target))
        self._held.append(at_work)
        if alone:
            # no worker of a process that died writes now
            with locked(self.folder / WRITING, whose=_WORKER):
                self._begin(resume=resume)
        else:
            self._take_up(load_json(self.folder / RUN))
        if part is not None:
            self._divide(part, alone=alone)
        self.shards = ShardWriter(self.folder, self.layout, self.token)

    def _begin(self, *, resume: bool) -> None:
        """Make what is not there, and shut out who wrote for a process that is no more."""
        record, old = self.folder / RUN, self.folder / _OLD
        if old.exists() and self.image.exists() and not self.target.exists():
            old.rename(self.target)  # a kill came between the two renames of `finish`
            flush(self.target.parent)
            self._place(self.target)
        self.token = secrets.token_hex(8)
        if resume and record.is_file() and self.image.is_dir():
            self._take_up({**load_json(record), "token": self.token})
            self._remove_strays()
        else:
            record.unlink(missing_ok=True)  # first: what is left of a run that is being removed
            for entry in self.folder.iterdir():  # would not be taken for a run
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif not entry.name.startswith("lock."):
                    entry.unlink()
            self.receipts.mkdir()
            self.layout.create(
                self.image, self.target.name.removesuffix(".zarr").removesuffix(".ome")
            )
            for file in sorted(self.image.rglob("zarr.json")):
                flush(file)
                flush(file.parent)
        values = {"run": self.run, "settings": self.settings, "token": self.token}
        write_json(record, values)

    def _take_up(self, record: dict[str, Any]) -> None:
        refuse_another(record.get("run", {}), self.run, self.target)
        self.settings, self.token = record["settings"], record["token"]

    def _divide(self, part: Part, *, alone: bool) -> None:
        """Agree with the processes that do the other parts, and let them in."""
        file, rule = self.folder / _DIVISION, plain({"parts": part.total, **part.rule})
        if alone:
            write_json(file, rule)
            share(self._held[0])
        elif (agreed := load_json(file)) != rule:
            expected = f"the division of the processes at work, {short(agreed)}"
            raise InputError("shard", expected, short(rule))
        lock = hold(self.folder / f"lock.part.{part.number}", wait=False)
        if lock is None:
            expected = "a part that no other process is doing"
            raise InputError("shard", expected, f"{part.number}/{part.total} of {self.target}")
        self._held.append(lock)

    def __enter__(self) -> OutputStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write here; what is finished stays."""
        while self._held:
            os.close(self._held.pop())

    @contextmanager
    def turn(self, name: str, *, whose: str) -> Iterator[None]:
        """Do what `name` says in one process at a time; others wait for it, `whose` says for whom.

        Raises:
            InputError: the run is over.
        """
        with writing(self.target), locked(self.folder / f"lock.{name}", whose=whose):
            yield

    @contextmanager
    def last(self) -> Iterator[bool]:
        """Whether this process is to finish the run: no shard is missing, and no other does."""
        lock = None
        if self.shards.has_all(self.levels[0].boxes()):
            try:  # whoever takes this lock has seen that all is there, so nobody waits for it
                lock = hold(self.folder / _FINISH_LOCK, wait=False)
            except FileNotFoundError:  # finished
                lock = None
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)

    def finish(self, metadata: dict[str, Any]) -> Path:
        """Put the complete volume in its place, with metadata and the run in its attributes.

        Raises:
            InputError: a shard is missing, the place cannot be written, or something is there now
                and is not to be overwritten: the volume stays where it was written, and the same
                run puts it in its place when it is free.
        """
        count = sum(level.count for level in self.levels)
        done = sum(1 for _ in self.receipts.glob("*.json"))
        if done != count:
            raise InputError("output", f"all {count:,} shards", f"{done:,}")
        import zarr

        # nobody comes to this run now, and nobody writes for it
        entrance = locked(self.folder / BEGIN, whose="one that comes to this run")
        pen = locked(self.folder / WRITING, whose=_WORKER)
        with writing(self.target), entrance, pen:
            self._place(self.target)  # again: what appeared there since is not ours to remove
            self._remove_strays()
            group = zarr.open_group(self.image, mode="r+")
            size = stored_bytes(self.image, dict(group.attrs))
            group.attrs[NAMESPACE] = {**metadata, "run": self.run, "bytes": size}
            flush(self.image / "zarr.json")
            flush(self.image)
            replace_folder(self.image, self.target, self.folder / _OLD)
            flush(self.target.parent)
            remove(self.folder)
        return self.target

    def _remove_strays(self) -> None:
        """Remove what a kill within a write left in the image."""
        for stray in self.image.rglob("*.partial"):
            stray.unlink()
