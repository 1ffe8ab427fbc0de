"""What a stack of projections has to satisfy, and how any array becomes one."""

from __future__ import annotations

import math
import operator
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microdiffusion_fast.errors import InputError

MIN_PIXELS = 8  # along y and x: less holds no structure to reconstruct
WEIGHT_SUM_TOLERANCE = 1e-6
_EXACT_INTEGERS = 2**24  # float32 holds every integer up to here
STEP_LENGTH = "an integer of at least 2 (with 1 every slice is already resolved)"


def checked_integer(argument: str, value: object, minimum: int, expected: str | None = None) -> int:
    """Return `value` as an int; raise InputError unless it is a whole number >= `minimum`."""
    expected = expected or f"an integer of at least {minimum}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(argument, expected, repr(value)) from error
    if isinstance(value, (bool, np.bool_)) or number < minimum:
        raise InputError(argument, expected, repr(value))
    return number


def check_images(images: Tensor) -> None:
    """Raise InputError unless `images` can be reconstructed: float32 [K, Y, X], finite, varying."""
    if not isinstance(images, Tensor) or images.dtype != torch.float32:
        kind = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            "projections", "a float32 tensor [K, Y, X] (Projections.from_any converts)", kind
        )
    shape = tuple(images.shape)
    if len(shape) != 3:
        raise InputError("projections", "a 3D stack [K, Y, X]", f"shape {shape}")
    if shape[0] < 2:
        expected = "at least 2 projections (depth cannot be interpolated from one)"
        raise InputError("projections", expected, f"{shape[0]} in shape {shape}")
    if min(shape[1:]) < MIN_PIXELS:
        raise InputError(
            "projections", f"at least {MIN_PIXELS} x {MIN_PIXELS} pixels", f"shape {shape}"
        )
    finite = torch.isfinite(images)
    if not bool(finite.all()):
        bad = ~finite
        first = tuple(int(i) for i in bad.nonzero()[0])
        got = f"{int(bad.sum()):,} NaN or Inf, the first at [k, y, x] = {list(first)}"
        raise InputError("projections", "finite intensities", got)
    low, high = (float(value) for value in torch.aminmax(images))
    if low == high:
        raise InputError("projections", "intensities that vary", f"{low:g} everywhere")


def check_depth(depth: int, count: int, step_length: int, stride: int, start: int) -> None:
    """Raise InputError unless exactly `count` windows fit in `depth` slices."""
    if depth - start < step_length:
        raise InputError(
            "step_length", f"at most the {depth - start} slices from start to depth", step_length
        )
    fit = (depth - start - step_length) // stride + 1
    if fit != count:
        geometry = f"depth {depth}, step_length {step_length}, stride {stride}, start {start}"
        raise InputError(
            "projections", f"{fit} images, the windows that fit in {geometry}", f"{count} images"
        )


def checked_weights(weights: Sequence[float] | None, step_length: int) -> tuple[float, ...] | None:
    """Return axial weights [s] as floats; raise InputError unless non-negative with sum 1."""
    if weights is None:
        return None
    expected = f"{step_length} non-negative numbers (one a slice of the step length) that sum to 1"
    try:
        values = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError) as error:
        raise InputError("weights", expected, repr(weights)) from error
    if len(values) != step_length:
        raise InputError("weights", expected, f"{len(values)} numbers")
    if not all(math.isfinite(weight) and weight >= 0 for weight in values):
        raise InputError("weights", expected, values)
    if abs(math.fsum(values) - 1) > WEIGHT_SUM_TOLERANCE:
        raise InputError("weights", expected, f"a sum of {math.fsum(values):.9g}")
    return values


def as_images(projections: Any) -> tuple[Tensor, str]:
    """Return a float32 copy of any array-like [K, Y, X] and the name of its dtype."""
    if not isinstance(projections, (np.ndarray, Tensor)):
        if hasattr(projections, "__dlpack__"):
            projections = torch.from_dlpack(projections)
        elif hasattr(projections, "__array__"):  # Zarr, dask, xarray
            projections = np.asarray(projections)
        else:
            expected = "an array, tensor, DLPack object, path, Zarr array or Projections"
            raise InputError("projections", expected, type(projections).__name__)
    if isinstance(projections, Tensor):
        name = str(projections.dtype).removeprefix("torch.")
        real = re.fullmatch(r"u?int(8|16|32|64)|b?float(16|32|64)", name) is not None
    else:
        name, real = str(projections.dtype.name), projections.dtype.kind in "iuf"
    if not real:
        raise InputError("projections", "real integer or float intensities", name)
    if projections.ndim != 3 or 0 in projections.shape:
        raise InputError("projections", "a 3D stack [K, Y, X]", f"shape {tuple(projections.shape)}")
    if isinstance(projections, Tensor):
        images = projections.detach().to(torch.float32, copy=True).contiguous()
        overflow = bool((torch.isinf(images) & ~torch.isinf(projections)).any())
    else:
        with np.errstate(over="ignore"):
            cast = np.array(projections, dtype=np.float32, order="C")
        overflow = bool((np.isinf(cast) & ~np.isinf(projections)).any())
        images = torch.from_numpy(cast)
    if overflow:
        limit = torch.finfo(torch.float32).max
        raise InputError(
            "projections",
            f"intensities within float32 (up to {limit:.3g})",
            f"larger {name} values",
        )
    if "int" in name and float(images.abs().max()) > _EXACT_INTEGERS:
        warnings.warn(
            f"projections: {name} intensities above 2**24 are rounded to float32",
            UserWarning,
            stacklevel=3,
        )
    return images, name
