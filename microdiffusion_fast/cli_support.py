"""What the commands share: naming bad input, reading volumes, staging outputs."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.errors import naming as naming  # the commands take it from here

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microdiffusion_fast.io import Image
    from microdiffusion_fast.projections import Projections
    from microdiffusion_fast.simulate import Noise

VOLUME, PROJ, OUTPUT, TRUTH = "VOLUME", "PROJ", "-o/--output", "--truth"


def read_image(path: Path, argument: str) -> tuple[Image, NDArray[np.float32]]:
    """Read a volume [Z, Y, X] as float32, finite, not constant and at least 8 x 8 in y and x.

    Raises:
        InputError: Naming `argument`.
    """
    from microdiffusion_fast.io import read_volume
    from microdiffusion_fast.projection_checks import as_images, check_images

    with naming(path=argument, projections=argument):
        image = read_volume(path)
        tensor, _ = as_images(image.data)
        check_images(tensor)
    return image, tensor.numpy()


def read_truth(path: Path, projections: Projections) -> NDArray[np.float32]:
    """Read the truth of a reconstruction, before hours are spent: it must have its shape.

    Raises:
        InputError: Naming `--truth`.
    """
    _, truth = read_image(path, TRUTH)
    shape = (projections.depth, *projections.images.shape[1:])
    if truth.shape == shape:
        return truth
    hint = ""
    windows = (truth.shape[0] - projections.start - projections.step_length) // projections.stride
    if truth.shape[1:] == shape[1:] and windows + 1 == projections.images.shape[0]:
        hint = f" (--depth {truth.shape[0]} makes it fit)"
    raise InputError(
        TRUTH,
        f"shape {list(shape)}, that of the reconstruction{hint}",
        f"shape {list(truth.shape)} in {path}",
    )


def check_output_file(path: Path, *, overwrite: bool, argument: str, inputs: list[Path]) -> None:
    """Make sure that a result can be written, before it is computed, and that it is no input.

    Raises:
        InputError: Naming `argument`.
    """
    from microdiffusion_fast.io import check_output

    with naming(path=argument):
        target = check_output(path, overwrite=overwrite)
    check_writable(target.parent, argument)
    for source in inputs:
        if source.exists() and source.resolve() == target:
            raise InputError(argument, "another file than the input", str(path))


def check_writable(folder: Path, argument: str) -> None:
    """Make sure that a folder takes new files: permissions alone do not say so for every disk.

    Raises:
        InputError: Naming `argument`.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        got = f"{folder} ({error.strerror})"
        raise InputError(argument, "a folder that can be written", got) from error


def write_beside(
    path: Path,
    data: NDArray[np.float32],
    projections: Projections,
    *,
    metadata: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Write a volume [Z, Y, X] that belongs to these projections, with their voxel size."""
    from microdiffusion_fast.io import write_volume

    size = projections.voxel_size
    with naming(path=str(path)):
        write_volume(path, data, voxel_size=size, metadata=metadata, overwrite=overwrite)


@contextmanager
def staged_folder(output: Path, *, known: set[str], overwrite: bool) -> Iterator[Path]:
    """A hidden folder to fill, which takes the place of `output` only when the block ends well.

    Parents are made as needed. An existing folder is only ever replaced with `overwrite`, and only
    where it holds nothing but `known` names: a slip in the path must not delete someone's data.

    Raises:
        InputError: Naming the output.
    """
    target = output.absolute()
    _check_folder(output, target, known, overwrite=overwrite)
    mark = secrets.token_hex(4)
    temporary = None
    try:
        try:
            ancestor = next(parent for parent in target.parents if parent.exists())
            temporary = ancestor / f".{target.name}.{mark}.partial"
            temporary.mkdir()
        except OSError as error:
            got = f"{output} ({error.strerror})"
            raise InputError(OUTPUT, "a folder that can be made", got) from error
        yield temporary
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_folder(output, target, known, overwrite=overwrite)  # it may have appeared meanwhile
        if target.exists():
            old = target.with_name(f".{target.name}.{mark}.old")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        got = f"{output} ({error.strerror})"  # the system does not say which file
        raise InputError(OUTPUT, "a folder on a disk with room", got) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_folder(output: Path, target: Path, known: set[str], *, overwrite: bool) -> None:
    try:
        if not target.exists():
            return
        if not target.is_dir():
            raise InputError(OUTPUT, "a folder for the results", f"{output}, which is a file")
        held = sorted(path.name for path in target.iterdir())
    except OSError as error:
        got = f"{output} ({error.strerror})"
        raise InputError(OUTPUT, "a folder that can be made", got) from error
    if held and not overwrite:
        expected = "a new or empty folder (or --overwrite)"
        raise InputError(OUTPUT, expected, f"{output}, which holds {held[0]}")
    foreign = [name for name in held if name not in known]
    if foreign:
        expected = "a folder with nothing but an earlier result to overwrite"
        raise InputError(OUTPUT, expected, f"{output}, which also holds {foreign[0]}")


def parse_numbers(text: str | None, argument: str) -> tuple[float, ...] | None:
    """Read "0.2,0.6,0.2".

    Raises:
        InputError: Naming `argument`.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(argument, "numbers with commas between them", repr(text)) from None


def parse_steps(text: str | None) -> int | Literal["exact"] | None:
    """Read a number of steps, or "exact".

    Raises:
        InputError: Naming `--steps`.
    """
    if text is None:
        return None
    if text == "exact":
        return "exact"
    try:
        return int(text)
    except ValueError:
        raise InputError("--steps", "a number or 'exact'", repr(text)) from None


def parse_gamma(text: str | None) -> float | tuple[float, ...] | None:
    """Read one number, or one a step with commas between them.

    Raises:
        InputError: Naming `--gamma`.
    """
    values = parse_numbers(text, "--gamma")
    return values[0] if values is not None and len(values) == 1 else values


def parse_noise(text: str | None) -> Noise | None:
    """Read "photons=200,read=2,background=1,bits=12"; None and "none" are no noise.

    Raises:
        InputError: Naming `--noise`.
    """
    from microdiffusion_fast.simulate import Noise

    if text is None or text.strip().lower() == "none":
        return None
    expected = "like photons=200,read=2 (also background=, bits=), or none"
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            values[name] = float(number)
        except ValueError:
            raise InputError("--noise", expected, repr(text)) from None
    bits = values.pop("bits", None)
    photons = values.pop("photons", None)
    read, background = values.pop("read", 0.0), values.pop("background", 0.0)
    if values or (bits is not None and bits != int(bits)):
        raise InputError("--noise", expected, repr(text))
    names = {name: f"--noise {name}" for name in ("photons", "background", "bits")}
    with naming(**names, read_noise="--noise read"):
        return Noise(
            photons=photons,
            read_noise=read,
            background=background,
            bits=None if bits is None else int(bits),
        )


def to_json(value: Any) -> Any:
    """Plain JSON values from settings and measurements; what is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_json(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
