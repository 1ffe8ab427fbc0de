"""Where a sweep from disk to disk has the volumes of a step length while it needs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from microdiffusion_fast.cli_support import OUTPUT
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.experiments_methods import Entry
from microdiffusion_fast.experiments_store import VOLUMES, Store, write_json

_MARK = "of.json"  # whose volumes these are


@contextmanager
def place_of(store: Store, entry: Entry, *, keep: bool) -> Iterator[Path]:
    """The folder for the volumes of a step length, with what a run that was stopped has left there.

    It is removed when the block ends well.

    Args:
        store: of the sweep.
        entry: any method at this step length.
        keep: do not remove it.

    Raises:
        InputError: the folder is not of a sweep.
    """
    folder = store.folder / VOLUMES / entry.place
    _remove_gone(folder.parent)
    mark = {"sweep": store.fingerprint(entry.at), "keep": keep}
    if folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir()):
        found = _mark(folder)
        if found is None:
            expected = "a new or empty folder, or one of this sweep to go on with"
            raise InputError(OUTPUT, expected, f"{store.folder}, which holds {folder}")
        if found.get("sweep") != mark["sweep"]:
            _remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _MARK, mark)
    for left in folder.glob(".projections.ome.zarr.*"):  # of a run that was killed
        shutil.rmtree(left)
    yield folder
    if not keep:
        _remove(folder)


def remove_left(store: Store, entries: Sequence[Entry]) -> None:
    """Remove the volumes of finished step lengths that a kill has left, and none that were kept."""
    _remove_gone(store.folder / VOLUMES)
    for entry in entries:
        folder = store.folder / VOLUMES / entry.place
        if (found := _mark(folder)) is not None and not found.get("keep"):
            _remove(folder)


def _mark(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _remove(folder: Path) -> None:
    # under another name first: a kill leaves nothing that looks like volumes
    folder.rename(folder.with_name(f".{folder.name}.removed"))
    _remove_gone(folder.parent)


def _remove_gone(parent: Path) -> None:
    for gone in parent.glob(".*.removed"):
        shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):  # absent, or there are others in it
        parent.rmdir()
