"""The folder of a sweep: its identity, its finished cells and its tables.

A cell is one method at one parameter. Each is a file that is written whole, so a sweep that was
killed goes on with what is missing; what a folder is about is written down first, and a sweep of
another volume or with other settings is refused. Cells hold no volumes: scores, and the few images
that the figure needs.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from microdiffusion_fast.cli_support import OUTPUT, check_writable, to_json
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io_output import staged
from microdiffusion_fast.records import first_difference
from microdiffusion_fast.tensor_files import read_tensors, write_tensors

IDENTITY = "sweep.json"
VOLUMES = "volumes"  # of a sweep from disk to disk
_BEGUN = {IDENTITY, "cells", VOLUMES}  # what a sweep without any cell may have left


@dataclass(frozen=True, eq=False)
class Cell:
    """One method at one parameter.

    Attributes:
        scores: psnr, ssim, dice, and whatever else belongs to the result.
        images: the cuts that the figure shows.
        notes: what may differ from run to run, such as seconds.
    """

    scores: dict[str, Any]
    images: dict[str, np.ndarray]
    notes: dict[str, Any]


class Store:
    """The folder of one experiment, as a context manager: one run at a time.

    Args:
        folder: made where it is absent; parents too.
        identity: what all cells share: the experiment, the volume and the settings. Lists of
            parameters are not among them, so they may grow.

    Raises:
        InputError: on entry; the folder is of another sweep, holds something else, is in use or
            cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, to_json(identity)

    def __enter__(self) -> Self:
        folder = self.folder
        try:
            if folder.exists() and not folder.is_dir():
                raise InputError(OUTPUT, "a folder for the results", f"{folder}, which is a file")
            folder.mkdir(parents=True, exist_ok=True)
            check_writable(folder, OUTPUT)
            self._lock = self._alone()
            try:
                self._claim()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            got = f"{folder} ({error.strerror})"
            raise InputError(OUTPUT, "a folder that can be made", got) from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def cells(self) -> Path:
        return self.folder / "cells"

    def load(self, name: str, key: Mapping[str, Any]) -> Cell | None:
        """A finished cell, or None where it has to be computed."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            tensors, metadata = read_tensors(path, OUTPUT, "a cell of a sweep")
            if metadata.get("fingerprint") != self.fingerprint(key):
                return None
            scores, notes = json.loads(metadata["scores"]), json.loads(metadata["notes"])
        except (InputError, KeyError, ValueError):
            return None  # a damaged file is computed again
        return Cell(scores, {name: tensor.numpy() for name, tensor in tensors.items()}, notes)

    def keep(self, name: str, key: Mapping[str, Any], cell: Cell) -> Cell:
        """Write a finished cell, whole or not at all, and return it as `load` would."""
        metadata = {
            "fingerprint": self.fingerprint(key),
            "scores": json.dumps(to_json(cell.scores)),
            "notes": json.dumps(to_json(cell.notes)),
        }
        tensors = {name: _tensor(image) for name, image in cell.images.items()}
        write_tensors(self._path(name), tensors, metadata)
        kept = self.load(name, key)
        assert kept is not None
        return kept

    def fingerprint(self, key: Mapping[str, Any]) -> str:
        """SHA-256 of what decides a cell: the sweep's identity and the cell's own parameters."""
        text = json.dumps([self.identity, to_json(key)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _path(self, name: str) -> Path:
        return self.cells / f"{name}.safetensors"

    def _alone(self) -> int:
        """Lock the folder until it is closed; a killed process leaves no lock behind."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            got = f"{self.folder}, where another sweep is at work"
            raise InputError(OUTPUT, "a folder of its own for every run", got) from None
        return handle

    def _claim(self) -> None:
        """Say what the folder is about, or see that it is about this."""
        held = sorted(path.name for path in self.folder.iterdir())
        if any(self.cells.glob("*.safetensors")):
            self._compare()
        elif foreign := [name for name in held if name not in _BEGUN and name[0] != "."]:
            expected = "a new or empty folder, or one of this sweep to go on with"
            raise InputError(OUTPUT, expected, f"{self.folder}, which holds {foreign[0]}")
        else:
            write_json(self.folder / IDENTITY, self.identity)
        self.cells.mkdir(exist_ok=True)
        for left in (*self.folder.glob(".*.partial*"), *self.cells.glob("*.partial")):
            left.unlink()  # of a run that was killed

    def _compare(self) -> None:
        path = self.folder / IDENTITY
        expected = "a folder of this volume and these settings, or a new one"
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(OUTPUT, expected, f"{path}, which cannot be read") from None
        found = (
            first_difference(begun, self.identity) if isinstance(begun, dict) else (("it",), "", "")
        )
        if found is not None:
            names, old, new = found
            got = f"{self.folder}, begun with {names[-1]} {old}, not {new}"
            raise InputError(OUTPUT, expected, got)


def write_json(path: Path, record: Any) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(to_json(record), indent=2, allow_nan=False) + "\n"
    write_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of one set of columns, whole or not at all; None is an empty field."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_file(path, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Have a file written beside its place, then put there: whole or not at all."""
    with staged(path) as part:
        # what writes pictures goes by the suffix
        draft = part.with_name(part.name + path.suffix)
        try:
            write(draft)
            draft.replace(part)
        finally:
            draft.unlink(missing_ok=True)


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
