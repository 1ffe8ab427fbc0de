"""Hash encoding of a voxel grid, or of its axial projection: one look-up per lattice vertex.

A level of resolution r costs one look-up per vertex instead of eight per voxel: for levels coarser
than the voxels that is 8 (D / r)^3 times fewer. One operator serves both: the grid is the
projection whose windows are single slices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _backend
from . import reference
from .geometry import (
    arguments,
    check_spec_and_table,
    is_native,
    is_triton,
    levels_of,
    spec_of,
)
from .reference import HashGridSpec


def hash_encoding_grid(axes: Sequence[Tensor], table: Tensor, spec: HashGridSpec) -> Tensor:
    """Encode the grid points (z, y, x) of three coordinate axes, as `hash_encoding` would.

    Args:
        axes: three ascending coordinate vectors [Z], [Y], [X] in [0, 1], float32 or float64. On a
            GPU that they ascend and stay inside is not checked, which would wait for the device:
            others give wrong numbers there.
        table: parameters [n_entries, F], floating point. Half precision is interpolated in float32
            and cast once.
        spec: geometry of the grid; x is its first (fastest) axis.

    Returns:
        [Z, Y, X, L*F] in the dtype of the table, level by level. Differentiable in the table; the
        backward pass gives the same bits each run.

    Raises:
        ValueError: if axes or table do not have the stated shapes, the devices differ, or an axis
            (on a CPU) does not ascend within [0, 1].
        TypeError: for other types.

    Source: Mueller et al. 2022, ACM TOG 41(4), section 3.
    """
    z, y, x = _checked(axes, table, spec)
    return _encode(z, y, x, table, *arguments(spec), [1.0], 1, 0, z.shape[0])


def hash_encoding_projection(
    axes: Sequence[Tensor],
    table: Tensor,
    spec: HashGridSpec,
    weights: Tensor | Sequence[float],
    stride: int,
    start: int,
    count: int,
) -> Tensor:
    """Axial projection of the encodings of a voxel grid, without the [Z, Y, X, L*F] in between.

    `out[k] = sum_i weights[i] * grid[start + k*stride + i]`. Interpolation and projection are both
    linear along z, so they are one matrix from the vertices of a level to the projections.

    Args:
        axes: three ascending coordinate vectors [Z], [Y], [X] in [0, 1], float32 or float64. On a
            GPU that they ascend and stay inside is not checked, which would wait for the device:
            others give wrong numbers there.
        table: parameters [n_entries, F], as in `hash_encoding_grid`.
        spec: geometry of the grid; x is its first (fastest) axis.
        weights: axial weights [s], shared by all windows.
        stride: slices between window starts.
        start: first slice of the first window.
        count: number of windows K.

    Returns:
        [K, Y, X, L*F] in the dtype of the table. Differentiable in the table; the backward pass
        gives the same bits each run.

    Raises:
        ValueError: if axes or table do not have the stated shapes, the devices differ, an axis
            (on a CPU) does not ascend within [0, 1], or the windows do not fit into the volume.
        TypeError: for other types.

    Source: MicroDiffusion (arXiv 2403.10815), section 3; Mueller et al. 2022, section 3.
    """
    z, y, x = _checked(axes, table, spec)
    values = weights.tolist() if isinstance(weights, Tensor) else weights
    try:
        taps = [float(weight) for weight in values]
    except (TypeError, ValueError):
        raise TypeError(f"weights: expected a vector of numbers, got {values!r}") from None
    if not taps or not all(math.isfinite(w) for w in taps):
        raise ValueError(f"weights: expected finite numbers, got {taps}")
    for name, value, least in (("stride", stride, 1), ("start", start, 0), ("count", count, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    end = start + (count - 1) * stride + len(taps)
    if end > z.shape[0]:
        expected = f"at least {end} slices for {count} windows"
        raise ValueError(f"axes: expected {expected}, got {z.shape[0]}")
    return _encode(z, y, x, table, *arguments(spec), taps, stride, start, count)


def _checked(
    axes: Sequence[Tensor], table: Tensor, spec: HashGridSpec
) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(axes, Sequence) or not all(isinstance(axis, Tensor) for axis in axes):
        got = type(axes).__name__
        if isinstance(axes, Sequence):
            got += " of " + ", ".join(type(axis).__name__ for axis in axes)
        raise TypeError(f"axes: expected three tensors (z, y, x), got {got}")
    check_spec_and_table(spec, table)
    if len(axes) != 3 or any(axis.ndim != 1 or axis.shape[0] == 0 for axis in axes):
        shapes = [list(axis.shape) for axis in axes]
        raise ValueError(f"axes: expected three non-empty vectors (z, y, x), got shapes {shapes}")
    if tuple(table.shape) != (spec.n_entries, spec.n_features):
        expected = [spec.n_entries, spec.n_features]
        raise ValueError(f"table: expected shape {expected}, got {list(table.shape)}")
    z, y, x = axes
    for axis in (z, y, x):
        if axis.dtype not in (torch.float32, torch.float64) or axis.dtype != z.dtype:
            raise TypeError(f"axes: expected all float32 or all float64, got {axis.dtype}")
        if axis.device != table.device:
            raise ValueError(f"axes: expected device {table.device}, got {axis.device}")
    return z, y, x


def _check_ascent(*axes: Tensor) -> None:
    """Refuses axes that the lattices of a level do not fit; on a GPU this would wait for it."""
    for axis in axes:
        if axis.device.type != "cpu":
            continue
        bounded = torch.cat([axis.new_zeros(1), axis.detach(), axis.new_ones(1)])
        ascends = bounded[1:] >= bounded[:-1]  # False next to NaN
        if not ascends.all():
            at = int(ascends.logical_not().nonzero()[0])
            found = ", ".join(f"{value:g}" for value in axis[max(at - 1, 0) : at + 1].tolist())
            raise ValueError(f"axes: expected ascending coordinates in [0, 1], got {found}")


@torch.library.custom_op("microdiffusion_fast::hash_encoding_grid", mutates_args=())
def _encode(
    z: Tensor,
    y: Tensor,
    x: Tensor,
    table: Tensor,
    n_levels: int,
    n_features: int,
    log2_hashmap_size: int,
    base_resolution: int,
    per_level_scale: float,
    weights: Sequence[float],
    stride: int,
    start: int,
    count: int,
) -> Tensor:
    _check_ascent(z, y, x)
    spec = spec_of(n_levels, n_features, log2_hashmap_size, base_resolution, per_level_scale)
    return reference.encode_grid((z, y, x), table, spec, weights, stride, start, count)


@torch.library.custom_op("microdiffusion_fast::hash_encoding_grid_backward", mutates_args=())
def _encode_backward(
    grad: Tensor,
    z: Tensor,
    y: Tensor,
    x: Tensor,
    n_levels: int,
    n_features: int,
    log2_hashmap_size: int,
    base_resolution: int,
    per_level_scale: float,
    weights: Sequence[float],
    stride: int,
    start: int,
    count: int,
) -> Tensor:
    spec = spec_of(n_levels, n_features, log2_hashmap_size, base_resolution, per_level_scale)
    return reference.encode_grid_backward(grad, (z, y, x), spec, weights, stride, start)


@_encode.register_fake
def _encode_fake(
    z: Tensor, y: Tensor, x: Tensor, table: Tensor, n_levels: int, n_features: int, *rest: Any
) -> Tensor:
    return table.new_empty((rest[-1], y.shape[0], x.shape[0], n_levels * n_features))


@_encode_backward.register_fake
def _encode_backward_fake(grad: Tensor, z: Tensor, y: Tensor, x: Tensor, *geometry: Any) -> Tensor:
    spec = spec_of(*geometry[:5])
    return grad.new_empty((spec.n_entries, spec.n_features))


if _backend.native is not None:
    _native = _backend.native

    def _native_arguments(axes: Sequence[Tensor], geometry: tuple[Any, ...]) -> tuple[Any, ...]:
        weights, stride, start, _ = geometry[5:]
        return *(axis.detach().contiguous() for axis in axes), (list(weights), stride, start)

    @_encode.register_kernel("cpu")
    def _native_encode(z: Tensor, y: Tensor, x: Tensor, table: Tensor, *geometry: Any) -> Tensor:
        _check_ascent(z, y, x)
        spec = spec_of(*geometry[:5])
        if not is_native(spec, table, z):
            return reference.encode_grid((z, y, x), table, spec, *geometry[5:])
        out = table.new_empty((geometry[-1], y.shape[0], x.shape[0], spec.n_outputs))
        grid = _native_arguments((z, y, x), geometry)
        rows, levels = table.detach().contiguous(), levels_of(spec)
        _native.hash_grid(out, *grid, rows, levels, torch.get_num_threads())
        return out

    @_encode_backward.register_kernel("cpu")
    def _native_encode_backward(
        grad: Tensor, z: Tensor, y: Tensor, x: Tensor, *geometry: Any
    ) -> Tensor:
        spec = spec_of(*geometry[:5])
        if not is_native(spec, grad, z):
            return reference.encode_grid_backward(grad, (z, y, x), spec, *geometry[5:8])
        grad_table = torch.zeros((spec.n_entries, spec.n_features))
        grid = _native_arguments((z, y, x), geometry)
        levels, threads = levels_of(spec), torch.get_num_threads()
        _native.hash_grid_backward(grad_table, grad.detach().contiguous(), *grid, levels, threads)
        return grad_table


if _backend.triton_missing is None:

    @_encode.register_kernel("cuda")
    def _triton_encode(z: Tensor, y: Tensor, x: Tensor, table: Tensor, *geometry: Any) -> Tensor:
        spec = spec_of(*geometry[:5])
        if not is_triton(table):
            return reference.encode_grid((z, y, x), table, spec, *geometry[5:])
        from .launch import encode_grid_triton

        return encode_grid_triton((z, y, x), table, spec, *geometry[5:])

    @_encode_backward.register_kernel("cuda")
    def _triton_encode_backward(
        grad: Tensor, z: Tensor, y: Tensor, x: Tensor, *geometry: Any
    ) -> Tensor:
        spec = spec_of(*geometry[:5])
        if not is_triton(grad):
            return reference.encode_grid_backward(grad, (z, y, x), spec, *geometry[5:8])
        from .launch import encode_grid_backward_triton

        return encode_grid_backward_triton(grad, (z, y, x), spec, *geometry[5:8])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[4:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_table = _encode_backward(grad, *ctx.saved_tensors, *ctx.geometry)
    return None, None, None, grad_table, *[None] * len(ctx.geometry)


def _setup_transpose(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])
    ctx.geometry = inputs[4:]


def _backward_transpose(ctx: Any, grad_table: Tensor) -> tuple[Any, ...]:
    grad = _encode(*ctx.saved_tensors, grad_table, *ctx.geometry)
    return grad, None, None, None, *[None] * len(ctx.geometry)


# Linear in the table: each is the other's derivative.
_encode.register_autograd(_backward, setup_context=_setup)
_encode_backward.register_autograd(_backward_transpose, setup_context=_setup_transpose)
