"""Cell nuclei: ellipsoids from sparse to packed, in layers or clusters, with texture inside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from microdiffusion_fast.simulation.fields import smooth_field
from microdiffusion_fast.simulation.geometry import random_rotations, scattered_points
from microdiffusion_fast.simulation.raster import (
    Array,
    Shape,
    stamp_balls,
    stamp_ellipsoids,
)


@dataclass(frozen=True, kw_only=True)
class Nuclei:
    """How a nuclei phantom looks; lengths in lateral voxels.

    `spacing` is the least distance of centres in mean diameters, `fill` the share of the sites
    that hold a nucleus, `layering` how strongly a smooth density field thins some regions.
    """

    radius: float = 3.5
    size_spread: float = 0.15
    elongation: float = 0.2
    spacing: float = 1.0
    fill: float = 0.35
    layering: float = 0.5
    texture: float = 0.25
    nucleoli: float = 0.5
    rim: float = 0.0
    variation: float = 0.4
    aspect: float = 1.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Nuclei:
        """Draw plausible parameters over a wide range."""
        radius = float(np.exp(rng.uniform(math.log(1.3), math.log(7.5))))
        return cls(
            radius=radius,
            size_spread=rng.uniform(0.05, 0.3),
            elongation=rng.uniform(0.0, 0.45),
            spacing=rng.uniform(0.75, 1.6),
            fill=float(np.exp(rng.uniform(math.log(0.02 + 0.03 * radius), 0.0))),
            layering=rng.uniform(0.0, 1.5) if rng.random() < 0.7 else 0.0,
            texture=rng.uniform(0.0, 0.6),
            nucleoli=rng.uniform(0.0, 1.0),
            rim=rng.uniform(-0.5, 0.4),
            variation=rng.uniform(0.05, 0.9),
        )

    def render(self, shape: Shape, rng: np.random.Generator) -> Array:
        """Draw the nuclei into a volume [Z, Y, X] of values from 0 to 1."""
        extent = np.array([shape[0] * self.aspect, shape[1], shape[2]])
        margin = self.radius
        # tiny nuclei are never packed in tissue, and packing them would take seconds
        distance = max(2 * self.radius * self.spacing, 4.2)
        sites = scattered_points(extent + 2 * margin, distance, rng, rounds=2)
        sites = sites - margin
        out = np.zeros(shape, dtype=np.float32)
        keep = np.full(len(sites), self.fill)
        if self.layering and len(sites):
            scale = rng.uniform(0.25, 0.8) * float(extent.mean())
            field = smooth_field(shape, scale, rng)
            place = np.rint(sites / [self.aspect, 1, 1]).astype(np.int64)
            z, y, x = np.clip(place, 0, np.array(shape) - 1).T
            keep = keep * np.exp(self.layering * 1.5 * field[z, y, x])
        chosen = rng.random(len(sites)) < keep
        if not chosen.any():
            chosen[: min(3, len(sites))] = True
        sites = sites[chosen]
        count = len(sites)
        size = self.radius * np.exp(self.size_spread * rng.normal(size=count))
        size = np.clip(size, 0.8, 10.0)
        stretch = np.exp(self.elongation * rng.normal(size=(count, 3)))
        stretch /= np.cbrt(stretch.prod(axis=1, keepdims=True))
        axes = np.clip(size[:, None] * stretch, 0.7, 12.0)
        level = np.exp(self.variation * rng.normal(size=count))
        level = np.clip(level / np.quantile(level, 0.95), 0.05, 1.0)
        turned = random_rotations(count, rng)
        stamp_ellipsoids(out, sites, axes, turned, level, rim=self.rim, aspect=self.aspect)
        if self.texture:
            grain = smooth_field(shape, rng.uniform(0.35, 0.9) * max(self.radius, 2.0), rng)
            out *= np.clip(1 - self.texture * 0.5 + 0.45 * self.texture * grain, 0.1, 1.0)
        if self.nucleoli and self.radius > 2.5:
            spots = int(rng.integers(1, 4)) * count
            owner = np.repeat(np.arange(count), spots // count)
            inside = np.einsum(
                "nij,ni->nj",
                turned[owner],
                axes[owner] * rng.uniform(-0.45, 0.45, (spots, 3)),
            )
            dark = np.zeros_like(out)
            stamp_balls(
                dark,
                sites[owner] + inside,
                size[owner] * rng.uniform(0.15, 0.35, spots),
                np.ones(spots),
                aspect=self.aspect,
            )
            if rng.random() < 0.7:
                out *= 1 - self.nucleoli * 0.8 * dark
            else:  # chromocentres: bright spots in a dimmer nucleus
                out *= (1 - 0.5 * self.nucleoli) + 0.5 * self.nucleoli * dark
        return np.clip(out, 0, 1)
