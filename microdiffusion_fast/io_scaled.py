"""Volumes stored as 16-bit integers: `intensity = stored * scale + offset`, stated in the store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

LARGEST = 65534
UNWRITTEN = 65535  # what a voxel is that was never written
KEY = "intensity"  # of our own metadata


def without_scaling(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a volume that has been decoded."""
    return {name: value for name, value in extra.items() if name != KEY}


@dataclass(frozen=True)
class Scaling:
    """What stored integers mean: `intensity = stored * scale + offset`."""

    scale: float
    offset: float

    @classmethod
    def spanning(cls, low: float, high: float) -> Scaling:
        """That of integers from 0 for `low` to 65534 for `high`."""
        return cls((high - low) / LARGEST, low)

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Scaling | None:
        """What the metadata of a store says, None where it says nothing.

        Raises:
            InputError: it says something that is none.
        """
        stated = extra.get(KEY)
        if stated is None:
            return None
        try:
            found = cls(float(stated["scale"]), float(stated["offset"]))
        except (KeyError, TypeError, ValueError):
            found = cls(math.nan, math.nan)
        if not (math.isfinite(found.scale) and found.scale > 0 and math.isfinite(found.offset)):
            raise InputError("path", "a scale and an offset of intensities", repr(stated))
        return found

    def metadata(self) -> dict[str, Any]:
        """For the metadata of a store."""
        return {KEY: asdict(self)}

    def encode(self, data: NDArray[np.float32]) -> tuple[NDArray[np.uint16], int]:
        """The nearest integers, and how many values lay outside of what they span."""
        levels = np.rint((data - np.float32(self.offset)) / np.float32(self.scale))
        outside = int(np.count_nonzero((levels < 0) | (levels > LARGEST)))
        return np.clip(levels, 0, LARGEST, out=levels).astype(np.uint16), outside

    def decode(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Intensities; NaN for what was never written."""
        data = stored * np.float32(self.scale) + np.float32(self.offset)
        data[stored == UNWRITTEN] = np.nan
        return np.asarray(data, dtype=np.float32)
