"""Axial projection A, adjoint A^T and pseudo-inverse A^+ as torch operators.

`axial_projection`, `axial_backprojection` and `axial_pseudo_inverse` check their arguments and call
the operators `microdiffusion_fast::axial_*`, whose default implementation is the reference. The
data's device decides which registered implementation runs. The weights travel as plain floats:
geometry never synchronises with a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _backend
from . import reference
from .reference import gram_condition

__all__ = [
    "axial_backprojection",
    "axial_projection",
    "axial_pseudo_inverse",
    "gram_condition",
]


def axial_projection(
    x: Tensor, weights: Tensor | Sequence[float], stride: int, start: int, count: int
) -> Tensor:
    """Weighted means along z: `y[k] = sum_i weights[i] * x[start + k*stride + i]`.

    Args:
        x: Volume [Z, Y, X], any floating dtype; half precision is accumulated in float32.
        weights: Axial weights [s], shared by all windows.
        stride: Slices between window starts.
        start: First slice of the first window.
        count: Number of windows K.

    Returns:
        Projections [K, Y, X] in the dtype of `x`. Differentiable in `x`; the backward pass is
        `A^T`.

    Raises:
        ValueError: if the windows do not fit into the volume. TypeError: if `x` is not floating
        point.

    Source: MicroDiffusion (arXiv 2403.10815), section 3.
    """
    taps = _checked("x", x, weights, stride, start, count)
    _check_fit(x.shape[0], len(taps), stride, start, count)
    return _project(x, taps, stride, start, count)


def axial_backprojection(
    y: Tensor, weights: Tensor | Sequence[float], stride: int, start: int, depth: int
) -> Tensor:
    """Spread projections back over their windows: `A^T y`. [K, Y, X] -> [Z, Y, X].

    Slices that no window covers are zero. Differentiable in `y`; the backward pass is `A`.

    Raises:
        ValueError: if the windows do not fit into `depth` slices. TypeError: if `y` is not floating
        point.
    """
    taps = _checked("y", y, weights, stride, start, y.shape[0])
    _check_fit(depth, len(taps), stride, start, y.shape[0])
    return _backproject(y, taps, stride, start, depth)


def axial_pseudo_inverse(
    y: Tensor, weights: Tensor | Sequence[float], stride: int, start: int, depth: int
) -> Tensor:
    """Volume of least norm that projects to `y`: `A^T (A A^T)^-1 y`. [K, Y, X] -> [Z, Y, X].

    Closed form per column for `stride >= s`; for overlapping windows a banded solve in float64,
    whose factor is made once per geometry. Exact while `gram_condition(...)` is at most 1e10,
    damped beyond (see `reference.cholesky_band`).

    Raises:
        ValueError: if the windows do not fit into `depth` slices. TypeError: if `y` is not floating
        point.
    """
    taps = _checked("y", y, weights, stride, start, y.shape[0])
    _check_fit(depth, len(taps), stride, start, y.shape[0])
    return _pseudo_inverse(y, taps, stride, start, depth)


def _checked(
    name: str, data: Tensor, weights: Tensor | Sequence[float], stride: int, start: int, count: int
) -> list[float]:
    if data.ndim != 3:
        raise ValueError(f"{name}: expected 3 dimensions, got shape {tuple(data.shape)}")
    if not data.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {data.dtype}")
    taps = [float(w) for w in (weights.tolist() if isinstance(weights, Tensor) else weights)]
    if not taps or not all(math.isfinite(w) for w in taps) or not any(taps):
        raise ValueError(f"weights: expected finite numbers, not all zero, got {taps}")
    if stride < 1:
        raise ValueError(f"stride: expected at least 1, got {stride}")
    if start < 0:
        raise ValueError(f"start: expected at least 0, got {start}")
    if count < 1:
        raise ValueError(f"count: expected at least 1 window, got {count}")
    return taps


def _check_fit(depth: int, s: int, stride: int, start: int, count: int) -> None:
    end = start + (count - 1) * stride + s
    if end > depth:
        raise ValueError(f"depth: expected at least {end} slices for {count} windows, got {depth}")


@torch.library.custom_op("microdiffusion_fast::axial_projection", mutates_args=())
def _project(x: Tensor, weights: Sequence[float], stride: int, start: int, count: int) -> Tensor:
    return reference.project(x, weights, stride, start, count)


@torch.library.custom_op("microdiffusion_fast::axial_backprojection", mutates_args=())
def _backproject(
    y: Tensor, weights: Sequence[float], stride: int, start: int, depth: int
) -> Tensor:
    return reference.backproject(y, weights, stride, start, depth)


@torch.library.custom_op("microdiffusion_fast::axial_pseudo_inverse", mutates_args=())
def _pseudo_inverse(
    y: Tensor, weights: Sequence[float], stride: int, start: int, depth: int
) -> Tensor:
    return reference.pseudo_inverse(y, weights, stride, start, depth)


@torch.library.custom_op("microdiffusion_fast::axial_pseudo_inverse_adjoint", mutates_args=())
def _pseudo_inverse_adjoint(
    x: Tensor, weights: Sequence[float], stride: int, start: int, count: int
) -> Tensor:
    return reference.pseudo_inverse_adjoint(x, weights, stride, start, count)


@_project.register_fake
@_pseudo_inverse_adjoint.register_fake
@_backproject.register_fake
@_pseudo_inverse.register_fake
def _fake(data: Tensor, weights: Sequence[float], stride: int, start: int, length: int) -> Tensor:
    return data.new_empty((length, *data.shape[1:]))


if _backend.native is not None:
    _native = _backend.native
    _NATIVE_DTYPES = {torch.float32, torch.float64, torch.bfloat16}

    def _run_native(
        kernel: Any,
        data: Tensor,
        weights: Sequence[float],
        stride: int,
        start: int,
        length: int,
        factor: Tensor | None = None,
    ) -> Tensor:
        out = torch.empty((length, *data.shape[1:]), dtype=data.dtype)
        if out.numel():
            source = data.detach().contiguous()
            threads = torch.get_num_threads()
            kernel(source, out, list(weights), stride, start, factor, threads)
        return out

    @_project.register_kernel("cpu")
    def _project_native(
        x: Tensor, weights: Sequence[float], stride: int, start: int, count: int
    ) -> Tensor:
        if x.dtype not in _NATIVE_DTYPES:
            return reference.project(x, weights, stride, start, count)
        return _run_native(_native.axial_project, x, weights, stride, start, count)

    @_backproject.register_kernel("cpu")
    def _backproject_native(
        y: Tensor, weights: Sequence[float], stride: int, start: int, depth: int
    ) -> Tensor:
        if y.dtype not in _NATIVE_DTYPES:
            return reference.backproject(y, weights, stride, start, depth)
        return _run_native(_native.axial_backproject, y, weights, stride, start, depth)

    @_pseudo_inverse.register_kernel("cpu")
    def _pseudo_inverse_native(
        y: Tensor, weights: Sequence[float], stride: int, start: int, depth: int
    ) -> Tensor:
        if y.dtype not in _NATIVE_DTYPES:
            return reference.pseudo_inverse(y, weights, stride, start, depth)
        taps, factor = reference.solver(weights, stride, y.shape[0])
        return _run_native(_native.axial_backproject, y, taps, stride, start, depth, factor)

    @_pseudo_inverse_adjoint.register_kernel("cpu")
    def _pseudo_inverse_adjoint_native(
        x: Tensor, weights: Sequence[float], stride: int, start: int, count: int
    ) -> Tensor:
        if x.dtype not in _NATIVE_DTYPES:
            return reference.pseudo_inverse_adjoint(x, weights, stride, start, count)
        taps, factor = reference.solver(weights, stride, count)
        return _run_native(_native.axial_project, x, taps, stride, start, count, factor)


if _backend.triton_missing is None:

    @_project.register_kernel("cuda")
    def _project_triton(
        x: Tensor, weights: Sequence[float], stride: int, start: int, count: int
    ) -> Tensor:
        from .triton_kernel import project_triton

        with torch.cuda.device(x.device):
            return project_triton(x, weights, stride, start, count)

    @_backproject.register_kernel("cuda")
    def _backproject_triton(
        y: Tensor, weights: Sequence[float], stride: int, start: int, depth: int
    ) -> Tensor:
        from .triton_kernel import backproject_triton

        with torch.cuda.device(y.device):
            return backproject_triton(y, weights, stride, start, depth)

    @_pseudo_inverse.register_kernel("cuda")
    def _pseudo_inverse_triton(
        y: Tensor, weights: Sequence[float], stride: int, start: int, depth: int
    ) -> Tensor:
        from .triton_kernel import pseudo_inverse_triton

        with torch.cuda.device(y.device):
            return pseudo_inverse_triton(y, weights, stride, start, depth)

    @_pseudo_inverse_adjoint.register_kernel("cuda")
    def _pseudo_inverse_adjoint_triton(
        x: Tensor, weights: Sequence[float], stride: int, start: int, count: int
    ) -> Tensor:
        from .triton_kernel import pseudo_inverse_adjoint_triton

        with torch.cuda.device(x.device):
            return pseudo_inverse_adjoint_triton(x, weights, stride, start, count)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    data, weights, stride, start, _ = inputs
    ctx.geometry = (weights, stride, start, data.shape[0])


def _register_transpose(forward: Any, transpose: Any) -> None:
    """Linear operators that are each other's transpose are each other's backward pass."""
    for op, other in ((forward, transpose), (transpose, forward)):

        def backward(ctx: Any, grad: Tensor, other: Any = other) -> tuple[Any, ...]:
            return other(grad, *ctx.geometry), None, None, None, None

        op.register_autograd(backward, setup_context=_setup)


_register_transpose(_project, _backproject)
_register_transpose(_pseudo_inverse, _pseudo_inverse_adjoint)
