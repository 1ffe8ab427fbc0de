"""Centrelines: smooth random walks and Hermite edges, all curves of a phantom at once."""

from __future__ import annotations

import numpy as np

from microdiffusion_fast.simulation.geometry import unit_vectors
from microdiffusion_fast.simulation.raster import Floats, Ints


def wander(
    start: Floats,
    direction: Floats,
    length: float,
    *,
    step: float,
    persistence: float,
    tortuosity: float,
    rng: np.random.Generator,
) -> Floats:
    """Smooth random walks [P, n, 3] from `start` [P, 3] along `direction` [P, 3].

    The heading is the start direction plus a slowly varying deviation that forgets itself over
    `persistence` voxels; `tortuosity` is its size (0 straight, 0.3 gentle, above 1 curled).
    """
    count, n = len(start), max(2, int(length / step) + 1)
    knots = max(2, int(np.ceil(length / persistence)) + 2)
    deviation = np.zeros((count, knots, 3))
    noise = rng.standard_normal((count, knots, 3)) * tortuosity
    for i in range(1, knots):
        deviation[:, i] = 0.7 * deviation[:, i - 1] + 0.7 * noise[:, i]
    place = np.arange(n) * step / persistence
    low = np.minimum(place.astype(np.int64), knots - 2)
    t = (place - low)[None, :, None]
    t = t * t * (3 - 2 * t)  # smoothstep: no kinks at the knots
    heading = deviation[:, low] * (1 - t) + deviation[:, low + 1] * t + direction[:, None, :]
    heading /= np.maximum(np.linalg.norm(heading, axis=2, keepdims=True), 1e-6)
    steps = heading * step
    return np.asarray(start[:, None, :] + np.cumsum(steps, axis=1) - steps)


def edge_curves(
    a: Floats,
    b: Floats,
    tangent_a: Floats,
    tangent_b: Floats,
    radius_a: Floats,
    radius_b: Floats,
    *,
    tortuosity: float,
    rng: np.random.Generator,
) -> tuple[Floats, Floats, Ints, Floats]:
    """Sample Hermite curves between nodes `a` and `b` [E, 3], bent by random sine modes.

    Returns points [n, 3], radius [n], the edge of each point [n] and its place in it [n] (0..1).
    Points lie closer than the tube is wide, so that stamped balls join to a smooth tube.
    """
    chord = np.linalg.norm(b - a, axis=1)
    spacing = 0.3 * np.minimum(radius_a, radius_b) + 0.3
    samples = np.maximum(2, np.ceil(chord * (1.1 + tortuosity) / spacing)).astype(np.int64)
    edge = np.repeat(np.arange(len(a)), samples)
    first = np.repeat(np.cumsum(samples) - samples, samples)
    t = (np.arange(edge.size) - first) / (samples[edge] - 1)
    t2, t3 = t * t, t * t * t
    span = chord[edge][:, None]
    points = (
        (2 * t3 - 3 * t2 + 1)[:, None] * a[edge]
        + (t3 - 2 * t2 + t)[:, None] * tangent_a[edge] * span
        + (3 * t2 - 2 * t3)[:, None] * b[edge]
        + (t3 - t2)[:, None] * tangent_b[edge] * span
    )
    hold = np.sin(np.pi * t)  # no displacement and no kink at the ends
    for mode in range(1, 6):
        size = tortuosity * chord * rng.normal(size=len(a)) / mode**1.5
        bend = unit_vectors(len(a), rng) * size[:, None]
        points = points + (hold * np.sin(np.pi * mode * t))[:, None] * bend[edge]
    radius = radius_a[edge] * (1 - t) + radius_b[edge] * t
    return points, radius, edge, t


def along_variation(edge: Ints, t: Floats, size: float, rng: np.random.Generator) -> Floats:
    """Smooth random factor [n] around 1 along each edge, of relative deviation `size`."""
    total = int(edge.max()) + 1 if edge.size else 0
    out = np.zeros(edge.size)
    for mode in range(1, 4):
        weight = rng.normal(size=total) / mode
        out += weight[edge] * np.sin(np.pi * mode * t)  # 1 at the ends: edges join smoothly
    return np.asarray(np.exp(size * out))
