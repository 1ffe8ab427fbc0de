"""Drawing in voxels: antialiased balls and ellipsoids.

Everything here is numpy in float32 on local boxes; no loop runs over voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Shape = tuple[int, int, int]

_CHUNK = 1 << 21  # box elements handled at once: bounds the temporaries to some 50 MB


def _scatter_max(out: Array, base: Ints, reach: Sequence[int], values: Array) -> None:
    """Write `values` [n, bz, by, bx], boxes centred on `base` [n, 3], into `out` by maximum."""
    index = np.zeros((1, 1, 1, 1), dtype=np.int64)
    keep = values > 1e-3
    stride = (out.shape[1] * out.shape[2], out.shape[2], 1)
    for axis in range(3):
        place = base[:, axis, None] + np.arange(-reach[axis], reach[axis] + 1)
        inside = (place >= 0) & (place < out.shape[axis])
        expand = [slice(None), None, None, None]
        expand[axis + 1] = slice(None)
        index = index + (place * stride[axis])[tuple(expand)]
        keep &= inside[tuple(expand)]
    np.maximum.at(out.reshape(-1), index[keep], values[keep])


def stamp_balls(
    out: Array,
    points: Floats,
    radius: Floats,
    amplitude: Floats,
    *,
    aspect: float = 1.0,
) -> None:
    """Draw antialiased balls into `out` [Z, Y, X] in place, joined by maximum.

    `points` [n, 3] and `radius` [n] are in lateral voxels from the centre of voxel 0; a slice is
    `aspect` lateral voxels thick. Balls smaller than a voxel fade instead of vanishing.
    """
    centre = points / np.array([aspect, 1.0, 1.0])
    base = np.rint(centre).astype(np.int64)
    fraction = (centre - base).astype(np.float32)
    # a ball narrower than a voxel fills only a part of it
    level = (amplitude * np.minimum(1.0, (radius / 0.7) ** 2)).astype(np.float32)
    solid = np.maximum(radius, 0.35).astype(np.float32)
    reach = np.ceil(solid + 0.5).astype(np.int64)
    near = np.all((base + reach[:, None] >= 0) & (base - reach[:, None] < out.shape), axis=1)
    for h in np.unique(reach[near]).tolist():
        chosen = np.flatnonzero(near & (reach == h))
        reaches = (math.ceil(h / aspect), h, h)
        box = math.prod(2 * r + 1 for r in reaches)
        for lo in range(0, chosen.size, max(1, _CHUNK // box)):
            part = chosen[lo : lo + max(1, _CHUNK // box)]
            squares = []
            for axis, scale in enumerate((aspect, 1.0, 1.0)):
                step = np.arange(-reaches[axis], reaches[axis] + 1, dtype=np.float32)
                squares.append(((step - fraction[part, axis, None]) * np.float32(scale)) ** 2)
            values = squares[0][:, :, None, None] + squares[1][:, None, :, None]
            values = values + squares[2][:, None, None, :]
            np.sqrt(values, out=values)
            np.subtract(solid[part, None, None, None] + np.float32(0.5), values, out=values)
            np.clip(values, 0, 1, out=values)
            values *= level[part, None, None, None]
            _scatter_max(out, base[part], reaches, values)


def stamp_ellipsoids(
    out: Array,
    centres: Floats,
    axes: Floats,
    rotations: Floats,
    amplitude: Floats,
    *,
    rim: float = 0.0,
    aspect: float = 1.0,
) -> None:
    """Draw antialiased ellipsoids into `out` [Z, Y, X] in place, joined by maximum.

    `axes` [n, 3] are half-axes in lateral voxels, `rotations` [n, 3, 3] their directions (rows);
    `rim` > 0 darkens the middle, < 0 the edge.
    """
    place = centres / np.array([aspect, 1.0, 1.0])
    base = np.rint(place).astype(np.int64)
    fraction = place - base
    reach = np.ceil(axes.max(axis=1) + 0.5).astype(np.int64)
    near = np.all((base + reach[:, None] >= 0) & (base - reach[:, None] < out.shape), axis=1)
    unit = (rotations / axes[:, :, None]).astype(np.float32)
    mean = np.cbrt(axes.prod(axis=1)).astype(np.float32)
    for h in np.unique(reach[near]).tolist():
        chosen = np.flatnonzero(near & (reach == h))
        reaches = (math.ceil(h / aspect), h, h)
        box = math.prod(2 * r + 1 for r in reaches)
        for lo in range(0, chosen.size, max(1, _CHUNK // box)):
            part = chosen[lo : lo + max(1, _CHUNK // box)]
            steps = [
                ((np.arange(-r, r + 1) - fraction[part, a, None]) * s).astype(np.float32)
                for a, (r, s) in enumerate(zip(reaches, (aspect, 1.0, 1.0), strict=True))
            ]
            rho = np.zeros((1, 1, 1, 1), dtype=np.float32)
            for row in range(3):
                u = unit[part, row]
                along = (u[:, 0, None] * steps[0])[:, :, None, None]
                along = along + (u[:, 1, None] * steps[1])[:, None, :, None]
                along = along + (u[:, 2, None] * steps[2])[:, None, None, :]
                rho = rho + along**2
            depth = 1 - np.sqrt(rho)  # 1 in the centre, 0 on the surface
            size = mean[part, None, None, None]
            values = np.clip(depth * size + np.float32(0.5), 0, 1)
            if rim:
                values *= 1 - np.float32(rim) * np.clip(depth, 0, 1)
            values *= amplitude[part, None, None, None].astype(np.float32)
            _scatter_max(out, base[part], reaches, values.astype(np.float32))
