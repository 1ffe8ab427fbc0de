"""Baselines of projections on disk, as volumes that are computed where they are read.

They act on single columns and reach no further than the windows next to a slice, so a few
projections give any of their slices, and nothing of them is ever stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .forward_model import AxialProjection
from .store_reader import chunk_bytes
from .store_source import StoredStack
from .tiling import intervals
from .tiling_windows import Box, Span

Make = Callable[[AxialProjection, Tensor], Tensor]
_VOXELS = 2**19  # that are computed together
_WORKING = 32 * _VOXELS  # bytes meanwhile: about eight arrays of them


def _linear(operator: AxialProjection, images: Tensor) -> Tensor:
    return operator.interpolate(images)


def _nearest(operator: AxialProjection, images: Tensor) -> Tensor:
    return operator.interpolate(images, mode="nearest")


def _consistent(operator: AxialProjection, images: Tensor) -> Tensor:
    return operator.consistent(operator.interpolate(images), images)


METHODS: dict[str, Make] = {
    "nearest": _nearest,
    "interpolation": _linear,
    "interpolation+consistency": _consistent,
}


def interpolated(stack: StoredStack, depth: int, step_length: int) -> dict[str, StoredStack]:
    """What `demo_methods.baselines` gives, of a stack on disk: volumes [Z, Y, X] by method.

    Args:
        stack: float32 projections [K, Y, X] of disjoint windows of equal weights, from slice 0.
        depth: slices Z of the volume.
        step_length: slices in a window.
    """
    count, height, width = stack.shape

    def loader(make: Make) -> Callable[[Box], NDArray[Any]]:
        def load(box: Box) -> NDArray[Any]:
            # the windows that hold the slices, and one more on either side
            first = min(max(box.z.start // step_length - 1, 0), count - 1)
            last = min(max(-(-box.z.stop // step_length) + 1, first + 1), count)
            images = torch.from_numpy(stack.read(Box(Span(first, last), box.y, box.x)))
            begin = first * step_length
            end = max(box.z.stop, last * step_length)
            local = AxialProjection(end - begin, step_length, count=last - first)
            out = np.empty(box.shape, np.float32)
            for rows in intervals(box.y.length, max(_VOXELS // (local.depth * box.x.length), 1)):
                part = slice(*rows)
                made = make(local, images[:, part].contiguous())
                out[:, part] = made[box.z.within(Span(begin, end))].numpy()
            return out

        return load

    shape, chunk = (depth, height, width), min(stack.chunks[0] * step_length, depth)
    plain = replace(stack, shape=shape, chunks=(chunk, 1, 1))
    return {name: replace(plain, load=loader(make)) for name, make in METHODS.items()}


def memory_of_slabs(stack: StoredStack, memory: int) -> int:
    """What of `memory` bytes is left for the slabs of `evaluate_stored` of an `interpolated` one.

    The rest is for the projections of a slab, at most half as many as its slices and three more,
    while they are decoded, and for what is computed of them.
    """
    _, height, width = stack.shape
    rest = chunk_bytes(stack) + 3 * 4 * height * width + _WORKING
    # a slab has 32 bytes a voxel, its projections up to 2 more
    return max((memory - rest) * 16 // 17, memory // 2)
