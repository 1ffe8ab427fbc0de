"""What a planned run will take: hours from arithmetic, and from a small tile timed here."""

from __future__ import annotations

import time

import torch

from .device import resolve_device
from .forward_model import AxialProjection
from .progress import format_seconds
from .streaming_plan import StreamRun
from .streaming_prepare import Prepared
from .tile_reconstruction import reconstruct_tile
from .tiling import plan_tiles
from .tiling_budget import predict

SIDE = 96  # pixels of the tile that is timed
GPU_RATE = 10e12  # multiplications and additions a second that are assumed of a GPU


def measured_rate(run: StreamRun) -> float:
    """Multiplications of the network a second, from one small tile on the device of the run.

    Raises:
        InputError: that device is not there.
    """
    place = resolve_device(run.device, torch.device("cpu"))
    seen = run.geometry.operator
    operator = AxialProjection(
        seen.stride + seen.step_length, seen.step_length, stride=seen.stride, weights=seen.weights
    )
    network = next(iter(run.networks.values()))  # all of them cost the same
    ready = Prepared.draft(network.to(place))
    recipe = run.choices.recipe(ready, operator, (SIDE, SIDE))
    whole = (operator.depth, SIDE, SIDE)
    plan = plan_tiles(whole, recipe.windows, recipe.reach, shards=whole, core=whole)
    tile = plan[0]

    def seconds() -> float:
        images = torch.rand(tile.read.shape, device=place)
        begun = time.perf_counter()
        reconstruct_tile(tile, images, recipe)
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter() - begun

    seconds()  # the first call makes what later ones reuse
    work = predict(plan, recipe.footprint(4, 1), pixels=0, itemsize=4).multiplications
    return work / seconds()


def plan_lines(run: StreamRun, *, memory: str) -> list[str]:
    """The plan of a run as people read it, with its hours.

    Args:
        run: as planned.
        memory: the budget, as it was given.
    """
    predicted, plan = run.prediction, run.plan
    count, height, width = run.stack.shape
    rate = measured_rate(run)
    here = format_seconds(predicted.multiplications / rate)
    on_gpu = format_seconds(2 * predicted.multiplications / GPU_RATE)
    if run.device.type == "cuda":
        lines = [f"time     {here} on this GPU (a small tile timed here, {rate:.2g} products/s)"]
    else:
        threads = torch.get_num_threads()
        lines = [
            f"CPU      {here} on this machine, {threads} thread{'s' if threads > 1 else ''}"
            f" (a small tile timed here, {rate:.2g} products/s)",
            f"GPU      {on_gpu} if one sustains {GPU_RATE:.0e} operations/s"
            " (arithmetic alone: assumed, not measured)",
        ]
    return [
        f"volume   {_sizes(plan.shape)} voxels, shards of {_sizes(plan.shards)}",
        f"stack    {count:,} projections of {height:,} x {width:,} pixels, {run.stack.dtype}",
        f"tiles    {predicted.tiles:,} of {_sizes(plan.core)} voxels",
        f"memory   {_bytes(predicted.memory)} of {memory} at the peak, beyond the program",
        f"reads    {_bytes(predicted.bytes_in)}, every pixel {predicted.reread:.2f} times",
        f"writes   {_bytes(predicted.bytes_out)} before compression, and coarser levels",
        f"work     {predicted.multiplications:.2g} products, {predicted.work:.2f} times those of"
        " a single tile",
        *lines,
    ]


def _sizes(sizes: tuple[int, int, int]) -> str:
    return " x ".join(f"{n:,}" for n in sizes)


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.2f} TiB"
