"""What the operators ask of their arguments: each check gives the value back, ready for use.

All of them raise a ValueError or a TypeError "argument: expected X, got Y", and all can be traced
by `torch.compile`.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from typing import Any

import torch
from torch import Tensor

_FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def tensor(name: str, value: Any, *, ndim: int | None = None, floating: bool = False) -> Tensor:
    """A dense tensor of real numbers; `floating` leaves float16, bfloat16, float32 and float64.

    Raises:
        TypeError: it is no tensor, sparse, or of another kind of dtype.
        ValueError: it has another number of dimensions.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if floating and value.dtype not in _FLOATING:
        expected = "a floating-point tensor (float16, bfloat16, float32 or float64)"
        raise TypeError(f"{name}: expected {expected}, got {value.dtype}")
    if value.dtype.is_complex or value.is_quantized:
        raise TypeError(f"{name}: expected a real dtype, got {value.dtype}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got shape {list(value.shape)}")
    return value


def on_device_of(name: str, value: Tensor, other: str, device: torch.device) -> None:
    """Raises ValueError unless the tensor lies on the device of the argument `other`."""
    if value.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, like {other}, got {value.device}")


def integer(
    name: str, value: Any, least: int = 0, *, bits: int = 63, expected: str | None = None
) -> int:
    """An integer in [least, 2^bits); NumPy's pass, floats and booleans do not.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    # No index is asked of a traced integer: that would fix the size that it stands for.
    found = value
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        found = None if isinstance(value, bool) else _index(value)
    if found is None or not least <= found < 1 << bits:
        error = TypeError if found is None else ValueError
        expected = expected or f"an integer in [{least}, 2^{bits})"
        raise error(f"{name}: expected {expected}, got {value!r}")
    return found  # type: ignore[no-any-return]


def _index(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None


def number(
    name: str, value: Any, expected: str = "a finite number", *, finite: bool = True
) -> float:
    """A number as a float; one of NumPy or a 0-dim tensor passes, booleans and strings do not.

    Raises:
        TypeError: it is no real number.
        ValueError: it is NaN, or infinite where `finite` is asked for.
    """
    given = value
    if not isinstance(value, float):
        if isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex():
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name}: expected {expected}, got {given!r}")
        try:
            value = float(value)
        except OverflowError:
            value = math.nan
    # By comparisons, NaN included: a traced number has no isfinite.
    if not (abs(value) < math.inf if finite else value == value):
        raise ValueError(f"{name}: expected {expected}, got {given!r}")
    return value


def two(name: str, value: Any, expected: str) -> tuple[Any, Any]:
    """The two items of a sequence.

    Raises:
        TypeError: it is no sequence.
        ValueError: it has another length.
    """
    if isinstance(value, str) or not hasattr(value, "__len__"):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if len(value) != 2:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return value[0], value[1]


def limits(name: str, value: Any, expected: str, *, finite: bool = True) -> tuple[float, float]:
    """Two numbers (low, high), low <= high.

    Raises:
        TypeError: it is no sequence of numbers.
        ValueError: it has another length, is out of order, or holds NaN, or infinity where `finite`
            is asked for.
    """
    low, high = (number(name, item, expected, finite=finite) for item in two(name, value, expected))
    if low > high:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return low, high


def taps(name: str, weights: Any) -> list[float]:
    """The weights of a window [s] as floats, from a sequence, an array or a tensor.

    Raises:
        TypeError: they are no sequence of real numbers.
        ValueError: they are not of one dimension, or the sum of their squares, by which the
            pseudo-inverse divides, is zero, below the smallest normal float64 or not finite.
    """
    values = weights
    if not isinstance(values, list | tuple):
        if isinstance(values, str) or not hasattr(values, "tolist"):
            raise TypeError(f"{name}: expected a sequence of numbers, got {weights!r}")
        if values.ndim != 1:
            expected = "one dimension [s]"
            raise ValueError(f"{name}: expected {expected}, got shape {list(values.shape)}")
        values = values.tolist()
    found = [
        value if type(value) is float else number(name, value, "finite numbers") for value in values
    ]
    norm = sum([value * value for value in found])
    if not sys.float_info.min <= norm < math.inf:
        expected = "finite numbers whose squares add up to a normal float64"
        raise ValueError(f"{name}: expected {expected}, got {found}")
    return found
