"""Axial operators for CUDA: a program makes a block of columns of one output row.

A and A^T read their input once (what overlapping windows share stays in the L2 cache) and write
once. The banded solve of overlapping windows marches along k in float64, a program a block of
columns. Weights and factor lie in small device tables, made once per geometry and device: the first
call with a geometry has to come before a CUDA graph is captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import constant
from . import reference

BLOCK = 1024
SOLVE_BLOCK = 128
WARPS = 4
_OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}


@triton.jit
def _widened(values, dtype: tl.constexpr):
    """The values in the kernel's arithmetic, by way of float32 where their format is narrower."""
    if values.dtype == tl.float64:
        return values
    return values.to(tl.float32).to(dtype)


@triton.jit
def _rounded(values, dtype: tl.constexpr):
    if dtype == tl.float64:
        return values
    return values.to(tl.float32).to(dtype)


@triton.jit
def _project_kernel(
    x_ptr,
    y_ptr,
    weights_ptr,
    columns: tl.int64,
    blocks: tl.int64,
    stride: tl.int64,
    start: tl.int64,
    TAPS: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    program = tl.program_id(0).to(tl.int64)
    k = program // blocks
    column = program % blocks * BLOCK + tl.arange(0, BLOCK)
    valid = column < columns
    x_ptr += (start + k * stride) * columns
    total = tl.zeros([BLOCK], dtype)
    for tap in range(TAPS):
        weight = tl.load(weights_ptr + tap).to(dtype)
        if weight != 0.0:
            values = tl.load(x_ptr + column, mask=valid, other=0)
            total += weight * _widened(values, dtype)
        x_ptr += columns
    tl.store(y_ptr + k * columns + column, _rounded(total, y_ptr.dtype.element_ty), mask=valid)


@triton.jit
def _backproject_kernel(
    y_ptr,
    x_ptr,
    weights_ptr,
    columns: tl.int64,
    blocks: tl.int64,
    stride: tl.int64,
    start: tl.int64,
    count: tl.int64,
    TAPS: tl.constexpr,
    OVERLAP: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    program = tl.program_id(0).to(tl.int64)
    z = program // blocks
    column = program % blocks * BLOCK + tl.arange(0, BLOCK)
    valid = column < columns
    total = tl.zeros([BLOCK], dtype)
    # The windows that may cover slice z, the last one first: at most OVERLAP.
    last = tl.minimum(tl.maximum(z - start, 0) // stride, count - 1)
    for back in range(OVERLAP):
        k = last - back
        tap = z - start - k * stride
        covers = (k >= 0) & (tap >= 0) & (tap < TAPS)
        weight = tl.load(weights_ptr + tap, mask=covers, other=0.0).to(dtype)
        if weight != 0.0:
            values = tl.load(y_ptr + k * columns + column, mask=valid, other=0)
            total += weight * _widened(values, dtype)
    tl.store(x_ptr + z * columns + column, _rounded(total, x_ptr.dtype.element_ty), mask=valid)


@triton.jit
def _solve_kernel(
    z_ptr, factor_ptr, columns: tl.int64, count: tl.int64, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    """L L^T z = z in place; row k of the factor holds L[k, k], L[k, k - 1], ..., L[k, k - HALF]."""
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = column < columns
    z_ptr += column
    k = 0 * count
    while k < count:
        value = tl.load(z_ptr + k * columns, mask=valid, other=0.0)
        for d in range(1, HALF + 1):
            entry = tl.load(factor_ptr + k * (HALF + 1) + d, mask=k >= d, other=0.0)
            # Entries outside the factor are zero: any row does there.
            above = tl.maximum(k - d, 0)
            value -= entry * tl.load(z_ptr + above * columns, mask=valid, other=0.0)
        value /= tl.load(factor_ptr + k * (HALF + 1))
        tl.store(z_ptr + k * columns, value, mask=valid)
        tl.debug_barrier()  # The next rows read this one.
        k += 1
    k -= 1
    while k >= 0:
        value = tl.load(z_ptr + k * columns, mask=valid, other=0.0)
        for d in range(1, HALF + 1):
            below = tl.minimum(k + d, count - 1)
            entry = tl.load(factor_ptr + (k + d) * (HALF + 1) + d, mask=k + d < count, other=0.0)
            value -= entry * tl.load(z_ptr + below * columns, mask=valid, other=0.0)
        value /= tl.load(factor_ptr + k * (HALF + 1))
        tl.store(z_ptr + k * columns, value, mask=valid)
        tl.debug_barrier()
        k -= 1


@cache  # a captured graph reads it: never freed
def _solver(
    weights: tuple[float, ...], stride: int, count: int, device: torch.device
) -> tuple[list[float], Tensor | None]:
    taps, factor = reference.solver(weights, stride, count)
    return taps, None if factor is None else factor.to(device)


def project_triton(
    x: Tensor,
    weights: Sequence[float],
    stride: int,
    start: int,
    count: int,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`A x` [K, Y, X] in `dtype`, default that of `x`; float64 is accumulated in itself."""
    x = x.contiguous()
    y = x.new_empty((count, *x.shape[1:]), dtype=dtype)
    columns = y[0].numel()
    blocks = triton.cdiv(columns, BLOCK)
    if blocks:
        _project_kernel[(blocks * count,)](
            x,
            y,
            constant(tuple(weights), torch.float64, x.device),
            columns,
            blocks,
            stride,
            start,
            TAPS=len(weights),
            DOUBLE=y.dtype == torch.float64,
            BLOCK=BLOCK,
            **_OPTIONS,
        )
    return y


def backproject_triton(
    y: Tensor,
    weights: Sequence[float],
    stride: int,
    start: int,
    depth: int,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`A^T y` [Z, Y, X] in `dtype`, default that of `y`; float64 is accumulated in itself."""
    y = y.contiguous()
    x = y.new_empty((depth, *y.shape[1:]), dtype=dtype)
    columns = y[0].numel()
    blocks = triton.cdiv(columns, BLOCK)
    if blocks:
        _backproject_kernel[(blocks * depth,)](
            y,
            x,
            constant(tuple(weights), torch.float64, y.device),
            columns,
            blocks,
            stride,
            start,
            y.shape[0],
            TAPS=len(weights),
            OVERLAP=triton.cdiv(len(weights), stride),
            DOUBLE=y.dtype == torch.float64,
            BLOCK=BLOCK,
            **_OPTIONS,
        )
    return x


def pseudo_inverse_triton(
    y: Tensor, weights: Sequence[float], stride: int, start: int, depth: int
) -> Tensor:
    """`A^+ y` [Z, Y, X] in the dtype of `y`."""
    taps, factor = _solver(tuple(weights), stride, y.shape[0], y.device)
    if factor is None:
        return backproject_triton(y, taps, stride, start, depth)
    work = y.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    _solve(work, factor)
    return backproject_triton(work, taps, stride, start, depth, dtype=y.dtype)


def pseudo_inverse_adjoint_triton(
    x: Tensor, weights: Sequence[float], stride: int, start: int, count: int
) -> Tensor:
    """The adjoint of A^+ applied to `x`, [K, Y, X] in its dtype."""
    taps, factor = _solver(tuple(weights), stride, count, x.device)
    if factor is None:
        return project_triton(x, taps, stride, start, count)
    work = project_triton(x, taps, stride, start, count, dtype=torch.float64)
    _solve(work, factor)
    return work.to(x.dtype)


def _solve(z: Tensor, factor: Tensor) -> None:
    """`(A A^T)^-1 z` of float64 projections z [K, Y, X], contiguous, in place."""
    columns = z[0].numel()
    if columns:
        _solve_kernel[(triton.cdiv(columns, SOLVE_BLOCK),)](
            z,
            factor,
            columns,
            z.shape[0],
            HALF=factor.shape[1] - 1,
            BLOCK=SOLVE_BLOCK,
            **_OPTIONS,
        )
