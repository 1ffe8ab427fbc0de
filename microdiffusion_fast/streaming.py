"""Reconstruction from disk to disk: stacks of any size, within a memory budget, resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .adaptation import AdaptOptions
from .denoiser import load_denoiser
from .device import resolve_device
from .preset_fast import GAMMA, MEAN_STEPS, SAMPLER
from .progress import Progress, ProgressCallback
from .schedule import SamplingPlan, make_plan
from .store_layout import Layout
from .store_output import OutputStore, is_finished
from .store_source import SlidingReader, open_stack
from .streaming_prepare import Prepared, prepare, stack_geometry
from .tensor_files import digest
from .tile_reconstruction import TileRecipe, reconstruct_tile
from .tiling import TilePlan
from .tiling_budget import Prediction, default_layout, fit_tiles, memory_bytes, predict


@dataclass(frozen=True)
class StreamedReconstruction:
    """What `stream_reconstruct` did.

    Attributes:
        path: the volume.
        tiles: tiles of the volume; 0 where the volume was complete already.
        resumed: how many of them an earlier run had finished.
        pixels_read: pixels of projections that the tiles read.
        seconds: of this run.
        prediction: memory, traffic and arithmetic, as planned; None where nothing was to be done.
        parameters: every option as resolved.
        adaptation: what was tried on this stack, and what was accepted.
    """

    path: Path
    tiles: int
    resumed: int
    pixels_read: int
    seconds: float
    prediction: Prediction | None
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
    device: str | torch.device | None = None,
    resume: bool = True,
    overwrite: bool = False,
    plan_only: bool = False,
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
        resume: go on with a run that was begun; False begins anew.
        overwrite: replace a volume that is there, once the new one is complete.
        plan_only: compute and write nothing; the result has the prediction.

    Raises:
        InputError: an argument that does not fit, a stack that is not complete, a run begun with
            other arguments or another stack, or no room.
        Cancelled: the callback returned False; what is finished is kept.

    Source: MicroDiffusion (arXiv 2403.10815); the project's DESIGN.md for what differs.
    """
    begun = time.perf_counter()
    budget = memory_bytes(memory)
    stack = open_stack(source)
    geometry = stack_geometry(
        stack,
        step_length=step_length,
        stride=stride,
        weights=weights,
        start=start,
        depth=depth,
        voxel_size=voxel_size,
    )
    place = resolve_device(device, torch.device("cpu"))
    training = AdaptOptions(steps=adapt_steps)
    network = load_denoiser(None if denoiser is None else Path(denoiser))
    shape = (geometry.depth, *stack.shape[1:])
    layout = Layout(
        shape, *default_layout(shape, geometry.stride, chunks), voxel_size=geometry.voxel_size
    )
    parameters: dict[str, Any] = {
        "step_length": geometry.step_length,
        "stride": geometry.stride,
        "start": geometry.start,
        "depth": geometry.depth,
        "weights": geometry.weights,
        "estimate": "posterior mean" if steps is None else "sample",
        "steps": steps,
        "sampler": sampler,
        "gamma": gamma,
        "guidance": guidance,
        "consistency": consistency,
        "adapt": adapt,
        "adapt_steps": training.steps if adapt else 0,
        "axial_blur": axial_blur,
        "seed": seed,
        "prior": "interpolation",
    }
    run = {
        **parameters,
        "input": stack.fingerprint(),
        "network": digest(network.state_dict()),
        "layout": asdict(layout),
        "version": _version(),
    }
    if resume and is_finished(output, run):
        seconds = time.perf_counter() - begun
        return StreamedReconstruction(Path(output), 0, 0, 0, seconds, None, parameters, {})

    def plan_of(length: int, ratio: float | None) -> SamplingPlan:
        return make_plan(
            length,
            sampler=sampler,
            gamma=gamma,
            guidance=guidance,
            consistency=consistency,
            noise_to_signal=ratio,
            spacing="snr" if sampler == "dpm++" else "time",
        )

    def recipe_of(ready: Prepared) -> TileRecipe:
        plan = plan_of(MEAN_STEPS if steps is None else steps, ready.noise_to_signal)
        return TileRecipe(
            denoiser=ready.denoiser.eval(),
            operator=geometry.operator,
            shape=shape,
            intensity=(ready.low, ready.high),
            chain=plan,
            chains=1,
            mean=None,
            axial_blur=ready.axial_blur,
            hard=consistency == "hard",
            seed=seed,
        )

    # planned before anything is computed or written: a budget that is too small shows at once
    soft = 0.0 if consistency == "soft" else None
    draft = recipe_of(Prepared(network, 0.0, 1.0, 0.0, soft, {}))
    footprint = draft.footprint(stack.dtype.itemsize)
    plan = fit_tiles(
        shape, draft.windows, draft.reach, shards=layout.shards, footprint=footprint, memory=budget
    )
    prediction = predict(plan, footprint, itemsize=stack.dtype.itemsize)
    if plan_only:
        seconds = time.perf_counter() - begun
        return StreamedReconstruction(
            Path(output), len(plan), 0, 0, seconds, prediction, parameters, {}
        )
    with OutputStore(output, layout, run, resume=resume, overwrite=overwrite) as store:
        ready = Prepared.load(store.folder)
        if ready is None:
            ready = prepare(
                stack,
                geometry,
                network,
                axial_blur=axial_blur,
                soft=consistency == "soft",
                train=adapt,
                options=training,
                seed=seed,
                progress=progress,
                callback=callback,
            )
            ready.save(store.folder)
        ready.denoiser.to(place)
        reader = SlidingReader(stack)
        resumed = _run_tiles(
            plan, recipe_of(ready), reader, store, place, progress=progress, callback=callback
        )
        with Progress(
            "coarser levels", store.missing(), enabled=progress, callback=callback, unit="shard"
        ) as bar:
            store.coarsen(bar.advance)
        parameters |= {"axial_blur": ready.axial_blur, "intensity_range": [ready.low, ready.high]}
        metadata = {"kind": "reconstruction", "parameters": parameters}
        store.finish({**metadata, "adaptation": ready.evidence})
    return StreamedReconstruction(
        path=Path(output),
        tiles=len(plan),
        resumed=resumed,
        pixels_read=reader.pixels,
        seconds=time.perf_counter() - begun,
        prediction=prediction,
        parameters=parameters,
        adaptation=ready.evidence,
    )


def _run_tiles(
    plan: TilePlan,
    recipe: TileRecipe,
    reader: SlidingReader,
    store: OutputStore,
    place: torch.device,
    *,
    progress: bool,
    callback: ProgressCallback | None,
) -> int:
    """Compute and write every tile that is not finished; returns how many were."""
    resumed = 0
    with Progress(
        "reconstruct", len(plan), enabled=progress, callback=callback, unit="tile"
    ) as bar:
        for tile in plan:
            if all(store.has(shard) for shard in plan.shards_of(tile)):
                resumed += 1
            else:
                images = torch.from_numpy(reader.read(tile.read)).to(place)
                core, _ = reconstruct_tile(tile, images, recipe)
                store.write(tile.core, core.cpu().numpy(), plan.shards_of(tile))
            bar.advance(1)
    return resumed


def _version() -> str:
    from importlib.metadata import version

    return version("microdiffusion-fast")
