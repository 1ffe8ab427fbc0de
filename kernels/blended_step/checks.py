"""What `blended_step` refuses: one message per argument, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import checks
from .reference import COLUMNS

_GAMMA, _LOW, _HIGH = map(COLUMNS.index, ("gamma", "low", "high"))


def has_values(x: Tensor) -> bool:
    """Whether there is memory to look at: not while tracing, nor on the meta device."""
    return not torch.compiler.is_compiling() and x.untyped_storage().device.type != "meta"


def check_volumes(x: Tensor, volumes: dict[str, Tensor]) -> None:
    """x is [Z, Y, X], and so are the others."""
    checks.tensor("x", x, ndim=3, floating=True)
    for name, tensor in volumes.items():
        checks.tensor(name, tensor, floating=True)
        if tensor.shape != x.shape:
            expected = f"shape {list(x.shape)}, like x"
            raise ValueError(f"{name}: expected {expected}, got {list(tensor.shape)}")


def check_gradients(x: Tensor, history: Tensor | None) -> None:
    """What is written has no gradient to lose, by torch's own rule for writing in place."""
    for name, tensor in (("x", x), ("history", history)):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            expected = "a tensor without a gradient, or torch.no_grad()"
            raise ValueError(f"{name}: expected {expected}, got one that requires a gradient")


def check_table(table: Tensor, step: Tensor) -> None:
    """The kind and shape of the table and the counter."""
    checks.tensor("table", table, floating=True)
    if table.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"table: expected float32 or float64, got {table.dtype}")
    if table.ndim != 2 or table.shape[0] == 0 or table.shape[1] != len(COLUMNS):
        expected = f"shape [K, {len(COLUMNS)}], K at least 1"
        raise ValueError(f"table: expected {expected}, got {list(table.shape)}")
    checks.tensor("step", step)
    if step.dtype != torch.int64:
        raise TypeError(f"step: expected an int64 tensor, got {step.dtype}")
    if step.numel() != 1:
        raise ValueError(f"step: expected one number, got shape {list(step.shape)}")


def check_coefficients(table: Tensor) -> None:
    """The numbers of a table on a CPU: gamma in [0, 1], all finite but for limits of infinity."""
    lows, highs = (column.tolist() for column in torch.aminmax(table, dim=0))
    low, high = lows[_GAMMA], highs[_GAMMA]
    if not (low >= 0.0 and high <= 1.0):  # NaN included
        worst = high if low >= 0.0 else low
        raise ValueError(f"gamma: expected numbers in [0, 1] in the table, got {worst}")
    if all(map(math.isfinite, lows)) and all(map(math.isfinite, highs)):
        return
    for index, (name, *extremes) in enumerate(zip(COLUMNS, lows, highs, strict=True)):
        for value in extremes:
            if math.isnan(value) or (math.isinf(value) and index not in (_LOW, _HIGH)):
                raise ValueError(f"{name}: expected finite numbers in the table, got {value}")


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


def read_step(table: Tensor, step: Tensor) -> int:
    """The row that the counter says, where reading it is free: on a CPU."""
    index = int(step)
    if not 0 <= index < len(table):
        raise ValueError(f"step: expected a row in [0, {len(table)}), got {index}")
    return index


def read_key(value: float) -> int:
    """The step word of the noise from its column of the table."""
    if not (value.is_integer() and 0 <= value < 1 << 32):
        raise ValueError(f"key: expected an integer in [0, 2^32), got {value}")
    return int(value)


def read_words(words: Tensor, key: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The key with what the words say: a wait where they lie on a GPU."""
    seed, stream, first = words.tolist()
    volume = key[-3:]
    row, x = divmod(first, volume[2])
    place = [*divmod(row, volume[1]), x]
    inside = all(o + s <= v for o, s, v in zip(place, shape, volume, strict=True))
    if first < 0 or not inside or not 0 <= stream < 1 << 32:
        expected = f"words of a stream in [0, 2^32) and a block inside the volume {list(volume)}"
        raise ValueError(f"noise: expected {expected}, got {[seed, stream, first]}")
    return [seed, stream, *place, *volume]


def check_geometry(
    x: Tensor,
    projections: Tensor | None,
    weights: Tensor | Sequence[float] | None,
    stride: int | None,
    start: int,
) -> tuple[list[float], int, int]:
    """The axial weights, the stride and the start, defaults filled in."""
    taps = [] if weights is None else checks.taps("weights", weights)
    stride = len(taps) if stride is None else checks.integer("stride", stride, 1)
    start = checks.integer("start", start)
    if projections is None:
        return [], 1, 0
    checks.tensor("projections", projections, floating=True)
    if projections.ndim != 3 or projections.shape[1:] != x.shape[1:] or len(projections) == 0:
        expected = f"shape [K, {x.shape[1]}, {x.shape[2]}], K at least 1"
        raise ValueError(f"projections: expected {expected}, got {list(projections.shape)}")
    if stride == 0:
        raise ValueError("weights: expected weights or a stride beside projections, got None")
    count, depth = len(projections), x.shape[0]
    end = start + (count - 1) * stride + (stride if weights is None else len(taps))
    if end > depth:
        windows = f"{count} windows inside the {depth} slices of x"
        raise ValueError(f"start: expected {windows}, got slices {start} to {end}")
    return taps or [1.0 / stride] * stride, stride, start


def _span(tensor: Tensor) -> int:
    """Bytes from the first element to past the last one."""
    size = tensor.element_size()
    if tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.numel() * size
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * size


def _is_nested(tensor: Tensor) -> bool:
    """Whether each stride reaches past all that the smaller ones do, as in any slice of an array:
    then no two elements share memory.
    """
    past = 0
    for stride, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n > 1:
            if stride <= past:
                return False
            past += (n - 1) * stride
    return True


def _meet(a: Tensor, b: Tensor) -> bool:
    """Whether elements of two tensors whose extents overlap share memory.

    Exact where their strides are the same and nested, like those of two slices of one array;
    otherwise they are said to.
    """
    sizes = (a.element_size(), b.element_size())
    if a.stride() != b.stride() or sizes[0] != sizes[1]:
        return True
    # Is there a difference of indices, each between -(m - 1) and n - 1, that spans the distance?
    every = sorted(zip(a.stride(), a.shape, b.shape, strict=True), reverse=True)
    axes = [(stride, n, m) for stride, n, m in every if max(n, m) > 1]

    def spans(distance: int, axis: int) -> bool:
        if axis == len(axes):
            # Elements need not be aligned to each other: views of bytes.
            return abs(distance) < sizes[0]
        stride = axes[axis][0] * sizes[0]
        _, n, m = axes[axis]
        rest = sizes[0] + sum(s * (max(i, j) - 1) for s, i, j in axes[axis + 1 :]) * sizes[0]
        first = max(-(m - 1), -((rest - distance) // stride))
        last = min(n - 1, (distance + rest) // stride)
        return any(spans(distance - i * stride, axis + 1) for i in range(first, last + 1))

    return spans(b.data_ptr() - a.data_ptr(), 0)


def check_memory(x: Tensor, history: Tensor | None, others: dict[str, Tensor]) -> None:
    """What is written shares no memory with anything else, nor with itself."""
    extents = {name: (other.data_ptr(), _span(other)) for name, other in others.items()}
    for written, tensor in (("x", x), ("history", history)):
        if tensor is None or tensor.numel() == 0:
            continue
        if not tensor.is_contiguous() and not _is_nested(tensor):
            got = f"shape {list(tensor.shape)} with strides {list(tensor.stride())}"
            raise ValueError(f"{written}: expected memory of its own for every voxel, got {got}")
        low = tensor.data_ptr()
        high = low + _span(tensor)
        for name, (first, span) in extents.items():
            if first < high and low < first + span and name != written:
                if _meet(tensor, others[name]):
                    raise ValueError(
                        f"{name}: expected memory apart from {written}, got an overlap"
                    )
