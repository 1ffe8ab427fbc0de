"""`simulate_projections` for volumes on disk that are larger than memory: the same bits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import InputError
from .io_common import NAMESPACE, VoxelSize
from .io_output import prepare_output, refuse_input, staged
from .progress import Progress, ProgressCallback
from .projections import Projections
from .simulate import Noise, projection_of
from .store_layout import create_image
from .store_reader import chunk_bytes
from .store_source import StoredStack, open_stack
from .tiling import intervals
from .tiling_budget import memory_bytes
from .tiling_windows import Box, Span

CHUNKS = (32, 128, 128)  # of the projections


def simulate_stored(
    source: str | os.PathLike[str] | StoredStack,
    output: str | os.PathLike[str],
    *,
    step_length: int,
    stride: int | None = None,
    weights: Sequence[float] | None = None,
    start: int = 0,
    noise: Noise | None = None,
    seed: int = 0,
    voxel_size: VoxelSize | None = None,
    memory: int | str = "1GiB",
    overwrite: bool = False,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> StoredStack:
    """Project a volume on disk into a Zarr store of projections; see `simulate_projections`.

    The volume is read once, twice more for noise: its full scale is the largest value, and read
    noise is drawn after the noise of all dark pixels.

    Args:
        source: volume [Z, Y, X]: Zarr store, TIFF or NPY.
        output: the folder of the Zarr store to write.
        voxel_size: (z, y, x) of the volume in micrometres; None is what the file says.
        memory: what slabs may take, and a large chunk while it is decoded, such as "1GiB"; one
            window of slices is the least.

    Raises:
        InputError: a volume that cannot be read, is not finite or constant, a geometry that does
            not fit in it, a budget below one window, or an output that cannot be written.
    """
    volume = source if isinstance(source, StoredStack) else open_stack(source)
    refuse_input(Path(output), volume.path)
    _, height, width = volume.shape
    made = geometry_of(
        volume,
        step_length=step_length,
        stride=stride,
        weights=weights,
        start=start,
        voxel_size=voxel_size,
    )
    operator = made.operator
    if not Path(output).name.lower().endswith(".zarr"):
        raise InputError("output", "a name ending in .ome.zarr or .zarr", str(output))
    target = prepare_output(Path(output), overwrite=overwrite, store=True, argument="output")
    slabs = _slabs(volume, operator.count, step_length, made.stride, memory_bytes(memory))
    chunks = (min(slabs[0].length, CHUNKS[0]), *CHUNKS[1:])

    def project(slab: Span) -> NDArray[np.float32]:
        """The projections of some windows, from no other slices than theirs."""
        first = start + slab.start * made.stride
        last = start + (slab.stop - 1) * made.stride + step_length
        data = volume.read(Box(Span(first, last), Span(0, height), Span(0, width)))
        local = projection_of(
            len(data), step_length=step_length, stride=stride, weights=weights, start=0
        )
        return local(_as_float(data)).to(torch.float32).numpy()

    def scaled() -> Iterator[NDArray[np.float32]]:
        with Progress("dark pixels", len(slabs), enabled=progress, callback=callback) as bar:
            for slab in slabs:
                yield project(slab) / np.float32(full)
                bar.advance(1)

    full = 1.0
    low, high = _extremes(volume, slabs, progress=progress, callback=callback)
    if not low < high:
        raise InputError("volume", "intensities that vary", f"{low:g} everywhere")
    if noise is not None:
        full = max(high, 1e-12)
        generators = noise.generators(scaled, operator.count * height * width, seed)
    with (
        staged(target) as folder,
        Progress("project", len(slabs), enabled=progress, callback=callback, unit="slab") as bar,
    ):
        array = create_image(
            folder,
            target.name,
            shape=(operator.count, height, width),
            chunks=chunks,
            spacing=made.spacing,
            attributes={NAMESPACE: made.metadata},
        )
        for slab in slabs:
            images = project(slab)
            if noise is not None:
                images = noise.apply(images / np.float32(full), generators) * np.float32(full)
            array[slab.start : slab.stop] = images
            bar.advance(1)
    return open_stack(target)


def geometry_of(
    volume: StoredStack,
    *,
    step_length: int,
    stride: int | None = None,
    weights: Sequence[float] | None = None,
    start: int = 0,
    voxel_size: VoxelSize | None = None,
) -> Projections:
    """The projections that `simulate_stored` makes, with a stand-in for their images.

    Raises:
        InputError: a geometry that does not fit in the volume, or images of too few pixels.
    """
    depth, height, width = volume.shape
    operator = projection_of(
        depth, step_length=step_length, stride=stride, weights=weights, start=start
    )
    if min(height, width) < 8:
        raise InputError("volume", "at least 8 x 8 pixels", f"shape {list(volume.shape)}")
    return Projections(
        torch.arange(64.0).view(1, 8, 8).expand(operator.count, 8, 8),
        step_length=step_length,
        stride=stride,  # type: ignore[arg-type]
        start=start,
        weights=None if weights is None else tuple(weights),
        depth=depth,
        voxel_size=volume.voxel_size if voxel_size is None else voxel_size,
    )


def _slabs(
    volume: StoredStack, count: int, step_length: int, stride: int, memory: int
) -> list[Span]:
    """Runs of windows whose slices and projections fit into `memory` bytes."""
    _, height, width = volume.shape
    # slices as read, as float32 and in the operator; images, their noise and their copy to disk
    each = height * width * (stride * (volume.dtype.itemsize + 8) + 6 * 4)
    decoding = chunk_bytes(volume)
    least = height * width * ((step_length - stride) * (volume.dtype.itemsize + 8)) + each
    least += decoding
    windows = (memory - least) // each + 1
    if windows < 1:
        expected = f"at least {math.ceil(least / 2**20):,} MiB for one window of slices"
        if decoding > least / 8:
            expected += f", {decoding / 2**20:,.0f} MiB of it to read a chunk of the volume"
        raise InputError("memory", expected, f"{memory / 2**20:,.0f} MiB")
    if windows > CHUNKS[0]:
        windows -= windows % CHUNKS[0]
    return intervals(count, windows)


def _extremes(
    volume: StoredStack, slabs: Sequence[Span], *, progress: bool, callback: ProgressCallback | None
) -> tuple[float, float]:
    """The least and the largest value of a volume, as float32 has them."""
    depth, height, width = volume.shape
    step = -(-depth // len(slabs))
    low, high = math.inf, -math.inf
    parts = intervals(depth, step)
    with Progress("full scale", len(parts), enabled=progress, callback=callback) as bar:
        for z in parts:
            data = _as_float(volume.read(Box(z, Span(0, height), Span(0, width))))
            low, high = min(low, float(data.min())), max(high, float(data.max()))
            bar.advance(1)
    if not math.isfinite(low + high):
        raise InputError("volume", "values that float32 holds", f"{low:g} to {high:g}")
    return low, high


def _as_float(data: NDArray[Any]) -> torch.Tensor:
    with np.errstate(over="ignore"):  # is found, as an infinite extreme
        return torch.from_numpy(data.astype(np.float32, copy=False))
