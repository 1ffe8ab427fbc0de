"""Packed cells: Voronoi tissue with stained membranes or stained bodies, whole or in part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from microdiffusion_fast.simulation.fields import smooth_field
from microdiffusion_fast.simulation.geometry import scattered_points
from microdiffusion_fast.simulation.raster import Array, Shape


@dataclass(frozen=True, kw_only=True)
class Cells:
    """How a phantom of packed cells looks; lengths in lateral voxels.

    `diameter` is the least distance of the cells' centres, `warp` the bend of their faces;
    `membrane` the width (sigma) of a face; `body` the brightness of what it encloses, relative to
    the membrane's; `stained` the share of the cells that show at all, `variation` the spread of
    their brightness, `texture` that of the grain within.
    """

    diameter: float = 10.0
    warp: float = 1.0
    membrane: float = 0.8
    body: float = 0.1
    stained: float = 1.0
    variation: float = 0.3
    texture: float = 0.2
    aspect: float = 1.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Cells:
        """Draw plausible parameters over a wide range."""
        diameter = float(np.exp(rng.uniform(math.log(5.0), math.log(20.0))))
        return cls(
            diameter=diameter,
            warp=rng.uniform(0.0, 0.2) * diameter,
            membrane=rng.uniform(0.4, 1.4),
            # either the faces shine, or what they part
            body=rng.uniform(0.0, 0.5) if rng.random() < 0.6 else rng.uniform(2.0, 10.0),
            stained=float(np.exp(rng.uniform(math.log(0.1), 0.0))) if rng.random() < 0.6 else 1.0,
            variation=rng.uniform(0.05, 0.9),
            texture=rng.uniform(0.0, 0.6),
        )

    def render(self, shape: Shape, rng: np.random.Generator) -> Array:
        """Draw the cells into a volume [Z, Y, X] of values from 0 to 1."""
        extent = np.array([shape[0] * self.aspect, shape[1], shape[2]])
        margin = self.diameter
        sites = scattered_points(extent + 2 * margin, self.diameter, rng) - margin
        place = []
        for axis, scale in enumerate((self.aspect, 1.0, 1.0)):
            ruler = (scale * np.arange(shape[axis])).astype(np.float32)
            bend = np.float32(self.warp) * smooth_field(shape, 1.2 * self.diameter, rng)
            place.append(bend + ruler.reshape([-1 if a == axis else 1 for a in range(3)]))
        level = np.exp(self.variation * rng.normal(size=len(sites)))
        level *= rng.random(len(sites)) < self.stained
        first, second = np.full(shape, 1e3, np.float32), np.full(shape, 1e3, np.float32)
        shine, beyond = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        reach = 1.5 * self.diameter + 3 * self.warp  # no gap between sites is wider
        for site, bright in zip(sites, level.astype(np.float32), strict=True):
            box = tuple(
                slice(
                    max(0, math.floor((c - reach) / scale)), max(0, math.ceil((c + reach) / scale))
                )
                for c, scale in zip(site, (self.aspect, 1.0, 1.0), strict=True)
            )
            distance = np.sqrt(
                sum((x[box] - np.float32(c)) ** 2 for x, c in zip(place, site, strict=True))
            )
            nearest = distance < first[box]
            runner_up = ~nearest & (distance < second[box])
            second[box] = np.where(nearest, first[box], np.minimum(second[box], distance))
            beyond[box] = np.where(nearest, shine[box], np.where(runner_up, bright, beyond[box]))
            first[box] = np.where(nearest, distance, first[box])
            shine[box] = np.where(nearest, bright, shine[box])
        # half the gap between the two nearest centres is about the distance to the face
        face = np.exp(-0.125 * ((second - first) / self.membrane) ** 2)
        body = self.body * shine * (1 - face)
        if self.texture:
            grain = smooth_field(shape, rng.uniform(0.1, 0.4) * self.diameter + 1, rng)
            body *= np.clip(1 + self.texture * grain, 0.1, 3.0)
        # a face belongs to both its cells
        out = (np.maximum(shine, beyond) * face if self.body < 1 else 0) + body
        white = max(float(np.quantile(out, 0.995)), 1e-6)
        return np.clip(out / white, 0, 1).astype(np.float32)
