"""Which images of a volume a sweep keeps and shows: the same for every method and parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.report_style import Volume


@dataclass(frozen=True)
class Cuts:
    """A slice, a section along the depth, and the maximum projections along z and y.

    Attributes:
        z: the slice.
        y: the row of the section.
        size: (z, y, x) of the volume in micrometres, or in voxels of unknown size.
        origin: (z, y) of the first voxel, where the volume is a block of a larger one.
    """

    z: int
    y: int
    size: tuple[float, float, float]
    origin: tuple[int, int] = (0, 0)

    @classmethod
    def of(
        cls,
        truth: Volume,
        voxel_size: tuple[float, float, float] | None,
        step_lengths: Sequence[int],
        *,
        origin: tuple[int, int] = (0, 0),
    ) -> Cuts:
        """Choose a slice that is far from the centre of its projection at all step lengths, where
        depth is hardest, and has contrast; from truth and geometry alone, so no method is favoured.
        """
        depth = len(truth)
        slices = np.arange(depth)
        far, inside = np.ones(depth), np.ones(depth, dtype=bool)
        for length in step_lengths:
            if 2 * length > depth:
                continue
            centres = AxialProjection(depth, length).centres.numpy()
            distance = np.abs(slices[:, None] - centres[None, :]).min(axis=1)
            far = np.minimum(far, distance / ((length - 1) / 2))
            inside &= (slices >= centres[0]) & (slices <= centres[-1])
        candidates = slices[inside & (far >= far[inside].max() - 0.25)]
        z = int(candidates[np.argmax(truth[candidates].std(axis=(1, 2)))])
        y = int(np.argmax(truth.std(axis=(0, 2))))
        sides = (n * d for n, d in zip(truth.shape, voxel_size or (1.0, 1.0, 1.0), strict=True))
        high, tall, wide = sides
        return cls(z, y, (high, tall, wide), origin)

    @property
    def rows(self) -> dict[str, tuple[str, tuple[float, float]]]:
        """Label and extent (height, width) of every image, in the order of the figure."""
        depth, tall, wide = self.size
        return {
            "slice": (f"xy, slice z = {self.origin[0] + self.z}", (tall, wide)),
            "section": (f"xz, row y = {self.origin[1] + self.y}", (depth, wide)),
            "maximum_z": ("maximum along z", (tall, wide)),
            "maximum_y": ("maximum along y", (depth, wide)),
        }

    def take(self, volume: Volume) -> dict[str, Volume]:
        """These images of a volume [Z, Y, X]."""
        return {
            "slice": volume[self.z],
            "section": volume[:, self.y],
            "maximum_z": volume.max(axis=0),
            "maximum_y": volume.max(axis=1),
        }
