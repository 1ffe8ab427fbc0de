"""The tiles of a streamed reconstruction: one job that any process can take a tile of.

A `TileJob` is small and picklable: it names the stack, the folder of the unfinished volume and what
was asked for. The weights and the intensity range lie in that folder, as `Prepared` left them. A
`TileWorker` opens all of this once, and keeps it from tile to tile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .device import resolve_device
from .errors import InputError, naming
from .forward_model import AxialProjection
from .preset_fast import MEAN_STEPS
from .schedule import Consistency, SamplingPlan, make_plan
from .store_layout import Layout
from .store_reader import TileReader
from .store_shards import ShardWriter
from .store_source import open_stack
from .streaming_prepare import Prepared
from .streaming_upload import Uploaded, Uploader
from .tile_reconstruction import TileRecipe, reconstruct_tile
from .tiling import TilePlan


@dataclass(frozen=True)
class Choices:
    """What a streamed reconstruction was asked for, beside the stack; as in `reconstruct`."""

    steps: int | None
    sampler: Literal["ddim", "ddpm", "dpm++"]
    gamma: float
    guidance: float
    consistency: Consistency | None
    seed: int

    def recipe(
        self,
        ready: Prepared,
        operator: AxialProjection,
        size: tuple[int, int],
        *,
        stated: bool = False,
    ) -> TileRecipe:
        """What all tiles of a stack with images of `size` (y, x) share; their uncertainty is
        `stated`, or not."""
        steps = MEAN_STEPS if self.steps is None else self.steps
        hard = ready.consistency == "hard"
        floor = 2 * ready.slice_noise if hard else 0.0  # in network units
        return TileRecipe(
            denoiser=ready.denoiser.eval(),
            operator=operator,
            shape=(operator.depth, *size),
            intensity=(ready.low, ready.high),
            chain=self._plan(steps, ready),
            chains=1,
            mean=None,
            axial_blur=ready.axial_blur,
            hard=hard,
            seed=self.seed,
            floor=floor if stated else None,
        )

    def _plan(self, length: int, ready: Prepared) -> SamplingPlan:
        return make_plan(
            length,
            sampler=self.sampler,
            gamma=self.gamma,
            guidance=self.guidance,
            consistency=ready.consistency,
            noise_to_signal=ready.noise_to_signal,
            spacing="snr" if self.sampler == "dpm++" else "time",
        )


class Unfinished(NamedTuple):
    """A store that is being written: its folder, prepared, and its token, see `ShardWriter`."""

    folder: Path
    token: str


@dataclass(frozen=True)
class TileJob:
    """All that a process needs to compute any tile of one run.

    Attributes:
        key: equal for equal jobs, of any process.
        source: the stack.
        volume: unfinished; its folder has the weights.
        deviation: likewise, of the uncertainty; None where none is to be written.
        layout: of both.
        plan: its tiles.
        keep: bytes that one process may keep of chunks that several tiles need.
        operator: the acquisition.
        choices: what was asked for.
        device: where to compute.
        threads: of the CPU: convolutions round by their number, so all processes take the same.
    """

    key: str
    source: Path
    volume: Unfinished
    deviation: Unfinished | None
    layout: Layout
    plan: TilePlan
    keep: int
    operator: AxialProjection
    choices: Choices
    device: str
    threads: int

    def writers(self) -> list[ShardWriter]:
        """Of the volume, and of its uncertainty where that is to be written."""
        places = (self.volume, self.deviation)
        return [ShardWriter(at.folder, self.layout, at.token) for at in places if at is not None]

    def missing(self) -> list[int]:
        """The tiles that are not finished, in the order of the plan."""
        writers = self.writers()
        return [
            number
            for number, tile in enumerate(self.plan)
            if not all(writer.has_all(self.plan.shards_of(tile)) for writer in writers)
        ]


class TileReceipt(NamedTuple):
    """What became of one tile: its number in the plan, pixels read for it, seconds it took."""

    tile: int
    pixels: int
    seconds: float


class TileWorker:
    """Everything that stays open from tile to tile; for one thread.

    While a tile is computed, a thread reads the projections of the one that follows.

    Raises:
        InputError: the stack cannot be opened, or the run is not prepared.
    """

    def __init__(self, job: TileJob) -> None:
        self.job = job
        self.place = resolve_device(job.device, torch.device("cpu"))
        ready = Prepared.load(job.volume.folder)
        if ready is None:
            raise InputError("output", "a run that is prepared", str(job.volume.folder))
        ready.denoiser.to(self.place)
        stack = open_stack(job.source)
        integers = job.layout.dtype == "uint16"
        self.scaling = ready.scaling(job.operator.step_length) if integers else None
        self.deviation_scaling = ready.deviation_scaling() if integers else None
        self.recipe = job.choices.recipe(
            ready, job.operator, stack.shape[1:], stated=job.deviation is not None
        )
        self.reader = TileReader(stack, job.plan, keep=job.keep)
        self.writers = job.writers()
        self.uploader = Uploader(self.place)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read")  # all reads, in order
        self._ahead: tuple[int, Future[tuple[Uploaded, int]]] | None = None
        self._halved = False

    def __enter__(self) -> TileWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread that reads."""
        self._thread.shutdown(cancel_futures=True)

    def has(self, number: int) -> bool:
        """Whether a tile is finished."""
        plan = self.job.plan
        return all(writer.has_all(plan.shards_of(plan[number])) for writer in self.writers)

    def run(self, number: int, following: int | None = None) -> TileReceipt:
        """Read, compute and write one tile; its shards have their receipts when this returns.

        Args:
            number: of the tile.
            following: of the tile that will be asked for next, if that is known.

        Raises:
            InputError: it cannot be read or written, or is not finite: nothing of it is written.
        """
        begun = time.perf_counter()
        plan = self.job.plan
        tile = plan[number]
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != number:
            ahead = number, self._thread.submit(self._read, number)
        images, pixels = ahead[1].result()
        del ahead  # the projections are gone when they are no longer needed
        if following is not None:
            self._ahead = following, self._thread.submit(self._read, following)
        with with_threads(self.job.threads):
            core, deviation = self._compute(number, images)
        del images
        for made in (core, deviation):
            if made is not None and not bool(made.sum(dtype=torch.float64).isfinite()):  # no copy
                z, y, x = (f"{span.start}:{span.stop}" for span in tile.core)
                got = f"NaN or Inf in tile {number}, voxels [{z}, {y}, {x}]"
                raise InputError("denoiser", "weights that give finite intensities", got)
        shards = list(plan.shards_of(tile))
        if deviation is not None:  # first: a tile whose volume has its receipts is done
            with naming(output="uncertainty"):
                self.writers[1].write(
                    tile.core, deviation.numpy(), shards, scaling=self.deviation_scaling
                )
        self.writers[0].write(tile.core, core.numpy(), shards, scaling=self.scaling)
        return TileReceipt(number, pixels, time.perf_counter() - begun)

    def _read(self, number: int) -> tuple[Uploaded, int]:
        """Projections of a tile, and how many pixels were decoded for them."""
        before = self.reader.pixels
        block = self.reader.read(number)
        return self.uploader.send(block), self.reader.pixels - before

    def _compute(self, number: int, images: Uploaded) -> tuple[Tensor, Tensor | None]:
        """The core of a tile, and its deviation where that is written, on the host; in two halves
        from the first tile that a GPU had no room for.

        Raises:
            InputError: there is no room for half a tile either.
        """
        tile = self.job.plan[number]
        if not self._halved:
            try:
                core, deviation = reconstruct_tile(tile, images.wait(), self.recipe)
                return core.cpu(), None if deviation is None else deviation.cpu()
            except torch.cuda.OutOfMemoryError:
                self._halved = True
        torch.cuda.empty_cache()
        whole = [torch.empty(tile.core.shape) for _ in self.writers]
        block = self._thread.submit(self.reader.read, number).result()  # the images are overwritten
        for half in self.job.plan.halves(tile):
            part = torch.from_numpy(block[half.read.within(tile.read)].astype(np.float32))
            try:
                made = reconstruct_tile(half, part.to(self.place), self.recipe)
            except torch.cuda.OutOfMemoryError as error:
                expected = "a budget whose tiles fit into the device twice over"
                raise InputError("memory", expected, f"{error}".partition("\n")[0]) from error
            for both, found in zip(whole, made, strict=False):
                assert found is not None
                both[half.core.within(tile.core)] = found.cpu()
        return whole[0], whole[1] if len(whole) > 1 else None


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """The block computes with that many threads: their number changes the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_tiles(job: TileJob, tiles: Sequence[int]) -> Iterator[TileReceipt]:
    """Tiles of a job in this process, one after the other: the simplest `Runner`."""
    with TileWorker(job) as worker:
        for number, following in zip_longest(tiles, tiles[1:]):
            yield worker.run(number, following)


Runner = Callable[[TileJob, Sequence[int]], Iterable[TileReceipt]]
