"""What `blended_step` refuses: one message per argument, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .reference import COLUMNS

_GAMMA = COLUMNS.index("gamma")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless `tensor` is a floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")


def check_volumes(x: Tensor, volumes: dict[str, Tensor]) -> None:
    """x is [Z, Y, X], and so are the others."""
    check_floating("x", x)
    if x.ndim != 3:
        raise ValueError(f"x: expected [Z, Y, X], got shape {list(x.shape)}")
    for name, tensor in volumes.items():
        check_floating(name, tensor)
        if tensor.shape != x.shape:
            expected = f"shape {list(x.shape)}, like x"
            raise ValueError(f"{name}: expected {expected}, got {list(tensor.shape)}")


def check_table(table: Tensor, step: Tensor) -> None:
    """The table and the counter; values are read where that is free, on a CPU."""
    check_floating("table", table)
    if table.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"table: expected float32 or float64, got {table.dtype}")
    if table.ndim != 2 or table.shape[0] == 0 or table.shape[1] != len(COLUMNS):
        expected = f"shape [K, {len(COLUMNS)}], K at least 1"
        raise ValueError(f"table: expected {expected}, got {list(table.shape)}")
    if not isinstance(step, Tensor) or step.dtype != torch.int64:
        got = step.dtype if isinstance(step, Tensor) else type(step).__name__
        raise TypeError(f"step: expected an int64 tensor, got {got}")
    if step.numel() != 1:
        raise ValueError(f"step: expected one number, got shape {list(step.shape)}")
    if table.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = map(float, torch.aminmax(table.select(1, _GAMMA)))
        if not (low >= 0.0 and high <= 1.0):  # NaN included
            worst = high if low >= 0.0 else low
            raise ValueError(f"gamma: expected numbers in [0, 1] in the table, got {worst}")


def check_words(words: Tensor | None, x: Tensor) -> None:
    """What a graph reads its noise from; only its kind: the values may be on a GPU."""
    if words is None:
        return
    if not isinstance(words, Tensor) or words.dtype != torch.int64:
        got = words.dtype if isinstance(words, Tensor) else type(words).__name__
        raise TypeError(f"noise: expected words of int64, got {got}")
    if tuple(words.shape) != (3,) or words.device != x.device:
        expected = f"3 words on {x.device}, like x"
        raise ValueError(f"noise: expected {expected}, got {list(words.shape)} on {words.device}")


def check_geometry(
    x: Tensor,
    projections: Tensor | None,
    weights: Tensor | Sequence[float] | None,
    stride: int | None,
    start: int,
) -> tuple[list[float], int]:
    """The axial weights and the stride, defaults filled in."""
    if projections is None:
        return [], 1
    check_floating("projections", projections)
    if projections.ndim != 3 or projections.shape[1:] != x.shape[1:] or len(projections) == 0:
        expected = f"shape [K, {x.shape[1]}, {x.shape[2]}], K at least 1"
        raise ValueError(f"projections: expected {expected}, got {list(projections.shape)}")
    if weights is None:
        if stride is None:
            raise ValueError("weights: expected weights or a stride beside projections, got None")
        weights = [1.0 / max(stride, 1)] * stride
    taps = [float(w) for w in (weights.tolist() if isinstance(weights, Tensor) else weights)]
    stride = len(taps) if stride is None else stride
    if stride < 1:
        raise ValueError(f"stride: expected at least 1, got {stride}")
    if not any(taps) or not all(map(math.isfinite, taps)):
        raise ValueError(f"weights: expected finite numbers that are not all zero, got {taps}")
    end = start + (len(projections) - 1) * stride + len(taps)
    if start < 0 or end > x.shape[0]:
        windows = f"{len(projections)} windows inside the {x.shape[0]} slices of x"
        raise ValueError(f"start: expected {windows}, got slices {start} to {end}")
    return taps, stride


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First and past-the-end byte that the elements lie between."""
    if tensor.numel() == 0:
        return 0, 0
    first, size = tensor.data_ptr(), tensor.element_size()
    if tensor.is_contiguous():
        return first, first + tensor.numel() * size
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * size


def check_memory(x: Tensor, history: Tensor | None, others: dict[str, Tensor]) -> None:
    """What is written shares no memory with anything else, nor with itself."""
    extents = {name: _extent(other) for name, other in others.items()}
    for written, tensor in (("x", x), ("history", history)):
        if tensor is None:
            continue
        if any(s == 0 and n > 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True)):
            raise ValueError(f"{written}: expected a voxel per element, got an expanded view")
        low, high = _extent(tensor)
        for name, (first, end) in extents.items():
            if name != written and first < high and low < end:
                raise ValueError(f"{name}: expected memory apart from {written}, got an overlap")
