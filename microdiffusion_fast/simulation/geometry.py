"""Random directions and rotations, and points that keep their distance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from microdiffusion_fast.simulation.raster import Floats, Ints


def random_rotations(count: int, rng: np.random.Generator) -> Floats:
    """Uniformly distributed rotations [count, 3, 3] (from random unit quaternions)."""
    q = rng.standard_normal((count, 4))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    w, x, y, z = q.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def unit_vectors(count: int, rng: np.random.Generator) -> Floats:
    """Directions [count, 3], uniform on the sphere."""
    v = rng.standard_normal((count, 3))
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9))


def scattered_points(
    extent: Floats | Sequence[float], distance: float, rng: np.random.Generator, *, rounds: int = 3
) -> Floats:
    """Random points [n, 3] in the box [0, extent) no closer to each other than `distance`.

    Dart throwing for all cells of a grid at once: a cell holds at most one point, a new point
    must be clear of the accepted ones and beats its rivals by a random priority.
    """
    cell = distance / math.sqrt(3.0)
    grid = np.maximum(1, np.ceil(np.asarray(extent) / cell)).astype(np.int64)
    pad = grid + 4
    steps = np.array([pad[1] * pad[2], pad[2], 1])
    corner = np.indices(tuple(grid.tolist())).reshape(3, -1).T
    cells = (corner + 2) @ steps
    around = np.indices((5, 5, 5)).reshape(3, -1).T - 2
    near = np.abs(around).sum(axis=1)
    around = around[np.argsort(near, kind="stable")]  # nearest first: most rivals are found early
    shifts = (around[1:-8] @ steps).tolist()  # not the cell itself, not the corners: out of reach
    points = np.zeros((0, 3), dtype=np.float64)
    owner = np.full(int(pad.prod()), -1, dtype=np.int64)  # which accepted point a cell holds
    rival = np.full(int(pad.prod()), -1, dtype=np.int64)  # which candidate of this round
    for _ in range(rounds):
        free = owner[cells] < 0
        where = cells[free]
        mine = (corner[free] + rng.random((len(where), 3))) * cell
        mine, where = _clear(mine, where, points, owner, shifts, distance)
        # candidates come in random order, and of two that are too close the first stays
        order = rng.permutation(len(where))
        mine, where = mine[order], where[order]
        rival[where] = np.arange(len(where))
        mine, where = _clear(mine, where, mine, rival, shifts, distance, earlier=True)
        rival[:] = -1
        owner[where] = len(points) + np.arange(len(where))
        points = np.concatenate([points, mine])
    return points[np.all(points < np.asarray(extent), axis=1)]


def _clear(
    mine: Floats,
    where: Ints,
    others: Floats,
    owner: Ints,
    shifts: Sequence[int],
    distance: float,
    *,
    earlier: bool = False,
) -> tuple[Floats, Ints]:
    """Keep the points that no other point, found through the cells' `owner`, comes close to."""
    rank = np.arange(len(where))
    for shift in shifts:
        number = owner[where + shift]
        rows = np.flatnonzero((number >= 0) & (number < rank) if earlier else number >= 0)
        gap = others[number[rows]] - mine[rows]
        close = rows[np.einsum("ij,ij->i", gap, gap) < distance**2]
        if close.size:
            good = np.ones(len(where), dtype=bool)
            good[close] = False
            mine, where, rank = mine[good], where[good], rank[good]
    return mine, where
