"""The tissue around the labelled structures: autofluorescence, grain, specks, holes, edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from microdiffusion_fast.simulation.fields import smooth_field
from microdiffusion_fast.simulation.geometry import unit_vectors
from microdiffusion_fast.simulation.nuclei import Nuclei
from microdiffusion_fast.simulation.raster import Array, stamp_balls
from microdiffusion_fast.simulation.vessels import Vessels


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """Unlabelled tissue; brightness as a share of the brightest structure.

    `level` is its mean, `mottle` and `mottle_scale` (voxels) the slow variation, `grain` and
    `grain_scale` the fine one, `skew` how much the grain leans to bright specks; `specks` are
    small bright dots per 64^3; `holes` draws unstained "vessels" or "cells" dark ("" for none);
    `edge` is the share of the volume that lies outside the specimen.
    """

    level: float = 0.1
    mottle: float = 0.2
    mottle_scale: float = 30.0
    grain: float = 0.15
    grain_scale: float = 2.5
    skew: float = 0.3
    specks: float = 0.0
    speck_level: float = 0.3
    holes: str = ""
    edge: float = 0.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Tissue:
        """Draw plausible tissue, from perfectly dark to bright and grainy."""
        level = float(np.exp(rng.uniform(math.log(0.004), math.log(0.35))))
        return cls(
            level=level,
            mottle=float(rng.uniform(0.0, 0.5)),
            mottle_scale=float(np.exp(rng.uniform(math.log(8), math.log(70)))),
            # drawn as a share of full scale: granular tissue is seldom as bright as the label
            grain=min(0.6, float(np.exp(rng.uniform(math.log(0.001), math.log(0.05)))) / level),
            grain_scale=float(np.exp(rng.uniform(math.log(1.0), math.log(5.0)))),
            skew=float(rng.uniform(0.0, 0.8)),
            specks=float(np.exp(rng.uniform(0, math.log(80)))) if rng.random() < 0.45 else 0.0,
            speck_level=float(rng.uniform(0.1, 0.8)),
            holes=str(rng.choice(["", "", "", "vessels", "cells"])),
            edge=float(rng.uniform(0.03, 0.35)) if rng.random() < 0.15 else 0.0,
        )

    def surround(self, structure: Array, rng: np.random.Generator) -> Array:
        """Embed a structure [Z, Y, X] of values from 0 to 1 in the tissue."""
        shape = (structure.shape[0], structure.shape[1], structure.shape[2])
        base = np.full(shape, self.level, dtype=np.float32)
        if self.mottle:
            base *= np.exp(self.mottle * smooth_field(shape, self.mottle_scale, rng))
        if self.grain:
            fine = smooth_field(shape, self.grain_scale, rng)
            fine = 0.8 * fine + 0.6 * smooth_field(shape, 2.5 * self.grain_scale, rng)
            if self.skew:
                fine = (1 - self.skew) * fine + self.skew * (np.exp(0.8 * fine) - 1.38)
            base *= np.clip(1 + self.grain * fine, 0.05, 4.0)
        out = structure
        if self.specks:
            dots = np.zeros(shape, dtype=np.float32)
            count = max(1, round(self.specks * base.size / 64**3))
            centres = rng.uniform(0, 1, (count, 3)) * shape
            size = rng.uniform(0.4, 1.8, count)
            shine = self.speck_level * rng.uniform(0.1, 1.0, count) ** 1.5
            stamp_balls(dots, centres, size, shine)
            out = np.maximum(out, dots)
        if self.holes == "cells":
            cells = Nuclei(
                radius=float(rng.uniform(2.5, 7)),
                spacing=float(rng.uniform(1.2, 2.0)),
                fill=float(rng.uniform(0.1, 0.7)),
                nucleoli=0.0,
                texture=0.0,
                variation=0.1,
            )
            base *= 1 - float(rng.uniform(0.2, 0.7)) * cells.render(shape, rng)
        elif self.holes == "vessels":
            look = replace(
                Vessels.random(rng),
                trunks=int(rng.integers(0, 3)),
                spacing=float(rng.uniform(25, 50)),
                missing=float(rng.uniform(0.4, 0.9)),
                hollow=0.0,
                brightness_power=0.0,
                variation=0.05,
            )
            base *= 1 - float(rng.uniform(0.4, 0.95)) * look.render(shape, rng)
        out = out + base
        if self.edge:
            normal = unit_vectors(1, rng)[0]
            height = 6 * smooth_field(shape, 40.0, rng)
            for axis, slope in enumerate(normal.tolist()):
                ramp = slope * np.arange(shape[axis], dtype=np.float32)
                height += ramp.reshape([-1 if a == axis else 1 for a in range(3)])
            cut = float(np.quantile(height[::4, ::4, ::4], self.edge))
            out = out * np.clip((height - cut) / 2 + 0.5, 0.03, 1)
        return np.asarray(out, dtype=np.float32)
