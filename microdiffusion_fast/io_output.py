"""Outputs that are whole or not at all: written to a hidden sibling, then renamed into place."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from microdiffusion_fast.errors import InputError


def is_zarr(path: Path) -> bool:
    """Say whether `path` is a folder with Zarr metadata (v2 or v3) at its root."""
    return path.is_dir() and any(
        (path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")
    )


def prepare_output(path: Path, *, overwrite: bool, store: bool, argument: str = "path") -> Path:
    """Return where `path` (links followed) is to be written, having made sure that it may be.

    Args:
        path: as the user gave it.
        overwrite: whether it may exist.
        store: whether it is the folder of a Zarr store, or a file.
        argument: what the user calls it.

    Raises:
        InputError: naming `argument`, where it exists (without `overwrite`), is of the other kind,
            or its folder is absent or read-only.
    """
    try:
        target = path.resolve()
        if not target.parent.is_dir():
            raise InputError(
                argument, "a file in an existing folder", f"{path} (no folder {target.parent})"
            )
        if target.exists():
            if not overwrite:
                raise InputError(
                    argument, "a new file (or overwrite=True, --overwrite)", f"{path}, which exists"
                )
            # A folder is only ever replaced where it is a Zarr store: a slip in the path must not
            # delete a data folder.
            if store and not is_zarr(target):
                raise InputError(
                    argument, "a Zarr store to overwrite", f"{path}, which is something else"
                )
            if not store and not target.is_file():
                raise InputError(argument, "a file to overwrite", f"{path}, which is a folder")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise InputError(
                argument, "a folder that can be written", f"{target.parent}, which is read-only"
            )
    except (OSError, RuntimeError) as error:
        raise InputError(argument, "a place that can be written", f"{path} ({error})") from error
    return target


def refuse_input(output: Path, source: Path) -> None:
    """Refuse an output that is the input that it is made of, lies in it, or holds it.

    Raises:
        InputError: naming `output`; links are followed.
    """
    try:
        target, origin = output.resolve(), source.resolve()
    except (OSError, RuntimeError) as error:  # links that go round
        got = f"{output} ({error})"
        raise InputError("output", "a place that can be written", got) from error
    if target in (origin, *origin.parents) or origin in target.parents:
        expected = "a place outside the input, which must not change"
        raise InputError("output", expected, str(output))


def reason(error: OSError, target: Path) -> str:
    """Why a file could not be written, in words.

    numpy says how many bytes of how many it wrote, and never that the disk is full.
    """
    if error.strerror:
        return error.strerror
    with suppress(OSError):
        return f"{error}; {shutil.disk_usage(target.parent).free:,} bytes free there"
    return str(error)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a hidden sibling to write to, and put it in the place of `target` only when the block
    ends well.

    The old file or store stays until the new one is complete; after a failure nothing of the new
    one is left.

    Raises:
        InputError: where the place cannot be written (read-only, full).
    """
    mark = secrets.token_hex(4)
    temporary = target.with_name(f".{target.name}.{mark}.partial")
    try:
        yield temporary
        if temporary.is_dir():
            replace_folder(temporary, target, target.with_name(f".{target.name}.{mark}.old"))
        else:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    except OSError as error:
        raise InputError(
            "path", "a place that can be written", f"{target} ({reason(error, target)})"
        ) from error
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def replace_folder(temporary: Path, target: Path, old: Path) -> None:
    """Give a folder the name of another, which goes to `old` and is removed there at last."""
    # A folder cannot be replaced in one call: a kill between the two renames leaves the old store
    # whole, as `.name.*.old`.
    if not target.exists():
        temporary.rename(target)
        return
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
