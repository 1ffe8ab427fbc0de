"""Blood vessels: trunks that branch by Murray's law, joined to a capillary mesh with loops."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from microdiffusion_fast.simulation.curves import along_variation, edge_curves
from microdiffusion_fast.simulation.geometry import scattered_points, unit_vectors
from microdiffusion_fast.simulation.raster import (
    Array,
    Floats,
    Ints,
    Shape,
    stamp_balls,
)


@dataclass(frozen=True, kw_only=True)
class Vessels:
    """How a vessel phantom looks; lengths in lateral voxels.

    Source: Murray 1926 (parent r^3 = sum of the children's r^3).
    """

    trunks: int = 2
    trunk_radius: tuple[float, float] = (2.5, 5.0)
    capillary_radius: tuple[float, float] = (0.8, 1.5)
    spacing: float = 24.0
    branching: float = 0.45
    tortuosity: float = 0.12
    missing: float = 0.15
    hollow: float = 0.0
    wall: float = 1.0
    variation: float = 0.15
    brightness_power: float = 0.3
    preference: float = 0.0
    aspect: float = 1.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Vessels:
        """Draw plausible parameters over a wide range."""
        thin = rng.uniform(0.5, 1.4)
        thick = thin * rng.uniform(1.5, 3.0)
        return cls(
            trunks=int(rng.integers(0, 5)),
            trunk_radius=(thick, min(8.0, thick * rng.uniform(1.1, 2.5))),
            capillary_radius=(thin, thin * rng.uniform(1.1, 1.9)),
            spacing=float(np.exp(rng.uniform(math.log(15), math.log(55)))),
            branching=rng.uniform(0.2, 0.7),
            tortuosity=float(rng.choice([0.04, 0.1, 0.18, 0.3])) * rng.uniform(0.6, 1.4),
            missing=rng.uniform(0.0, 0.4),
            hollow=float(rng.uniform(0.5, 1.0)) if rng.random() < 0.2 else 0.0,
            wall=rng.uniform(0.7, 1.6),
            variation=rng.uniform(0.02, 0.45),
            brightness_power=rng.uniform(-0.4, 1.2),
            preference=rng.uniform(0.5, 3.0) if rng.random() < 0.4 else 0.0,
        )

    def render(self, shape: Shape, rng: np.random.Generator) -> Array:
        """Draw the vessels into a volume [Z, Y, X] of values from 0 to 1."""
        extent = np.array([shape[0] * self.aspect, shape[1], shape[2]])
        margin = min(12.0, self.spacing)
        junctions = scattered_points(extent + 2 * margin, 0.75 * self.spacing, rng) - margin
        favoured = unit_vectors(1, rng)[0]
        edges = _mesh(junctions, self.spacing, self.preference, favoured, rng)
        edges = edges[rng.random(len(edges)) >= self.missing]
        edges = _prune(edges, junctions, extent)
        used = junctions[np.unique(edges)]
        tree = _grow(self, extent, margin, used, rng)
        ta, tb = _tangents(junctions, edges)
        thin = rng.uniform(*self.capillary_radius, len(junctions))
        one, two = edges[:, 0], edges[:, 1]
        start = np.concatenate([junctions[one], tree[:, 0:3]])
        end = np.concatenate([junctions[two], tree[:, 3:6]])
        heading_a = np.concatenate([ta, tree[:, 6:9]])
        heading_b = np.concatenate([tb, tree[:, 9:12]])
        ra = np.concatenate([thin[one], tree[:, 12]])
        rb = np.concatenate([thin[two], tree[:, 13]])
        shine = np.exp(self.variation * rng.normal(size=len(junctions)))
        bright_a = np.concatenate([shine[one], np.ones(len(tree))])
        bright_b = np.concatenate([shine[two], np.ones(len(tree))])
        out = np.zeros(shape, dtype=np.float32)
        if not len(start):
            return out
        points, radius, edge, t = edge_curves(
            start, end, heading_a, heading_b, ra, rb, tortuosity=self.tortuosity, rng=rng
        )
        radius = radius * along_variation(edge, t, 0.25 * self.variation, rng)
        level = (radius / radius.max()) ** self.brightness_power
        level = level * (bright_a[edge] * (1 - t) + bright_b[edge] * t)
        level = level * along_variation(edge, t, 0.7 * self.variation, rng)
        level = level / np.quantile(level, 0.98)
        stamp_balls(out, points, radius, np.clip(level, 0.02, 1.0), aspect=self.aspect)
        if self.hollow:
            lumen = np.zeros_like(out)
            wide = radius > self.wall + 0.5
            stamp_balls(
                lumen,
                points[wide],
                radius[wide] - self.wall,
                np.ones(int(wide.sum())),
                aspect=self.aspect,
            )
            out *= 1 - self.hollow * lumen
        return np.clip(out, 0, 1)


def _mesh(
    nodes: Floats, spacing: float, preference: float, favoured: Floats, rng: np.random.Generator
) -> Ints:
    """Join near nodes, shortest first, three edges a node at most: a capillary bed with loops."""
    if len(nodes) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    square = (nodes**2).sum(axis=1)
    pairs = []
    for low in range(0, len(nodes), 1024):  # in blocks: the whole table of a large volume is vast
        part = slice(low, low + 1024)
        distance = (
            square[part, None] + square[None, :] - 2 * np.einsum("ik,jk->ij", nodes[part], nodes)
        )
        i, j = np.nonzero(distance < (2.0 * spacing) ** 2)
        pairs.append(np.stack([i + low, j])[:, i + low < j])
    first, second = np.concatenate(pairs, axis=1)
    delta = nodes[first] - nodes[second]
    length = np.linalg.norm(delta, axis=1)
    if preference:
        cosine = np.abs((delta * favoured).sum(axis=1)) / np.maximum(length, 1e-6)
        length = length * (1 + preference * (1 - cosine**2))
    order = np.argsort(length * rng.uniform(0.7, 1.3, length.size))
    degree = [0] * len(nodes)
    kept: list[tuple[int, int]] = []
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if degree[i] < 3 and degree[j] < 3:
            degree[i] += 1
            degree[j] += 1
            kept.append((i, j))
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _prune(edges: Ints, nodes: Floats, extent: Floats) -> Ints:
    """Drop capillaries that end blindly inside the volume: blood has to leave again."""
    open_end = np.any((nodes < 0) | (nodes > extent), axis=1)
    for _ in range(12):
        degree = np.bincount(edges.reshape(-1), minlength=len(nodes))
        blind = (degree == 1) & ~open_end
        edges = edges[~(blind[edges[:, 0]] | blind[edges[:, 1]])]
    return edges


def _tangents(nodes: Floats, edges: Ints) -> tuple[Floats, Floats]:
    """Directions of the edges at both ends; the two straightest edges of a node run through it."""
    chord = nodes[edges[:, 1]] - nodes[edges[:, 0]]
    chord = chord / np.maximum(np.linalg.norm(chord, axis=1, keepdims=True), 1e-6)
    ends = (chord.copy(), chord.copy())
    at: dict[int, list[tuple[int, int, Floats]]] = {}
    for number, (i, j) in enumerate(edges.tolist()):
        at.setdefault(i, []).append((number, 0, chord[number]))
        at.setdefault(j, []).append((number, 1, -chord[number]))
    for leaving in at.values():
        pairs = [(p, q) for k, p in enumerate(leaving) for q in leaving[k + 1 :]]
        if not pairs:
            continue
        one, two = min(pairs, key=lambda pair: float(pair[0][2] @ pair[1][2]))
        through = one[2] - two[2]
        through = through / max(float(np.linalg.norm(through)), 1e-6)
        for (number, side, _), away in ((one, through), (two, -through)):
            ends[side][number] = away if side == 0 else -away
    return ends


def _grow(
    look: Vessels, extent: Floats, margin: float, junctions: Floats, rng: np.random.Generator
) -> Floats:
    """Grow the trunks; rows [start 3, end 3, tangent 3, tangent 3, radius, radius] of edges."""
    rows: list[Floats] = []
    floor = look.capillary_radius[1]
    for _ in range(look.trunks):
        middle = rng.uniform(0.15, 0.85, 3) * extent
        heading = unit_vectors(1, rng)[0]
        # step back to where this line entered the box
        with np.errstate(divide="ignore"):
            back = np.where(heading > 0, (middle + margin) / heading, np.inf)
            back = np.minimum(
                back, np.where(heading < 0, (middle - extent - margin) / heading, np.inf)
            )
        root = middle - heading * back.min()
        queue = deque([(root, heading, rng.uniform(*look.trunk_radius))])
        budget = 250
        while queue and budget:
            budget -= 1
            place, heading, radius = queue.popleft()
            turn = heading + (0.12 + look.tortuosity) * rng.normal(size=3)
            turn /= np.linalg.norm(turn)
            length = radius * rng.uniform(2.0, 5.0) + rng.uniform(3.0, 10.0)
            child = place + turn * length
            if radius <= floor and len(junctions):
                # the smallest branches end in the capillary bed
                near = ((junctions - child) ** 2).sum(axis=1)
                target = int(np.argmin(near))
                if near[target] < (1.5 * look.spacing) ** 2:
                    last = junctions[target]
                    out = last - place
                    out /= max(float(np.linalg.norm(out)), 1e-6)
                    thin = look.capillary_radius[0]
                    rows.append(np.array([*place, *last, *heading, *out, radius, thin]))
                    continue
            thinner = radius * rng.uniform(0.95, 1.0)
            rows.append(np.array([*place, *child, *heading, *turn, radius, thinner]))
            if np.any(child < -margin) or np.any(child > extent + margin):
                continue
            main = thinner
            if rng.random() < look.branching:
                share = rng.uniform(0.25, 0.8)
                side = max(thinner * share, min(0.7 * floor, thinner))
                main = (max(thinner**3 - side**3, (0.3 * thinner) ** 3)) ** (1 / 3)
                aside = np.cross(turn, unit_vectors(1, rng)[0])
                aside /= max(float(np.linalg.norm(aside)), 1e-6)
                angle = rng.uniform(0.5, 1.4)
                fork = math.cos(angle) * turn + math.sin(angle) * aside
                queue.append((child, fork, side))
                turn = turn - 0.3 * math.sin(angle) * aside * (side / thinner)
                turn /= np.linalg.norm(turn)
            queue.append((child, turn, main))
    return np.array(rows).reshape(-1, 14)
