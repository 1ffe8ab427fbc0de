"""blended_step: one pass over the state does all that lies between two calls of the network.

Guidance, prediction to x0, limits, data consistency, the sampler's update, noise and the blend with
the prior are all linear (but for the limits), so one row of a table tells any sampler's step. The
rows come from `microdiffusion_fast.schedule.make_plan`, or from anybody who fills `COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..counter_noise import counter_noise
from .reference import COLUMNS, blended_step_reference

__all__ = ["COLUMNS", "NoiseKey", "blended_step"]

_SIGN = 1 << 63
_KEY_COLUMN = COLUMNS.index("key")


class NoiseKey(NamedTuple):
    """Noise for the step to draw: arguments of `counter_noise`, whose step is in the table."""

    seed: int
    stream: int = 0
    offset: Sequence[int] = (0, 0, 0)
    volume_shape: Sequence[int] | None = None


@torch.library.custom_op("microdiffusion_fast::blended_step", mutates_args=("x", "history"))
def _step(
    x: Tensor,
    prior: Tensor,
    cond: Tensor,
    table: Tensor,
    step: Tensor,
    uncond: Tensor | None,
    noise: Tensor | None,
    noise_key: Sequence[int],
    history: Tensor | None,
    projections: Tensor | None,
    weights: Sequence[float],
    stride: int,
    start: int,
) -> None:
    # noise_key: empty, or seed, stream, offset (3) and volume shape (3).
    if noise_key:
        seed, stream, *place = noise_key
        noise = counter_noise(
            x.shape,
            seed=seed % 2**64,
            # Free on a CPU; elsewhere a wait that a kernel which draws its own noise does not have.
            step=int(table[step.reshape(()), _KEY_COLUMN]),
            stream=stream,
            offset=place[:3],
            volume_shape=place[3:],
            device=x.device,
        )
    blended_step_reference(
        x,
        prior,
        cond,
        table,
        step,
        uncond=uncond,
        noise=noise,
        history=history,
        projections=projections,
        weights=weights,
        stride=stride,
        start=start,
    )


@_step.register_fake
def _fake(
    x: Tensor,
    prior: Tensor,
    cond: Tensor,
    table: Tensor,
    step: Tensor,
    uncond: Tensor | None,
    noise: Tensor | None,
    noise_key: Sequence[int],
    history: Tensor | None,
    projections: Tensor | None,
    weights: Sequence[float],
    stride: int,
    start: int,
) -> None:
    return None


def blended_step(
    x: Tensor,
    prior: Tensor,
    cond: Tensor,
    table: Tensor,
    step: Tensor,
    *,
    uncond: Tensor | None = None,
    noise: Tensor | NoiseKey | None = None,
    history: Tensor | None = None,
    projections: Tensor | None = None,
    weights: Tensor | Sequence[float] | None = None,
    stride: int | None = None,
    start: int = 0,
) -> None:
    """Advances the blended state [Z, Y, X] by one diffusion step, in place.

        prediction = (1 + w) * cond - w * uncond
        x0         = clamp(p * prediction + q * x, low, high)
        x0        += trust * A^+ (projections - A x0)
        x_prev     = a * x0 + b * x + c * history + d * noise;    history = x0
        x          = (1 - gamma) * x_prev + gamma * prior

    A part whose tensor is None is left out. Any mix of floating dtypes; the arithmetic is in that
    of `x`, at least float32. Not differentiable.

    Args:
        x: blended state, [Z, Y, X]; becomes that of the next step, after the last row the clean
            volume. Shares no memory with the others.
        prior: [Z, Y, X].
        cond: the network's output with its condition, [Z, Y, X].
        table: [K, len(COLUMNS)], float32 or float64, one row a step, on the device of x.
        step: the row, an int64 scalar on the device of x: a counter that the host need not read.
        uncond: the network's output without its condition, [Z, Y, X].
        noise: standard normals [Z, Y, X], or the key of those to draw.
        history: x0 of the step before, [Z, Y, X]; zeros before the first step. Overwritten. A table
            of a multistep sampler needs it.
        projections: [K, Y, X] of the axial projection A that follows.
        weights: axial weights [s]; default the mean of `stride` slices.
        stride: slices between window starts; default s.
        start: first slice of the first window.

    Raises:
        ValueError: a shape, a device or the geometry does not fit, or x shares memory.
        TypeError: an argument is no tensor, or of another kind of dtype.

    Source: see `blended_step_reference`.
    """
    _check_floating("x", x)
    if x.ndim != 3:
        raise ValueError(f"x: expected [Z, Y, X], got shape {list(x.shape)}")
    like_x = {"prior": prior, "cond": cond, "uncond": uncond, "history": history}
    if isinstance(noise, Tensor):
        like_x["noise"] = noise
    present = {name: tensor for name, tensor in like_x.items() if tensor is not None}
    for name, tensor in present.items():
        _check_floating(name, tensor)
        if tensor.shape != x.shape:
            expected = f"shape {list(x.shape)}, like x"
            raise ValueError(f"{name}: expected {expected}, got {list(tensor.shape)}")
    _check_table(table, step)
    taps, stride = _check_geometry(x, projections, weights, stride, start)
    if projections is not None:
        present["projections"] = projections
    for name, tensor in (present | {"table": table, "step": step}).items():
        if tensor.device != x.device:
            raise ValueError(f"{name}: expected device {x.device}, like x, got {tensor.device}")
    if not torch.compiler.is_compiling():
        _check_memory(x, history, present)
    if x.numel() == 0:
        return
    drawn: Tensor | None = None
    key: list[int] = []
    if noise is None or isinstance(noise, Tensor):
        drawn = noise
    else:
        key = _flat_key(noise, x)
    _step(
        x, prior, cond, table, step, uncond, drawn, key, history, projections, taps, stride, start
    )


def _check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")


def _check_table(table: Tensor, step: Tensor) -> None:
    _check_floating("table", table)
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


def _check_geometry(
    x: Tensor,
    projections: Tensor | None,
    weights: Tensor | Sequence[float] | None,
    stride: int | None,
    start: int,
) -> tuple[list[float], int]:
    """The axial weights and the stride, defaults filled in."""
    if projections is None:
        return [], 1
    _check_floating("projections", projections)
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
    if not any(taps):
        raise ValueError(f"weights: expected numbers that are not all zero, got {taps}")
    end = start + (len(projections) - 1) * stride + len(taps)
    if start < 0 or end > x.shape[0]:
        windows = f"{len(projections)} windows inside the {x.shape[0]} slices of x"
        raise ValueError(f"start: expected {windows}, got slices {start} to {end}")
    return taps, stride


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First and past-the-end byte that the elements lie between."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _check_memory(x: Tensor, history: Tensor | None, others: dict[str, Tensor]) -> None:
    """What is written shares no memory with anything else, nor with itself."""
    for written, tensor in (("x", x), ("history", history)):
        if tensor is None:
            continue
        if any(s == 0 and n > 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True)):
            raise ValueError(f"{written}: expected a voxel per element, got an expanded view")
        low, high = _extent(tensor)
        for name, other in others.items():
            first, end = _extent(other)
            if name != written and first < high and low < end:
                raise ValueError(f"{name}: expected memory apart from {written}, got an overlap")


def _flat_key(key: NoiseKey, x: Tensor) -> list[int]:
    if not isinstance(key, NoiseKey):
        raise TypeError(f"noise: expected a tensor or a NoiseKey, got {type(key).__name__}")
    if not 0 <= key.seed < 2 * _SIGN:
        raise ValueError(f"noise: expected a seed in [0, 2^64), got {key.seed}")
    if key.volume_shape is None and any(key.offset):
        raise ValueError("noise: expected a volume_shape beside a non-zero offset, got None")
    volume = tuple(x.shape) if key.volume_shape is None else key.volume_shape
    if len(key.offset) != 3 or len(volume) != 3:
        got = f"{tuple(key.offset)} and {tuple(volume)}"
        raise ValueError(f"noise: expected an offset and a volume_shape of 3 numbers, got {got}")
    # The dispatcher's integers are signed 64-bit: the upper half of the seeds travels as negative.
    seed = key.seed - 2 * _SIGN * (key.seed >= _SIGN)
    return [seed, key.stream, *key.offset, *volume]
