"""What all tiles must agree on: intensity range, noise, and where the network learns the stack.

Each is a function of the stack and the seed alone, of bounded size, and that of the whole stack
where the stack is small; so it does not depend on how the volume is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .projections import percentile_range
from .store_source import StoredStack
from .tiling import intervals
from .tiling_windows import Box, Span

WHOLE = 2**23  # pixels: a stack up to this size is looked at as a whole
BLOCK = (4, 256, 256)  # of a larger one, blocks of this size,
BLOCKS = 32  # so many, which are WHOLE pixels
LESSON = (24, 256, 256)  # projections and pixels that the network is adapted to


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        low, high: the intensities that become 0 and 1: percentiles of the pixels looked at.
        lesson: the part of the stack for adaptation: all of it, or the surroundings of the block in
            which neighbouring projections differ most.
        pixels: how many were looked at.
    """

    low: float
    high: float
    lesson: Box
    pixels: int


def survey(stack: StoredStack, *, seed: int) -> Survey:
    """Look at a stack: at all of it, or at blocks of a fixed grid, drawn with the seed.

    Raises:
        InputError: the pixels do not vary, or are not finite.
    """
    count, height, width = stack.shape
    if math.prod(stack.shape) <= WHOLE:
        blocks = [Box(Span(0, count), Span(0, height), Span(0, width))]
    else:
        grid = [intervals(size, step) for size, step in zip(stack.shape, BLOCK, strict=True)]
        total = math.prod(map(len, grid))
        drawn = np.random.default_rng(seed).choice(total, min(BLOCKS, total), replace=False)
        places = np.unravel_index(np.sort(drawn), [len(spans) for spans in grid])
        blocks = [Box(grid[0][i], grid[1][j], grid[2][k]) for i, j, k in zip(*places, strict=True)]
    values, liveliest = [], (-1.0, blocks[0])
    for block in blocks:
        data = stack.read(block).astype(np.float32)
        change = float(np.square(np.diff(data, axis=0)).mean()) if len(data) > 1 else 0.0
        liveliest = max(liveliest, (change, block), key=lambda pair: pair[0])
        values.append(data.ravel())
    pixels = np.concatenate(values)
    low, high = percentile_range(pixels)
    if not high > low:
        raise InputError("projections", "intensities that vary", f"{low:g} everywhere")
    z, y, x = (
        _around(span, size, most)
        for span, size, most in zip(liveliest[1], stack.shape, LESSON, strict=True)
    )
    return Survey(low, high, Box(z, y, x), pixels.size)


def lesson(stack: StoredStack, found: Survey) -> Tensor:
    """The part of the stack for adaptation, float32 [k, y, x], spanning about [0, 1]."""
    data = stack.read(found.lesson).astype(np.float32)
    return torch.from_numpy((data - found.low) / (found.high - found.low))


def _around(span: Span, size: int, most: int) -> Span:
    length = min(size, most)
    middle = (span.start + span.stop) // 2
    start = min(max(middle - length // 2, 0), size - length)
    return Span(start, start + length)
