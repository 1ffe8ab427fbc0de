"""Structures that belong to no organ: sheets, blobs and filaments cut out of random fields.

They keep a network from learning the few shapes of the other phantoms by heart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from microdiffusion_fast.simulation.fields import smooth_field
from microdiffusion_fast.simulation.raster import Array, Shape


@dataclass(frozen=True, kw_only=True)
class Textures:
    """Level sets of smooth random fields; `scale` and `width` in lateral voxels.

    `form` is "sheets" (where one field is zero: membranes, folded surfaces), "filaments" (where
    two are zero at once: loops of thread) or "blobs" (where one is high); `variation` is the
    spread of brightness over the volume.
    """

    form: str = "filaments"
    scale: float = 14.0
    width: float = 1.2
    share: float = 0.06
    variation: float = 0.3
    aspect: float = 1.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Textures:
        """Draw plausible parameters over a wide range."""
        scale = float(np.exp(rng.uniform(math.log(6), math.log(28))))
        return cls(
            form=str(rng.choice(["sheets", "filaments", "filaments", "blobs"])),
            scale=scale,
            width=rng.uniform(0.5, 2.0),
            share=float(np.exp(rng.uniform(math.log(0.01), math.log(0.25)))),
            variation=rng.uniform(0.1, 0.8),
        )

    def render(self, shape: Shape, rng: np.random.Generator) -> Array:
        """Draw the structures into a volume [Z, Y, X] of values from 0 to 1."""
        scales = (self.scale / self.aspect, self.scale, self.scale)
        first = smooth_field(shape, scales, rng)
        if self.form == "blobs":
            cut = float(np.quantile(first, 1 - self.share))
            out = 0.5 + 0.5 * np.tanh((first - cut) * self.scale / 2)
        else:
            # a field of unit deviation climbs by about 1.5 in `scale` voxels: width in its units
            distance = (first * (self.scale / 1.5)) ** 2
            if self.form == "filaments":
                distance += (smooth_field(shape, scales, rng) * (self.scale / 1.5)) ** 2
            out = np.exp(-0.5 * distance / self.width**2)
        level = np.exp(self.variation * (smooth_field(shape, 2.0 * self.scale, rng) - 1.0))
        return np.clip(out * level, 0, 1).astype(np.float32)
