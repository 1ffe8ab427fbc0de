"""Smooth fields and Gaussian blurs of volumes, separable, in float32.

No matrix products: those of a BLAS change in the last bit with the number of threads, and one bit
before a Poisson draw changes every number after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from microdiffusion_fast.simulation.raster import Array, Floats, Shape


def _on_axis(axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if a == axis else slice(None) for a in range(3))


def _convolve(volume: Array, sigma: float, axis: int) -> Array:
    """Gaussian along one axis, mirrored at the ends."""
    radius = max(1, math.ceil(4 * sigma))
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    taps /= taps[0] + 2 * taps[1:].sum()
    pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
    wide = np.pad(volume, pad, mode="symmetric")
    n = volume.shape[axis]
    out = volume * np.float32(taps[0])
    pair = np.empty_like(out)
    for k in range(1, radius + 1):
        low, high = radius - k, radius + k
        before, after = (
            wide[_on_axis(axis, slice(low, low + n))],
            wide[_on_axis(axis, slice(high, high + n))],
        )
        np.add(before, after, out=pair)
        pair *= np.float32(taps[k])
        out += pair
    return out


def _spline(offset: Floats) -> tuple[Floats, Floats, Floats]:
    """Quadratic B-spline weights of the samples before, at and after a place."""
    return 0.5 * (0.5 - offset) ** 2, 0.75 - offset**2, 0.5 * (0.5 + offset) ** 2


def _pool(volume: Array, factor: int, axis: int) -> Array:
    """Shrink an axis by the adjoint of `_stretch`: light keeps its place, as in no box mean."""
    pad = [(0, -n % factor) if a == axis else (0, 0) for a, n in enumerate(volume.shape)]
    full = np.moveaxis(np.pad(volume, pad, mode="symmetric"), axis, 0)
    blocks = full.reshape(-1, factor, *full.shape[1:])
    parts = []
    for weight in _spline((np.arange(factor) + 0.5) / factor - 0.5):
        column = (weight / factor).astype(np.float32)[:, None, None]
        parts.append((blocks * column).sum(axis=1, dtype=np.float32))
    before, out, after = parts
    out[:-1] += before[1:]
    out[0] += before[0]
    out[1:] += after[:-1]
    out[-1] += after[-1]
    return np.ascontiguousarray(np.moveaxis(out, 0, axis))


def _stretch(volume: Array, size: int, position: Floats, axis: int) -> Array:
    """Quadratic B-spline values of `volume` at `position` [size] along an axis, mirrored."""
    n = volume.shape[axis]
    middle = np.rint(position).astype(np.int64)
    weights = _spline(position - middle)
    across = [-1 if a == axis else 1 for a in range(3)]
    total = np.zeros([size if a == axis else m for a, m in enumerate(volume.shape)], np.float32)
    for step, weight in zip((-1, 0, 1), weights, strict=True):
        index = (middle + step) % (2 * n)
        index = np.where(index < n, index, 2 * n - 1 - index)
        total += volume.take(index, axis) * weight.astype(np.float32).reshape(across)
    return total


def gaussian_blur(volume: Array, sigma: Sequence[float]) -> Array:
    """Separable Gaussian blur of a volume [Z, Y, X]; `sigma` (z, y, x) in voxels.

    Beyond 3 voxels an axis is pooled, blurred and stretched again: the variance stays exact, the
    shape is Gaussian to about a percent, and the time no longer grows with `sigma`.
    """
    out = np.asarray(volume, dtype=np.float32)
    factors = [
        max(1, min(int(s / 1.5), n // 4)) if s > 3 else 1
        for s, n in zip(sigma, out.shape, strict=True)
    ]
    for axis, f in enumerate(factors):
        if f > 1:
            out = _pool(out, f, axis)
    for axis, (s, f) in enumerate(zip(sigma, factors, strict=True)):
        # what pooling and the spline will have added (in voxels squared) is taken off here
        extra = f * f / 2 if f > 1 else 0.0
        if s > 0:
            out = _convolve(out, math.sqrt(max(s * s - extra, 1e-4)) / f, axis)
    for axis in (2, 1, 0):
        n, f = volume.shape[axis], factors[axis]
        if f > 1:
            out = _stretch(out, n, (np.arange(n) + 0.5) / f - 0.5, axis)
    return out


def smooth_field(shape: Shape, scale: float | Sequence[float], rng: np.random.Generator) -> Array:
    """Smooth random field [Z, Y, X], mean 0, deviation about 1, varying over `scale` voxels."""
    scales = (scale,) * 3 if isinstance(scale, int | float) else tuple(scale)
    if max(scales) < 8.0:  # fine: filter white noise, a coarse lattice would show
        field = rng.standard_normal(shape, dtype=np.float32)
        field = gaussian_blur(field, [0.5 * s for s in scales])
        return np.asarray(field / max(float(field.std()), 1e-6), dtype=np.float32)
    coarse = [math.ceil(n / max(s, 1.0)) + 3 for n, s in zip(shape, scales, strict=True)]
    field = rng.standard_normal(coarse, dtype=np.float32)
    for axis in (2, 1, 0):
        n, c = shape[axis], coarse[axis]
        position = np.arange(n) * ((c - 3) / n) + 1 + rng.uniform(0, 0.999)
        field = _stretch(field, n, position, axis)
    # the deviation of a few knots is a matter of luck: never blow up a nearly flat one
    return np.asarray(field / max(float(field.std()), 0.15), dtype=np.float32)
