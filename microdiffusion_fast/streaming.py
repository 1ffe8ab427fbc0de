"""Reconstruction from disk to disk: stacks of any size, within a memory budget, resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .preset_fast import GAMMA, SAMPLER
from .progress import Progress, ProgressCallback
from .store_output import OutputStore, is_finished
from .streaming_plan import StreamRun, plan_stream
from .streaming_tiles import Runner, run_tiles


@dataclass(frozen=True)
class StreamedReconstruction:
    """What `stream_reconstruct` did.

    Attributes:
        path: the volume.
        tiles: tiles of the volume; 0 where the volume was complete already.
        resumed: how many of them an earlier run had finished.
        pixels_read: pixels of projections that were decoded, to prepare the tiles and for them.
        seconds: of this run.
        planned: its plan, with what that predicts.
        parameters: every option as resolved.
        adaptation: what was tried on this stack, and what was accepted.
    """

    path: Path
    tiles: int
    resumed: int
    pixels_read: int
    seconds: float
    planned: StreamRun
    parameters: dict[str, Any]
    adaptation: dict[str, Any]


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
    consistency: Literal["hard", "soft", "off"] = "hard",
    adapt: bool = True,
    adapt_steps: int | None = None,
    axial_blur: float | None = None,
    denoiser: str | Path | None = None,
    seed: int = 0,
    memory: int | str = "4GiB",
    chunks: Sequence[int] | None = None,
    dtype: Literal["float32", "uint16"] = "float32",
    device: str | torch.device | None = None,
    resume: bool = True,
    overwrite: bool = False,
    plan_only: bool = False,
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
        resume: go on with a run that was begun; False begins anew.
        overwrite: replace a volume that is there, once the new one is complete.
        plan_only: compute and write nothing; see `planned` of the result.
        runner: what computes the tiles that are missing: called with the job and their numbers,
            yields the receipt of each when it is written, in any order.

    Raises:
        InputError: an argument that does not fit, a stack that is not complete, a run begun with
            other arguments or another stack, or no room.
        Cancelled: the callback returned False; what is finished is kept.

    Source: MicroDiffusion (arXiv 2403.10815); the project's DESIGN.md for what differs.
    """
    begun = time.perf_counter()
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
    )
    if plan_only or (resume and is_finished(output, run.identity)):
        return StreamedReconstruction(
            path=Path(output),
            tiles=len(run.plan) if plan_only else 0,
            resumed=0,
            pixels_read=0,
            seconds=time.perf_counter() - begun,
            planned=run,
            parameters=run.parameters,
            adaptation={},
        )
    with OutputStore(output, run.layout, run.identity, resume=resume, overwrite=overwrite) as store:
        ready = run.prepare(store, progress=progress, callback=callback)
        job = run.job(store)
        missing, pixels = job.missing(), ready.pixels
        with Progress(
            "reconstruct", len(missing), enabled=progress, callback=callback, unit="tile"
        ) as bar:
            for receipt in runner(job, missing):
                pixels += receipt.pixels
                bar.advance(1)
        parameters = run.complete(store, ready, progress=progress, callback=callback)
    return StreamedReconstruction(
        path=Path(output),
        tiles=len(run.plan),
        resumed=len(run.plan) - len(missing),
        pixels_read=pixels,
        seconds=time.perf_counter() - begun,
        planned=run,
        parameters=parameters,
        adaptation=ready.evidence,
    )
