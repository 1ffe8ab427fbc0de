"""Axial projection A, adjoint A^T and pseudo-inverse A^+ as torch operators.

`axial_projection`, `axial_backprojection` and `axial_pseudo_inverse` check their arguments and call
the operators `microdiffusion_fast::axial_*`, whose default implementation is the reference. The
data's device decides which registered implementation runs. The weights travel as plain floats:
geometry never synchronises with a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _backend, checks
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
        x: Volume [Z, Y, X], float16, bfloat16, float32 or float64; half precision is accumulated in
            float32. Y or X may be 0.
        weights: Axial weights [s], shared by all windows.
        stride: Slices between window starts.
        start: First slice of the first window.
        count: Number of windows K.

    Returns:
        Projections [K, Y, X] in the dtype of `x`. Differentiable in `x`; the backward pass is
        `A^T`.

    Raises:
        ValueError: if `x` is not 3D, the windows do not fit into it, a number is out of range or
            the squares of the weights add up to no normal float64.
        TypeError: if `x` is no dense floating-point tensor, or a number or weight is of another
            kind.

    Examples:
        >>> x = torch.arange(6.0)[:, None, None]
        >>> axial_projection(x, [0.5, 0.5], stride=2, start=0, count=3).flatten().tolist()
        [0.5, 2.5, 4.5]

    Source: MicroDiffusion (arXiv 2403.10815), section 3.
    """
    checks.tensor("x", x, ndim=3, floating=True)
    taps, stride, start = _geometry(weights, stride, start)
    count = checks.integer("count", count, 1)
    _check_fit("x", x.shape[0], len(taps), stride, start, count)
    return _project(x, taps, stride, start, count)


def axial_backprojection(
    y: Tensor, weights: Tensor | Sequence[float], stride: int, start: int, depth: int
) -> Tensor:
    """Spread projections back over their windows: `A^T y`. [K, Y, X] -> [Z, Y, X].

    Slices that no window covers are zero. Differentiable in `y`; the backward pass is `A`.

    Raises:
        ValueError: if `y` is not 3D or holds no projection, the windows do not fit into `depth`
            slices, or as in `axial_projection`.
        TypeError: as in `axial_projection`.
    """
    return _backproject(y, *_spread_geometry(y, weights, stride, start, depth))


def axial_pseudo_inverse(
    y: Tensor, weights: Tensor | Sequence[float], stride: int, start: int, depth: int
) -> Tensor:
    """Volume of least norm that projects to `y`: `A^T (A A^T)^-1 y`. [K, Y, X] -> [Z, Y, X].

    Closed form per column for `stride >= s`; for overlapping windows a banded solve in float64,
    whose factor is made once per geometry. Exact while `gram_condition(...)` is at most 1e10,
    damped beyond (see `reference.cholesky_band`).

    Raises:
        ValueError: if `y` is not 3D or holds no projection, the windows do not fit into `depth`
            slices, or as in `axial_projection`.
        TypeError: as in `axial_projection`.
    """
    return _pseudo_inverse(y, *_spread_geometry(y, weights, stride, start, depth))


def _geometry(
    weights: Tensor | Sequence[float], stride: int, start: int
) -> tuple[list[float], int, int]:
    taps = checks.taps("weights", weights)
    return taps, checks.integer("stride", stride, 1), checks.integer("start", start)


def _spread_geometry(
    y: Tensor, weights: Tensor | Sequence[float], stride: int, start: int, depth: int
) -> tuple[list[float], int, int, int]:
    """What the operators from [K, Y, X] to [Z, Y, X] ask of their arguments."""
    count, height, width = checks.tensor("y", y, ndim=3, floating=True).shape
    if count == 0:
        raise ValueError(f"y: expected at least 1 projection, got shape {list(y.shape)}")
    taps, stride, start = _geometry(weights, stride, start)
    depth = checks.integer("depth", depth, 1)
    _check_fit("depth", depth, len(taps), stride, start, count)
    # Room for float64, whatever the dtype.
    if depth * height * width >= 1 << 60:
        raise ValueError(f"depth: expected fewer than 2^60 voxels in all, got {depth}")
    return taps, stride, start, depth


def _check_fit(name: str, depth: int, s: int, stride: int, start: int, count: int) -> None:
    end = start + (count - 1) * stride + s
    if end > depth:
        raise ValueError(f"{name}: expected at least {end} slices for {count} windows, got {depth}")


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

    def _register_triton(op: Any, launcher: str) -> None:
        @op.register_kernel("cuda")
        def run(data: Tensor, *geometry: Any) -> Tensor:
            from . import triton_kernel

            with torch.cuda.device(data.device):
                return getattr(triton_kernel, launcher)(data, *geometry)

    _register_triton(_project, "project_triton")
    _register_triton(_backproject, "backproject_triton")
    _register_triton(_pseudo_inverse, "pseudo_inverse_triton")
    _register_triton(_pseudo_inverse_adjoint, "pseudo_inverse_adjoint_triton")


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
