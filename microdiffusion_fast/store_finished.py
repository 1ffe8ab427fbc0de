"""A volume that is complete: whose it is, and what its run may have left beside it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import InputError
from .io_common import NAMESPACE, parse_extra
from .io_output import is_zarr
from .io_zarr import chunk_files, open_array, read_node
from .store_lock import hold
from .store_shards import BEGIN, IMAGE, RUN
from .store_verify import levels_of


def is_finished(
    path: str | os.PathLike[str], run: dict[str, Any], *, overwrite: bool = False
) -> bool:
    """Whether the volume at `path` is the complete result of this run.

    Its files are looked at, not read: a shard that was lost or cut short since shows, a flipped bit
    does not.

    Args:
        path: of the Zarr store.
        run: as `OutputStore` was given it.
        overwrite: whether a volume that is no longer complete may be made anew.

    Raises:
        InputError: it is the result of this run, no longer complete, and not to be overwritten.
    """
    target = Path(path).resolve()
    if not is_zarr(target):
        return False
    attributes, _ = read_node(target)
    ours = parse_extra(attributes.get(NAMESPACE))
    if ours.get("run") != plain(run):
        return False
    try:
        size = stored_bytes(target, attributes)
        if size == ours.get("bytes", size):  # volumes of earlier versions do not say
            return True
        wrong = f"its shards have {size:,} bytes, not {ours['bytes']:,}"
    except FileNotFoundError as error:
        wrong = str(error)  # of zarr, for an array that has lost its description
        if error.filename:
            wrong = f"{Path(error.filename).relative_to(target)} is missing"
    except Exception as error:  # whatever zarr makes of a description
        wrong = str(error) or type(error).__name__
    if overwrite:
        return False
    expected = "a volume that is as it was finished (`verify` says what is not; --overwrite or"
    raise InputError("output", f"{expected} overwrite=True makes it anew)", f"{path}: {wrong}")


def stored_bytes(path: Path, attributes: dict[str, Any]) -> int:
    """Bytes of all shards of a NGFF image, by their files' sizes.

    Raises:
        FileNotFoundError: one is not there.
    """
    return sum(
        file.stat().st_size
        for folder in levels_of(path, attributes)
        for _, file in chunk_files(open_array(folder), folder)
    )


def remove_remains(path: str | os.PathLike[str]) -> None:
    """Remove what a process left that was killed at the end of `OutputStore.finish`."""
    target = Path(path).resolve()
    folder = partial_of(target)
    for gone in target.parent.glob(f".{target.name}.*.removed"):
        shutil.rmtree(gone, ignore_errors=True)

    def remains() -> bool:
        return is_zarr(target) and (folder / RUN).is_file() and not (folder / IMAGE).exists()

    if remains():
        with suppress(OSError):
            entrance = hold(folder / BEGIN, wait=False)
            if entrance is not None:
                try:
                    if remains():  # still: another run may have begun there before the lock
                        remove(folder)
                finally:
                    os.close(entrance)


def partial_of(target: Path) -> Path:
    """The folder of a volume that is not complete."""
    return target.with_name(f".{target.name}.partial")


def remove(folder: Path) -> None:
    """Remove the folder of a volume that was not complete."""
    # under another name first: who comes meanwhile finds all of it or nothing
    gone = folder.with_suffix(f".{secrets.token_hex(4)}.removed")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # `remove_remains` may be at it too


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values as JSON gives them back."""
    return dict(json.loads(json.dumps(values)))
