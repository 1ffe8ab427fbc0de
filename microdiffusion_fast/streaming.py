"""Reconstruction from disk to disk: stacks of any size, within a memory budget, resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .device import resolve_device
from .errors import InputError
from .io_output import refuse_input
from .preset_fast import GAMMA, SAMPLER
from .progress import Progress, ProgressCallback
from .store_finished import is_finished
from .store_output import Finished
from .streaming_outputs import Outputs, are_finished, name_beside
from .streaming_parts import part_of, tiles_of
from .streaming_plan import StreamRun, plan_stream
from .streaming_tiles import Runner, run_tiles


@dataclass(frozen=True)
class StreamedReconstruction:
    """What `stream_reconstruct` did.

    Attributes:
        path: the volume.
        uncertainty: the store beside it, None where it was not asked for.
        tiles: tiles of the volume, or of this part of it; 0 where the volume was complete already.
        resumed: how many of them an earlier run had finished.
        pixels_read: pixels of projections that were decoded, to prepare the tiles and for them.
        seconds: of this run.
        planned: its plan, with what that predicts.
        parameters: every option as resolved.
        adaptation: what was tried on this stack, and what was accepted.
        finished: whether the volume is complete, and there.
    """

    path: Path
    uncertainty: Path | None
    tiles: int
    resumed: int
    pixels_read: int
    seconds: float
    planned: StreamRun
    parameters: dict[str, Any]
    adaptation: dict[str, Any]
    finished: bool


def stream_reconstruct(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    step_length: int | None = None,
    stride: int | None = None,
    weights: Sequence[float] | None = None,
    start: int | None = None,
    depth: int | None = None,
    voxel_size: Sequence[float] | None = None,
    steps: int | None = None,
    sampler: Literal["ddim", "ddpm", "dpm++"] = SAMPLER,
    gamma: float = GAMMA,
    guidance: float = 0.0,
    consistency: Literal["hard", "soft", "off"] | None = None,
    adapt: bool = True,
    adapt_steps: int | None = None,
    axial_blur: float | None = None,
    denoiser: str | Path | None = None,
    seed: int = 0,
    memory: int | str = "4GiB",
    chunks: Sequence[int] | None = None,
    dtype: Literal["float32", "uint16"] = "float32",
    uncertainty: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    resume: bool = True,
    overwrite: bool = False,
    plan_only: bool = False,
    client: Any = None,
    shard: str | None = None,
    threads: int | None = None,
    runner: Runner = run_tiles,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> StreamedReconstruction:
    """Reconstruct a stack of projections on disk into an OME-Zarr volume, tile by tile.

    The volume does not depend on the tiles beyond rounding. It appears under its name when it is
    complete; a run that was killed goes on where it was when it is started again with the same
    arguments. States are blended with linear interpolation in place of the INR, see
    `reconstruct_tile`. Options without a word here are those of `reconstruct`.

    Args:
        source: .tif, .tiff, .ome.tif(f), .npy, or the folder of a Zarr store.
        output: the folder of the Zarr store to write (.ome.zarr).
        memory: what tiles may take, such as "4GiB", beyond the program and the adaptation, whose
            needs do not grow with the stack. Another budget resumes a run just as well; its tiles
            may then differ by rounding.
        chunks: (z, y, x) of the output's chunks; shards have two along each axis. None is about
            32 x 128 x 128, the depth a multiple of the stride.
        dtype: of the output: "uint16" rounds intensities to integers, in half the room; the store
            states what they mean, and `read_volume` gives intensities again. They reach from one
            range of the projections below it to `step_length` ranges above its low end; voxels
            beyond are counted as `clipped` in the parameters.
        uncertainty: the folder of a second Zarr store (.ome.zarr), for the standard deviation of
            the volume's error as the posterior mean states it, see `Reconstruction.uncertainty`;
            of the layout and the dtype of the volume, as "uint16" from none to one range of the
            projections. Both appear when both are complete. It is a part of what the run is: one
            that was begun without it does not go on with it.
        resume: go on with a run that was begun; False begins anew.
        overwrite: replace a volume that is there, once the new one is complete.
        plan_only: compute and write nothing; see `planned` of the result.
        client: of `dask.distributed`; its workers compute the tiles, see `distributed.DaskTiles`.
        shard: "i/n", the i-th of n parts: each of n processes, which know nothing of each other,
            does its own, and the one that finds all of them done makes the volume.
        threads: of the CPU that compute a tile, in every process; None are those of torch, or of
            the workers. A run that is taken up keeps its number: another rounds otherwise.
        runner: what computes the tiles that are missing: called with the job and their numbers,
            yields the receipt of each when it is written, in any order.

    Raises:
        InputError: an argument that does not fit, a stack that is not complete, a run begun with
            other arguments or another stack, or no room.
        Cancelled: the callback returned False; what is finished is kept.

    Source: MicroDiffusion (arXiv 2403.10815); the project's DESIGN.md for what differs.
    """
    begun = time.perf_counter()
    place = Path(output)
    beside = None if uncertainty is None else Path(uncertainty)
    run = plan_stream(
        source,
        step_length=step_length,
        stride=stride,
        weights=weights,
        start=start,
        depth=depth,
        voxel_size=voxel_size,
        steps=steps,
        sampler=sampler,
        gamma=gamma,
        guidance=guidance,
        consistency=consistency,
        adapt=adapt,
        adapt_steps=adapt_steps,
        axial_blur=axial_blur,
        denoiser=denoiser,
        seed=seed,
        memory=memory,
        chunks=chunks,
        dtype=dtype,
        device=device,
        uncertainty=None if beside is None else name_beside(place, beside, source=Path(source)),
    )

    def nothing(tiles: int) -> StreamedReconstruction:
        seconds = time.perf_counter() - begun
        return StreamedReconstruction(
            place, beside, tiles, 0, 0, seconds, run, run.parameters, {}, finished=not plan_only
        )

    if threads is not None and threads < 1:
        raise InputError("threads", "at least 1", threads)
    refuse_input(place, run.stack.path)
    part = None if shard is None else part_of(shard, run.plan)
    if plan_only:
        return nothing(len(run.plan))
    if resume and are_finished(place, beside, run.identity, overwrite=overwrite):
        return nothing(0)
    if client is None and runner is run_tiles:  # now, not after the adaptation
        resolve_device(run.device, run.device)
    if client is not None:
        from .distributed import DaskTiles

        runner = DaskTiles(client)
        usual = runner.threads
    else:
        usual = torch.get_num_threads()
    try:
        outputs = Outputs(
            place,
            beside,
            run.layout,
            run.identity,
            settings={"threads": usual if threads is None else threads},
            part=part,
            resume=resume,
            overwrite=overwrite,
        )
    except Finished:
        return nothing(0)
    with outputs:
        settled = outputs.volume.settings["threads"]
        if threads not in (None, settled):
            raise InputError("threads", f"{settled}, which the run was begun with", threads)
        ready = run.prepare(outputs, progress=progress, callback=callback)
        job = run.job(outputs)
        own = range(len(run.plan)) if part is None else tiles_of(part, run.plan)
        missing, pixels = [number for number in job.missing() if number in own], ready.pixels
        with Progress(
            "reconstruct", len(missing), enabled=progress, callback=callback, unit="tile"
        ) as bar:
            for receipt in runner(job, missing):
                pixels += receipt.pixels
                bar.advance(1)
        parameters = run.parameters
        with outputs.last() as last:
            if last or part is None:
                parameters = run.complete(outputs, ready, progress=progress, callback=callback)
    return StreamedReconstruction(
        path=place,
        uncertainty=beside,
        tiles=len(own),
        resumed=len(own) - len(missing),
        pixels_read=pixels,
        seconds=time.perf_counter() - begun,
        planned=run,
        parameters=parameters,
        adaptation=ready.evidence,
        finished=part is None or is_finished(output, run.identity, overwrite=True),
    )
