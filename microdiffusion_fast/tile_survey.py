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
from .inr import estimate_noise
from .projections import percentile_range
from .store_source import StoredStack
from .tiling import intervals
from .tiling_windows import Box, Span

WHOLE = 2**23  # pixels: a stack up to this size is looked at as a whole,
SHARE = 16  # of a larger one, one block in so many,
MOST = 2**24  # but no more pixels than this
NOISE = 2**22  # pixels tell the noise, about
BLOCK = (4, 128, 128)  # a block has at least this size: whole chunks, or parts of huge ones
LESSON = (24, 256, 256)  # projections and pixels that the network is adapted to


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found.

    Attributes:
        low, high: the intensities that become 0 and 1: percentiles of the pixels looked at.
        place: the part of the stack for adaptation: all of it, or the surroundings of the block in
            which neighbouring projections differ most.
        lesson: that part, float32 [k, y, x], spanning about [0, 1].
        noise: of the pixels looked at, in the same units; 0 where it was not asked for.
        pixels: how many were read.
    """

    low: float
    high: float
    place: Box
    lesson: Tensor
    noise: float
    pixels: int


def blocks_of(stack: StoredStack, *, seed: int) -> list[Box]:
    """Where a survey looks: everywhere, or one block in each stretch of the stack, drawn."""
    if math.prod(stack.shape) <= WHOLE:
        count, height, width = stack.shape
        return [Box(Span(0, count), Span(0, height), Span(0, width))]
    sizes = [
        min(chunk * -(-least // chunk), size)
        for chunk, least, size in zip(stack.chunks, BLOCK, stack.shape, strict=True)
    ]
    while 2 * math.prod(sizes) > MOST:  # two blocks at the least; two projections show a change
        axis = 0 if sizes[0] > 2 else 1 if sizes[1] >= sizes[2] else 2
        sizes[axis] = -(-sizes[axis] // 2)
    grid = [intervals(size, step) for size, step in zip(stack.shape, sizes, strict=True)]
    counts = [len(spans) for spans in grid]
    total = math.prod(counts)
    wanted = min(total // SHARE, MOST // math.prod(sizes))
    edges = np.linspace(0, total, max(wanted, 2) + 1).astype(np.int64)
    drawn = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    places = np.unravel_index(drawn, counts)
    return [Box(grid[0][i], grid[1][j], grid[2][k]) for i, j, k in zip(*places, strict=True)]


def survey(stack: StoredStack, *, seed: int, noise: bool = False) -> Survey:
    """Look at a stack: at all of it, or at blocks, drawn with the seed; also for its noise.

    Raises:
        InputError: the pixels do not vary, or are not finite.
    """
    blocks = blocks_of(stack, seed=seed)
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
        Span(start := min(span.start, size - min(size, most)), start + min(size, most))
        for span, size, most in zip(liveliest[1], stack.shape, LESSON, strict=True)
    )
    place = Box(z, y, x)
    if pixels.size == math.prod(stack.shape):
        lesson, read = pixels.reshape(stack.shape)[place.slices], pixels.size
    else:
        lesson = stack.read(place).astype(np.float32)
        read = pixels.size + lesson.size
    shown = torch.from_numpy((lesson - low) / (high - low))
    every = -(-pixels.size // NOISE)
    del pixels, lesson
    found = 0.0
    if noise:
        looked_at = zip(blocks[::every], values[::every], strict=True)
        images = (image for block, flat in looked_at for image in flat.reshape(block.shape))
        found = estimate_noise(torch.from_numpy(image) for image in images) / (high - low)
    return Survey(low, high, place, shown, found, read)


def pixels_to_survey(stack: StoredStack, *, seed: int) -> int:
    """How many pixels a survey reads."""
    looked_at = sum(math.prod(block.shape) for block in blocks_of(stack, seed=seed))
    if looked_at == math.prod(stack.shape):
        return looked_at
    return looked_at + math.prod(min(n, most) for n, most in zip(stack.shape, LESSON, strict=True))
