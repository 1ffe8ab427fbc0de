"""Axons and dendrites: long thin fibres with boutons, spines, bundles, terminal arbors, somata."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from microdiffusion_fast.simulation.curves import wander
from microdiffusion_fast.simulation.geometry import random_rotations, unit_vectors
from microdiffusion_fast.simulation.raster import (
    Array,
    Floats,
    Shape,
    stamp_balls,
    stamp_ellipsoids,
)


@dataclass(frozen=True, kw_only=True)
class Neurites:
    """How a neurite phantom looks; lengths in lateral voxels, `density` in fibres per 64^3."""

    density: float = 10.0
    radius: tuple[float, float] = (0.5, 1.2)
    persistence: float = 14.0
    tortuosity: float = 0.35
    arbors: float = 0.3
    alignment: float = 0.0
    directions: int = 1
    bundles: int = 0
    boutons: float = 0.06
    bouton_size: float = 1.8
    spines: float = 0.0
    somata: int = 0
    soma_radius: tuple[float, float] = (4.0, 8.0)
    variation: float = 0.4
    aspect: float = 1.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Neurites:
        """Draw plausible parameters over a wide range."""
        thin = rng.uniform(0.4, 1.2)
        return cls(
            density=float(np.exp(rng.uniform(math.log(2.5), math.log(28)))),
            radius=(thin, thin * rng.uniform(1.1, 2.4)),
            persistence=rng.uniform(6, 25),
            tortuosity=rng.uniform(0.1, 0.9),
            arbors=rng.uniform(0.0, 0.8),
            alignment=rng.uniform(0.3, 1.0) if rng.random() < 0.5 else 0.0,
            directions=int(rng.integers(1, 4)),
            bundles=int(rng.integers(1, 5)) if rng.random() < 0.3 else 0,
            boutons=rng.uniform(0.01, 0.16) if rng.random() < 0.75 else 0.0,
            bouton_size=rng.uniform(1.2, 2.4),
            spines=rng.uniform(0.05, 0.5) if rng.random() < 0.3 else 0.0,
            somata=int(rng.integers(1, 6)) if rng.random() < 0.3 else 0,
            soma_radius=(3.0, rng.uniform(4.0, 9.0)),
            variation=rng.uniform(0.1, 0.9),
        )

    def render(self, shape: Shape, rng: np.random.Generator) -> Array:
        """Draw the neurites into a volume [Z, Y, X] of values from 0 to 1."""
        extent = np.array([shape[0] * self.aspect, shape[1], shape[2]])
        volume_units = float(extent.prod()) / 64**3
        # fibres are counted by length: a fibre of one box length per unit of density
        count = max(1, round(self.density * volume_units ** (2 / 3)))
        axes = unit_vectors(self.directions, rng)
        pieces: list[tuple[Floats, Floats, Floats]] = []
        long_way = float(np.linalg.norm(extent))

        straight = max(1, round(count * (1 - self.arbors)))
        starts = rng.uniform(-0.05, 1.05, (straight, 3)) * extent
        heads = self._headings(axes, straight, rng)
        reach = 0.55 * long_way
        for sign in (1.0, -1.0):  # from a point within, both ways: fibres cross the whole box
            paths = wander(
                starts,
                sign * heads,
                reach,
                step=0.5,
                persistence=self.persistence,
                tortuosity=self.tortuosity,
                rng=rng,
            )
            pieces.append(self._dress(paths, rng, side=sign))
        curls = round(count * self.arbors * 2)
        if curls:
            pieces.append(self._arbors(pieces[0][0], curls, extent, rng))
        for _ in range(self.bundles):
            pieces.append(self._bundle(extent, axes, rng))
        out = np.zeros(shape, dtype=np.float32)
        for points, radius, level in pieces:
            flat = points.reshape(-1, 3)
            inside = np.all((flat > -3) & (flat < extent + 3), axis=1)
            stamp_balls(
                out,
                flat[inside],
                radius.reshape(-1)[inside],
                np.clip(level.reshape(-1)[inside], 0.02, 1.0),
                aspect=self.aspect,
            )
        if self.spines:
            self._spines(out, pieces[0], extent, rng)
        if self.somata:
            self._somata(out, extent, rng)
        return np.clip(out, 0, 1)

    def _headings(self, axes: Floats, count: int, rng: np.random.Generator) -> Floats:
        free = unit_vectors(count, rng)
        chosen = axes[rng.integers(0, len(axes), count)]
        heads = self.alignment * chosen * rng.choice([-1.0, 1.0], (count, 1))
        heads = heads + (1 - 0.85 * self.alignment) * free
        return np.asarray(heads / np.maximum(np.linalg.norm(heads, axis=1, keepdims=True), 1e-6))

    def _dress(
        self, paths: Floats, rng: np.random.Generator, *, side: float = 1.0, scale: float = 1.0
    ) -> tuple[Floats, Floats, Floats]:
        """Give paths [P, n, 3] a radius and a brightness [P, n], boutons included."""
        count, n = paths.shape[:2]
        thin, thick = self.radius
        base = np.asarray(rng.uniform(thin, thick, count)) * scale
        level = 0.55 * np.exp(self.variation * rng.normal(size=count))
        place = np.arange(n)
        wave = np.zeros((count, n))
        for length in (11.0, 29.0, 71.0):
            phase = rng.uniform(0, 2 * np.pi, (count, 1))
            wave += rng.normal(size=(count, 1)) * np.sin(place / length * 2 * np.pi + phase)
        radius = base[:, None] * np.exp(0.08 * wave)
        bright = level[:, None] * np.exp(0.18 * self.variation * wave)
        if self.boutons:
            events = rng.random((count, n)) < self.boutons * 0.5  # two samples a voxel
            size = events * rng.uniform(0.2, 1.0, (count, n))
            width = rng.uniform(1.0, 3.0)
            taps = np.arange(-8, 9)
            kernel = np.exp(-0.5 * (taps / (2 * width)) ** 2)
            swell = np.zeros((count, n + 16))
            for tap, weight in zip(taps.tolist(), kernel.tolist(), strict=True):
                low = 8 + tap
                np.maximum(swell[:, low : low + n], size * weight, out=swell[:, low : low + n])
            swell = swell[:, 8 : 8 + n]
            radius = radius * (1 + (self.bouton_size - 1) * swell)
            bright = bright * (1 + 0.8 * (self.bouton_size - 1) * swell)
        return paths, np.minimum(radius, 2.8), bright

    def _arbors(
        self, trunk: Floats, count: int, extent: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats, Floats]:
        """Side branches that leave the fibres and curl: terminal arbors."""
        flat = trunk.reshape(-1, 3)
        inside = flat[np.all((flat > 0) & (flat < extent), axis=1)]
        if len(inside) == 0:
            inside = flat
        starts = inside[rng.integers(0, len(inside), count)]
        paths = wander(
            starts,
            unit_vectors(count, rng),
            rng.uniform(20, 60),
            step=0.5,
            persistence=max(4.0, 0.6 * self.persistence),
            tortuosity=self.tortuosity + rng.uniform(0.3, 0.9),
            rng=rng,
        )
        return self._dress(paths, rng, scale=rng.uniform(0.6, 1.0))

    def _bundle(
        self, extent: Floats, axes: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats, Floats]:
        """Fibres that keep together for their whole way, each with a little freedom."""
        count = int(rng.integers(4, 26))
        long_way = float(np.linalg.norm(extent))
        head = self._headings(axes, 1, rng)
        start = rng.uniform(0.1, 0.9, (1, 3)) * extent - head * 0.55 * long_way
        guide = wander(
            start,
            head,
            1.1 * long_way,
            step=0.5,
            persistence=2 * self.persistence,
            tortuosity=0.4 * self.tortuosity,
            rng=rng,
        )
        spread = rng.uniform(1.5, 4.0) * math.sqrt(count) * self.radius[1] * 0.5
        drift = wander(
            rng.normal(size=(count, 3)) * spread,
            np.full((count, 3), 1e-9),
            guide.shape[1] * 0.1,
            step=0.1,
            persistence=self.persistence / 4,
            tortuosity=1.0,
            rng=rng,
        )
        n = min(guide.shape[1], drift.shape[1])
        return self._dress(guide[:, :n] + drift[:, :n], rng)

    def _spines(
        self,
        out: Array,
        fibres: tuple[Floats, Floats, Floats],
        extent: Floats,
        rng: np.random.Generator,
    ) -> None:
        points, radius, level = fibres
        flat = points[:, 1:].reshape(-1, 3)
        along = np.diff(points, axis=1).reshape(-1, 3) * 2.0
        inside = np.all((flat > 0) & (flat < extent), axis=1)
        chosen = np.flatnonzero(inside & (rng.random(len(flat)) < self.spines * 0.5))
        away = np.cross(along[chosen], unit_vectors(len(chosen), rng))
        away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
        thick = radius[:, 1:].reshape(-1)[chosen]
        shine = np.clip(level[:, 1:].reshape(-1)[chosen], 0.02, 1.0)
        length = rng.uniform(1.2, 3.5, len(chosen))
        for share in (0.35, 0.7, 1.0):
            size = np.full(len(chosen), 0.4) if share < 1 else rng.uniform(0.5, 1.1, len(chosen))
            tip = flat[chosen] + away * (thick + share * length)[:, None]
            stamp_balls(out, tip, size, shine * 0.9, aspect=self.aspect)

    def _somata(self, out: Array, extent: Floats, rng: np.random.Generator) -> None:
        centres = rng.uniform(0.0, 1.0, (self.somata, 3)) * extent
        small, large = self.soma_radius
        size = rng.uniform(small, large, self.somata)
        axes = size[:, None] * rng.uniform(0.75, 1.25, (self.somata, 3))
        shine = np.clip(rng.uniform(0.5, 1.2, self.somata), 0, 1)
        turned = random_rotations(self.somata, rng)
        stamp_ellipsoids(out, centres, axes, turned, shine, rim=-0.2, aspect=self.aspect)
        for centre, radius, level in zip(centres, size, shine, strict=True):
            stems = int(rng.integers(3, 8))
            paths = wander(
                np.repeat(centre[None], stems, axis=0),
                unit_vectors(stems, rng),
                rng.uniform(25, 70),
                step=0.5,
                persistence=15.0,
                tortuosity=0.35,
                rng=rng,
            )
            n = paths.shape[1]
            root = rng.uniform(0.22, 0.4) * radius
            taper = np.maximum(root * np.exp(-np.arange(n) / (0.35 * n)), 0.5)
            stamp_balls(
                out,
                paths.reshape(-1, 3),
                np.tile(taper, stems),
                np.full(stems * n, level * 0.85),
                aspect=self.aspect,
            )
