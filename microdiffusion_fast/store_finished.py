"""A volume that is complete: whose it is, and what its run may have left beside it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from .io_common import NAMESPACE, parse_extra
from .io_output import is_zarr
from .io_zarr import read_node
from .store_lock import hold
from .store_shards import BEGIN, IMAGE, RUN


def is_finished(path: str | os.PathLike[str], run: dict[str, Any]) -> bool:
    """Whether the volume at `path` is the complete result of this run."""
    target = Path(path).resolve()
    if not is_zarr(target):
        return False
    attributes, _ = read_node(target)
    stored = parse_extra(attributes.get(NAMESPACE)).get("run")
    return bool(stored == plain(run))


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
