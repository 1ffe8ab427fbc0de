"""Pictures inside a page: volumes as sheets of slices, images as data URIs, all of them small.

What is shown is thinned, never resampled along the depth: the page says by how much.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion_fast.report_style import Volume

# Of one volume on the page: about 0.4 MB as JPEG, and quick to decode on a phone.
MAX_PIXELS = 1_600_000
MAX_SLICES = 160
MAX_SIDE = 480  # of a single image
_QUALITY = 84
_BLOCK = 8  # of JPEG: tiles begin on its blocks, so that neighbours do not bleed


@dataclass(frozen=True)
class Thinning:
    """What of a volume [Z, Y, X] a page shows.

    Attributes:
        slices: their indices.
        factor: pixels on a side that are averaged into one.
        step: every which slice.
    """

    slices: tuple[int, ...]
    factor: int
    step: int

    @classmethod
    def of(cls, shape: Sequence[int], pixels: int = MAX_PIXELS) -> Thinning:
        """The least thinning that keeps to the budget of pixels."""
        depth, high, wide = shape
        step = math.ceil(depth / MAX_SLICES)
        slices = tuple(range(0, depth, step))
        factor = 1
        while len(slices) * math.ceil(high / factor) * math.ceil(wide / factor) > pixels:
            factor += 1
        return cls(slices, factor, step)

    def take(self, volume: Volume) -> Volume:
        """The slices shown, [n, y, x]."""
        return np.stack([averaged(volume[z], self.factor) for z in self.slices])

    @property
    def words(self) -> str:
        """What it does to the picture, for the reader."""
        slices = "every slice" if self.step == 1 else f"one slice in {self.step}"
        if self.factor == 1:
            return f"{slices}, every pixel"
        return f"{slices}, {self.factor} x {self.factor} pixels averaged into one"


@dataclass(frozen=True)
class Sheet:
    """The slices of a volume as the tiles of one grey image.

    Attributes:
        uri: the image.
        columns: tiles in a row.
        tile: (height, width) from one tile to the next, in pixels.
        index: the tile of every slice: neighbours that are equal share one.
    """

    uri: str
    columns: int
    tile: tuple[int, int]
    index: tuple[int, ...]

    @property
    def record(self) -> dict[str, Any]:
        """Where the script finds a slice."""
        return {"columns": self.columns, "tile": self.tile, "index": self.index}


def make_sheet(volume: Volume, limits: tuple[float, float]) -> Sheet:
    """Lay the slices of a thinned volume [n, y, x] out, `limits` black and white."""
    grey = to_bytes(volume, limits)
    changed = [i == 0 or not np.array_equal(grey[i], grey[i - 1]) for i in range(len(grey))]
    index = tuple(int(i) for i in np.cumsum(changed) - 1)
    tiles = grey[np.asarray(changed)]
    count, high, wide = tiles.shape
    tall, broad = (math.ceil(n / _BLOCK) * _BLOCK for n in (high, wide))
    columns = min(count, max(1, math.ceil(math.sqrt(count * tall / broad))))
    rows = math.ceil(count / columns)
    padded = np.pad(tiles, ((0, 0), (0, tall - high), (0, broad - wide)), mode="edge")
    sheet = np.zeros((rows * columns, tall, broad), np.uint8)
    sheet[:count] = padded
    laid = sheet.reshape(rows, columns, tall, broad).swapaxes(1, 2)
    uri = jpeg(laid.reshape(rows * tall, columns * broad))
    return Sheet(uri, columns, (tall, broad), index)


def picture(image: Volume, limits: tuple[float, float]) -> str:
    """One image [rows, columns] as a data URI, averaged down where it is large."""
    return jpeg(to_bytes(averaged(image, math.ceil(max(image.shape) / MAX_SIDE)), limits))


def to_bytes(values: Volume, limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Grey levels: the first of `limits` is 0, the second 255."""
    low, high = limits
    scaled = (values.astype(np.float32) - low) * np.float32(255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def averaged(image: Volume, factor: int) -> Volume:
    """Means of `factor` x `factor` pixels; what lies beyond the edge repeats it."""
    if factor <= 1:
        return image
    high, wide = (math.ceil(n / factor) * factor for n in image.shape)
    whole = np.pad(image, ((0, high - image.shape[0]), (0, wide - image.shape[1])), mode="edge")
    blocks = whole.reshape(high // factor, factor, wide // factor, factor)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)


def jpeg(grey: NDArray[np.uint8]) -> str:
    """A grey image as a data URI; the same image gives the same characters."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
