"""One run of a streamed reconstruction, as planned: what it is, its tiles, and what they will cost.

Planning opens the stack and reads none of it. `prepare`, `job` and `complete` are what lies before
and after the tiles, whoever computes those.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from .adaptation import AdaptOptions
from .denoiser import Denoiser, load_for
from .device import parse_device
from .errors import InputError
from .progress import Progress, ProgressCallback
from .projections import Projections
from .provenance import version_of
from .schedule import Consistency
from .store_layout import Layout
from .store_levels import coarsen, coarsening_bytes, missing_shards
from .store_reader import cell_of, pixels_to_decode, reading_bytes
from .store_source import StoredStack, open_stack
from .streaming_outputs import UNCERTAINTY, Outputs
from .streaming_prepare import Prepared, prepare, stack_geometry
from .streaming_tiles import Choices, TileJob, Unfinished, with_threads
from .tensor_files import digest
from .tile_survey import pixels_to_survey
from .tiling import TilePlan
from .tiling_budget import Prediction, default_layout, fit_tiles, memory_bytes, predict


@dataclass(frozen=True, eq=False)
class StreamRun:
    """A run that is planned.

    Attributes:
        stack: the projections on disk.
        geometry: of their acquisition; its images are a stand-in.
        networks: for projections that are quiet (False) or noisy, as loaded, not yet adapted.
        training: budget of the adaptation.
        choices: what was asked for.
        layout: of the output.
        plan: tiles.
        keep: bytes for chunks of the stack that several tiles need.
        prediction: what they will cost.
        parameters: every option as resolved.
        identity: what makes two runs the same one, see `OutputStore`.
        device: where to compute; whoever computes finds out whether it is there.
    """

    stack: StoredStack
    geometry: Projections
    networks: Mapping[bool, Denoiser]
    training: AdaptOptions
    choices: Choices
    layout: Layout
    plan: TilePlan
    keep: int
    prediction: Prediction
    parameters: dict[str, Any]
    identity: dict[str, Any]
    device: torch.device

    @property
    def stated(self) -> bool:
        """Whether the uncertainty is written too."""
        return UNCERTAINTY in self.parameters

    def prepare(
        self, outputs: Outputs, *, progress: bool, callback: ProgressCallback | None
    ) -> Prepared:
        """Range, noise and weights for all tiles: found out now, or by the run that was begun."""
        store = outputs.volume
        # of several processes one finds out, the others wait for it
        turn = store.turn("prepare", whose="the process that looks at the stack for all")
        with turn, with_threads(store.settings["threads"]):
            ready = Prepared.load(store.folder)
            if ready is None:
                ready = prepare(
                    self.stack,
                    self.geometry,
                    self.networks,
                    axial_blur=self.parameters["axial_blur"],
                    consistency=self.choices.consistency,
                    train=self.parameters["adapt"],
                    stated=self.stated,
                    options=self.training,
                    seed=self.choices.seed,
                    progress=progress,
                    callback=callback,
                )
                ready.save(store.folder)
        return ready

    def job(self, outputs: Outputs) -> TileJob:
        """The tiles, for whoever computes them; after `prepare`."""
        volume, *beside = (Unfinished(store.folder, store.token) for store in outputs.stores)
        words = json.dumps([self.identity, self.plan.core, volume, beside], default=str)
        return TileJob(
            key=hashlib.sha256(words.encode()).hexdigest(),
            source=self.stack.path.resolve(),
            volume=volume,
            deviation=beside[0] if beside else None,
            layout=self.layout,
            plan=self.plan,
            keep=self.keep,
            operator=self.geometry.operator,
            choices=self.choices,
            device=str(self.device),
            threads=outputs.volume.settings["threads"],
        )

    def complete(
        self,
        outputs: Outputs,
        ready: Prepared,
        *,
        progress: bool,
        callback: ProgressCallback | None,
    ) -> dict[str, Any]:
        """Make the coarser resolutions and put all in its place, when all tiles are there.

        Returns:
            The parameters, with what `prepare` found out.

        Raises:
            InputError: a tile is missing, the stack changed meanwhile, or there is no room.
        """
        self._refuse_change()
        with Progress(
            "coarser levels",
            sum(missing_shards(store.shards) for store in outputs.stores),
            enabled=progress,
            callback=callback,
            unit="shard",
        ) as bar:
            for store in outputs.stores:
                coarsen(store.shards, bar.advance)
        found = {
            "axial_blur": ready.axial_blur,
            "intensity_range": [ready.low, ready.high],
            "consistency": ready.consistency,
            "noise_to_signal": ready.noise_to_signal,
        }
        parameters = self.parameters | found
        scalings = (ready.scaling(self.geometry.step_length), ready.deviation_scaling())
        metadata: list[dict[str, Any]] = [{"kind": "reconstruction"}, {"kind": UNCERTAINTY}]
        if self.layout.dtype == "uint16":
            names = ("clipped", "uncertainty_clipped")
            for name, store in zip(names, outputs.stores, strict=False):
                parameters[name] = store.shards.clipped()
            for about, scaling in zip(metadata, scalings, strict=True):
                about |= scaling.metadata()
        for about in metadata:
            about |= {"parameters": parameters, "adaptation": ready.evidence}
        outputs.finish(*metadata)
        return parameters

    def _refuse_change(self) -> None:
        """A stack that changed may have been read in part before and in part after; and a chunk
        that is gone from a Zarr store is read as zeros."""
        try:
            unchanged = self.stack.fingerprint() == self.identity["input"]
        except OSError:  # a file vanished
            unchanged = False
        if not unchanged:
            expected = "a stack that stays as it is during the run"
            got = f"{self.stack.path}, whose files changed (resume=False begins anew)"
            raise InputError("projections", expected, got)


def plan_stream(
    source: str | os.PathLike[str],
    *,
    step_length: int | None,
    stride: int | None,
    weights: Sequence[float] | None,
    start: int | None,
    depth: int | None,
    voxel_size: Sequence[float] | None,
    steps: int | None,
    sampler: Literal["ddim", "ddpm", "dpm++"],
    gamma: float,
    guidance: float,
    consistency: Literal["hard", "soft", "off"] | None,
    adapt: bool,
    adapt_steps: int | None,
    axial_blur: float | None,
    denoiser: str | Path | None,
    seed: int,
    memory: int | str,
    chunks: Sequence[int] | None,
    dtype: Literal["float32", "uint16"],
    device: str | torch.device | None,
    uncertainty: str | None,
) -> StreamRun:
    """Plan a run: every argument checked, nothing computed or written; see `stream_reconstruct`.

    `uncertainty` is the name of `name_beside`.

    Raises:
        InputError: an argument that does not fit, a stack that is not complete, or a budget that
            not even the smallest tile fits into.
    """
    budget = memory_bytes(memory)
    if dtype not in ("float32", "uint16"):
        raise InputError("dtype", "'float32' or 'uint16'", repr(dtype))
    if uncertainty is not None and steps is not None:
        expected = "the posterior mean with it, which states its own: no number of steps"
        raise InputError(UNCERTAINTY, expected, f"{uncertainty} with steps {steps}")
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
    place = parse_device(device, torch.device("cpu"))
    training = AdaptOptions(steps=adapt_steps)
    if consistency not in (None, *get_args(Consistency)):
        raise InputError("consistency", "'hard', 'soft' or 'off'", repr(consistency))
    # which of two it will be, the noise decides when the run is prepared
    kinds = (True,) if consistency == "soft" else (False, True)
    path = None if denoiser is None else Path(denoiser)
    networks = {noisy: load_for(path, noisy=noisy) for noisy in kinds}
    network = networks[kinds[0]]
    shape = (geometry.depth, *stack.shape[1:])
    layout = Layout(
        shape,
        *default_layout(shape, geometry.stride, chunks),
        voxel_size=geometry.voxel_size,
        dtype=dtype,
    )
    choices = Choices(steps, sampler, gamma, guidance, consistency, seed)
    parameters: dict[str, Any] = {
        "step_length": geometry.step_length,
        "stride": geometry.stride,
        "start": geometry.start,
        "depth": geometry.depth,
        "weights": geometry.weights,
        "estimate": "posterior mean" if steps is None else "sample",
        **asdict(choices),
        "adapt": adapt,
        "adapt_steps": training.steps if adapt else 0,
        "axial_blur": axial_blur,
        "prior": "interpolation",
    }
    if uncertainty is not None:
        parameters[UNCERTAINTY] = uncertainty
    identity = {
        **parameters,
        "input": stack.fingerprint(),
        "network": [digest(network.state_dict()) for network in networks.values()],
        "layout": asdict(layout),
        "version": version_of("microdiffusion-fast"),
    }
    # a budget that is too small shows before anything is computed or written
    stated = uncertainty is not None
    draft = choices.recipe(
        Prepared.draft(network), geometry.operator, stack.shape[1:], stated=stated
    )
    itemsize = stack.dtype.itemsize
    footprint = draft.footprint(itemsize, cell_of(stack)[0], chunk=reading_bytes(stack))
    plan = fit_tiles(
        shape, draft.windows, draft.reach, shards=layout.shards, footprint=footprint, memory=budget
    )
    # what the tiles leave is for chunks that neighbours share
    keep = budget - predict(plan, replace(footprint, held=0), pixels=0, itemsize=itemsize).memory
    pixels = pixels_to_decode(stack, plan, keep=keep) + pixels_to_survey(stack, seed=seed)
    written = np.dtype(dtype).itemsize * (2 if stated else 1)
    prediction = predict(plan, footprint, pixels=pixels, itemsize=itemsize, written=written)
    # when the tiles are done, and what they took is free again; hardly ever more than a tile
    coarsening = footprint.fixed + coarsening_bytes(layout)
    return StreamRun(
        stack=stack,
        geometry=geometry,
        networks=networks,
        training=training,
        choices=choices,
        layout=layout,
        plan=plan,
        keep=keep,
        prediction=replace(prediction, memory=max(prediction.memory, coarsening)),
        parameters=parameters,
        identity=identity,
        device=place,
    )
