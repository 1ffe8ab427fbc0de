"""Axial projection, its adjoint and its pseudo-inverse, column by column, in plain torch.

`(A x)[k] = sum_i w[i] x[start + k*stride + i]`. Every column `(y, x)` sees the same small matrix,
so the loops run over the `s` taps and each step is one strided pass over all columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

MAX_CONDITION = 1e10
"""Condition number of `A A^T` beyond which the pseudo-inverse is damped instead of exact."""

_CONDITION_WINDOWS = 512


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Accumulate half precision in float32, everything else in itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _taps(tap: int, stride: int, start: int, count: int) -> slice:
    """The slices that tap `tap` of every window reads."""
    first = start + tap
    return slice(first, first + (count - 1) * stride + 1, stride)


def _is_disjoint_mean(weights: Sequence[float], stride: int) -> bool:
    return stride == len(weights) and all(w == weights[0] for w in weights)


def project(x: Tensor, weights: Sequence[float], stride: int, start: int, count: int) -> Tensor:
    """`A x`: weighted means of windows along z. [Z, Y, X] -> [K, Y, X].

    Source: MicroDiffusion (arXiv 2403.10815), section 3.
    """
    dtype = compute_dtype(x.dtype)
    if _is_disjoint_mean(weights, stride):
        slabs = x[start : start + count * stride].unflatten(0, (count, stride))
        return (slabs.sum(1, dtype=dtype) * weights[0]).to(x.dtype)
    y = torch.zeros((count, *x.shape[1:]), dtype=dtype, device=x.device)
    for tap, weight in enumerate(weights):
        if weight:
            y.add_(x[_taps(tap, stride, start, count)], alpha=weight)
    return y.to(x.dtype)


def backproject(y: Tensor, weights: Sequence[float], stride: int, start: int, depth: int) -> Tensor:
    """`A^T y`: every projection spread over its window by the weights. [K, Y, X] -> [Z, Y, X]."""
    x = torch.zeros((depth, *y.shape[1:]), dtype=compute_dtype(y.dtype), device=y.device)
    for tap, weight in enumerate(weights):
        if weight:
            x[_taps(tap, stride, start, y.shape[0])].add_(y, alpha=weight)
    return x.to(y.dtype)


def gram_band(weights: Sequence[float], stride: int) -> tuple[float, ...]:
    """Diagonals 0, 1, ... of the banded Toeplitz `A A^T`: the weights times their shifts."""
    s = len(weights)
    band = [
        math.fsum(weights[i] * weights[i + lag] for i in range(s - lag))
        for lag in range(0, s, stride)
    ]
    while len(band) > 1 and band[-1] == 0.0:
        band.pop()
    return tuple(band)


def gram_condition(weights: Sequence[float], stride: int, count: int) -> float:
    """Condition number of `A A^T`.

    Disjoint windows and windows with gaps give 1. Windows that overlap evenly (`s` a multiple of
    `stride`) give about `K^2`, since their sums nearly cancel at some axial frequency; smooth
    weights at a small stride give astronomical numbers. Computed on at most 512 windows: a lower
    bound beyond that.
    """
    return _spectrum(gram_band(weights, stride), min(count, _CONDITION_WINDOWS))[1]


@lru_cache(maxsize=64)
def _spectrum(band: tuple[float, ...], count: int) -> tuple[float, float]:
    """Largest eigenvalue and condition number of the Toeplitz matrix."""
    if len(band) == 1 or count == 1:
        return band[0], 1.0
    gram = torch.zeros(count, count, dtype=torch.float64)
    for lag, value in enumerate(band[:count]):
        gram.diagonal(lag).fill_(value)
        gram.diagonal(-lag).fill_(value)
    values = torch.linalg.eigvalsh(gram)
    smallest, largest = float(values[0]), float(values[-1])
    return largest, largest / smallest if smallest > 0.0 else math.inf


@lru_cache(maxsize=64)
def cholesky_band(band: tuple[float, ...], count: int) -> Tensor:
    """Rows of the banded Cholesky factor L of `A A^T`, float64 [K, b + 1]: `[k, d]` is `L[k, k-d]`.

    Shifted copies of a nonzero weight vector are linearly independent, so `A A^T` is positive
    definite in exact arithmetic. Where its condition number exceeds `MAX_CONDITION`, the largest
    eigenvalue over `MAX_CONDITION` is added to the diagonal: a damped inverse, which amplifies
    noise no further than that but no longer reproduces the projections to rounding.
    """
    largest, condition = _spectrum(band, min(count, _CONDITION_WINDOWS))
    ridge = largest / MAX_CONDITION if condition > MAX_CONDITION else 0.0
    half = len(band) - 1
    rows: list[list[float]] = []
    for k in range(count):
        row = [0.0] * (half + 1)
        for d in range(min(half, k), -1, -1):
            value = band[d] + (ridge if d == 0 else 0.0)
            other = rows[k - d] if d else row
            for e in range(d + 1, min(half, k) + 1):
                value -= row[e] * other[e - d]
            row[d] = value / other[0] if d else math.sqrt(value)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def solver(weights: Sequence[float], stride: int, count: int) -> tuple[list[float], Tensor | None]:
    """What makes A^+ of A^T, for the kernels: weights divided by `A A^T` where that is a number, or
    the weights and the factor of the banded solve, see `cholesky_band`.
    """
    band = gram_band(weights, stride)
    if len(band) == 1 or count == 1:
        return [weight / band[0] for weight in weights], None
    return list(weights), cholesky_band(band, count)


def solve_gram(y: Tensor, weights: Sequence[float], stride: int) -> Tensor:
    """`(A A^T)^-1 y`: a division for disjoint windows, two banded substitutions otherwise."""
    band = gram_band(weights, stride)
    count = y.shape[0]
    if len(band) == 1 or count == 1:
        return y / band[0]
    factor = cholesky_band(band, count)
    half = factor.shape[1] - 1
    diagonal = factor[:, 0].tolist()
    # Row k of the forward pass needs L[k, k-n..k-1]; row k of the backward pass needs L[k+1..k+n,
    # k].
    flipped = factor.flip(1).to(y.device)
    z = y.reshape(count, -1).clone()
    for k in range(count):
        n = min(half, k)
        if n:
            z[k] -= flipped[k, half - n : half] @ z[k - n : k]
        z[k] /= diagonal[k]
    lower = factor.to(y.device)
    for k in range(count - 1, -1, -1):
        n = min(half, count - 1 - k)
        if n:
            z[k] -= lower[k + 1 : k + n + 1, 1 : n + 1].diagonal() @ z[k + 1 : k + n + 1]
        z[k] /= diagonal[k]
    return z.reshape(y.shape)


def _solve_dtype(dtype: torch.dtype, weights: Sequence[float], stride: int) -> torch.dtype:
    """Overlap amplifies rounding by the condition number, so it is solved in float64."""
    return compute_dtype(dtype) if len(gram_band(weights, stride)) == 1 else torch.float64


def pseudo_inverse(
    y: Tensor, weights: Sequence[float], stride: int, start: int, depth: int
) -> Tensor:
    """`A^+ y = A^T (A A^T)^-1 y`: least norm among all x with A x = y. [K, Y, X] -> [Z, Y, X]."""
    work = y.to(_solve_dtype(y.dtype, weights, stride))
    return backproject(solve_gram(work, weights, stride), weights, stride, start, depth).to(y.dtype)


def pseudo_inverse_adjoint(
    x: Tensor, weights: Sequence[float], stride: int, start: int, count: int
) -> Tensor:
    """`(A^+)^T x = (A A^T)^-1 A x`, the backward pass of A^+. [Z, Y, X] -> [K, Y, X]."""
    work = x.to(_solve_dtype(x.dtype, weights, stride))
    return solve_gram(project(work, weights, stride, start, count), weights, stride).to(x.dtype)
