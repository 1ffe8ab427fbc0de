"""Quality against step length for volumes on disk that are larger than memory.

Every step length is projected, reconstructed and compared from disk to disk, as `simulate`,
`reconstruct` and `evaluate` do with `--memory`, whose numbers these are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion_fast.cli_support import OUTPUT, VOLUME, naming
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.experiments import STEP_LENGTHS
from microdiffusion_fast.experiments_checks import sorted_integers
from microdiffusion_fast.experiments_cuts import Cuts
from microdiffusion_fast.experiments_figures import Scene, draw_step_lengths, step_length_lines
from microdiffusion_fast.experiments_interpolated import METHODS, interpolated, memory_of_slabs
from microdiffusion_fast.experiments_methods import Entry
from microdiffusion_fast.experiments_page import Sweeping
from microdiffusion_fast.experiments_results import Sweep, finish, identity_of, rows_of
from microdiffusion_fast.experiments_store import Cell, Store
from microdiffusion_fast.experiments_subject import Options
from microdiffusion_fast.experiments_volumes import place_of, remove_left
from microdiffusion_fast.io_output import refuse_input
from microdiffusion_fast.metrics_ranks import stored_percentiles
from microdiffusion_fast.metrics_stream import evaluate_stored, slabs_of
from microdiffusion_fast.progress import Progress, ProgressCallback, ProgressEvent
from microdiffusion_fast.report_style import Volume
from microdiffusion_fast.simulate_stream import geometry_of, simulate_stored
from microdiffusion_fast.store_source import StoredStack, open_stack
from microdiffusion_fast.streaming import stream_reconstruct
from microdiffusion_fast.tiling_budget import memory_bytes
from microdiffusion_fast.tiling_windows import Box, Span

# Of a block for the pictures; its first slice is a multiple of the depth, where a window of each of
# STEP_LENGTHS begins, as at the first slice of a volume.
BLOCK = (120, 160, 160)
_SCORED = "PSNR and SSIM: means over all slices; DICE: of their volume."
_NAMES = {
    "path": VOLUME,
    "volume": VOLUME,
    "reference": VOLUME,
    "projections": "--step-lengths",
    "step_length": "--step-lengths",
    "memory": "--memory",
    "output": OUTPUT,
}
# the volume was read: what is at fault now lies in the folder
_WITHIN = _NAMES | {"path": OUTPUT, "projections": OUTPUT, "resume": OUTPUT}


@dataclass(frozen=True, eq=False)
class _Subject:
    """The volume: where it is, what is 0 and 255 in it, its budget, and the block to be shown."""

    truth: StoredStack
    intensity: tuple[float, float]
    memory: int
    block: Box

    @classmethod
    def of(cls, path: Path, memory: int) -> _Subject:
        truth = open_stack(path)
        low, high = stored_percentiles(truth, (0.1, 99.9), slabs_of(truth, truth, memory))
        if not low < high:
            expected = "a 0.1 percentile below the 99.9 percentile"
            raise InputError(VOLUME, expected, f"{low:g} for both")
        return cls(truth, (low, high), memory, block_of(truth.shape))

    @property
    def record(self) -> dict[str, Any]:
        """What identifies it: its contents are too many for a digest."""
        return {
            "shape": list(self.truth.shape),
            "voxel_size": self.truth.voxel_size,
            "intensity": list(self.intensity),
            "files": self.truth.fingerprint(),
        }

    def scores(self, volume: StoredStack, memory: int) -> dict[str, float]:
        return evaluate_stored(
            volume, self.truth, intensity=self.intensity, memory=memory
        ).as_dict()

    def shown(self, volume: StoredStack) -> Volume:
        """The block of a volume that pictures are of."""
        return volume.read(self.block).astype(np.float32, copy=False)


def block_of(shape: tuple[int, int, int]) -> Box:
    """A block in the middle of a volume; all of a small one."""
    depth, height, width = (min(n, most) for n, most in zip(shape, BLOCK, strict=True))
    z = (shape[0] - depth) // 2 // BLOCK[0] * BLOCK[0]
    y, x = (shape[1] - height) // 2, (shape[2] - width) // 2
    return Box(Span(z, z + depth), Span(y, y + height), Span(x, x + width))


def sweep_step_length_stored(
    volume: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    step_lengths: Sequence[int] = STEP_LENGTHS,
    adapt: bool = True,
    adapt_steps: int | None = None,
    axial_blur: float | None = None,
    seed: int = 0,
    device: str | None = None,
    memory: int | str = "4GiB",
    keep: bool = False,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> Sweep:
    """`experiments.sweep_step_length` for a volume on disk that is larger than memory.

    It differs in this: no INR, neither as a method nor as a prior (`stream_reconstruct`); the
    volume is projected as it is, not limited to its percentiles; all its slices are scored, also
    those that no window covers; pictures are of a block in its middle.

    Args:
        volume: the truth [Z, Y, X]: Zarr store, TIFF or NPY.
        output: folder of the results; one that holds part of this very sweep is completed.
        step_lengths, adapt, adapt_steps, axial_blur, seed, device: as in `sweep_step_length`.
        memory: what each computation may take, such as "4GiB".
        keep: leave projections and reconstructions in the folder's `volumes`; otherwise they are
            removed when their step length is done.
        progress, callback: as in `sweep_step_length`.

    Raises:
        InputError: a volume or a step length that cannot be projected, a budget that is too small,
            or a folder of something else; the message names it as the command line does.
        Cancelled: the callback returned False.
    """
    wanted = sorted_integers("--step-lengths", step_lengths)
    options = Options(
        preset="fast",
        adapt=adapt,
        adapt_steps=adapt_steps,
        axial_blur=axial_blur,
        seed=seed,
        device=device,
    )
    with naming(**_NAMES):
        refuse_input(Path(output), Path(volume))
        subject = _Subject.of(Path(volume), memory_bytes(memory))
        counts = {n: geometry_of(subject.truth, step_length=n).operator.count for n in wanted}
    settings = {**asdict(options), "from_disk": True}
    identity = identity_of("step-length", subject.record, settings)
    cells: dict[str, Cell] = {}
    with Store(Path(output), identity) as store:
        entries = {length: _entries(length, count) for length, count in counts.items()}
        for entry in (entry for found in entries.values() for entry in found):
            cell = store.load(entry.name, entry.key)
            cells |= {} if cell is None else {entry.name: cell}
        missing = [n for n in wanted if any(e.name not in cells for e in entries[n])]
        remove_left(store, [entries[n][0] for n in wanted if n not in missing])
        cuts = _cuts(subject)
        with Progress(
            "sweep", len(missing), enabled=progress, callback=callback, unit="step length"
        ) as bar:
            for length in missing:

                def tell(event: ProgressEvent, length: int = length) -> None:
                    of = "" if event.total is None else f"/{event.total}"
                    bar.advance(0, note=f"step length {length}: {event.stage} {event.done}{of}")

                with place_of(store, entries[length][0], keep=keep) as folder:
                    left = [e for e in entries[length] if e.name not in cells]
                    for entry, cell in _compute(subject, cuts, folder, left, options, tell):
                        cells[entry.name] = store.keep(entry.name, entry.key, cell)
                bar.advance(1, note=f"step length {length}")
        rows = rows_of([entry for n in wanted for entry in entries[n]], cells)
        images = {row["step_length"]: cell.images for row, cell in rows if row["method"] == "fast"}
        plain = [row for row, _ in rows]
        scene = _scene(subject, cuts)
        page = draw_step_lengths(scene, plain, images, method="fast")
        shown = Sweeping(
            parameter="step length",
            column="step_length",
            found=rows,
            method="fast",
            lines=step_length_lines(plain),
        )
        return finish(store, _name(subject), scene, shown, page)


def _entries(length: int, count: int) -> list[Entry]:
    at = {"step_length": length, "speed_up": length, "projections": count}
    return [Entry(name, at, f"step-length-{length:02d}") for name in (*METHODS, "fast")]


def _compute(
    subject: _Subject,
    cuts: Cuts,
    folder: Path,
    entries: Sequence[Entry],
    options: Options,
    callback: ProgressCallback,
) -> Iterator[tuple[Entry, Cell]]:
    """The cells of a step length that are missing; its volumes lie in a folder."""
    truth, memory, length = subject.truth, subject.memory, entries[0].at["step_length"]
    path = folder / "projections.ome.zarr"
    if not path.exists():
        with naming(**_NAMES):
            simulate_stored(
                truth,
                path,
                step_length=length,
                seed=options.seed,
                memory=memory,
                callback=callback,
            )
    with naming(**_WITHIN):
        stack = open_stack(path)
        found = interpolated(stack, truth.shape[0], length)
        for entry in (entry for entry in entries if entry.method in found):
            volume = found[entry.method]
            scores = subject.scores(volume, memory_of_slabs(stack, memory))
            yield entry, Cell(scores, cuts.take(subject.shown(volume)), {})
        for entry in (entry for entry in entries if entry.method not in found):
            done = stream_reconstruct(
                path,
                folder / "reconstruction.ome.zarr",
                adapt=options.adapt,
                adapt_steps=options.adapt_steps,
                axial_blur=options.axial_blur,
                seed=options.seed,
                device=options.device,
                memory=memory,
                callback=callback,
            )
            accepted = done.adaptation.get("accepted")
            notes = {} if accepted is None else {"adaptation_accepted": accepted}
            volume = open_stack(done.path)
            scores = subject.scores(volume, memory)
            images = cuts.take(subject.shown(volume))
            yield entry, Cell(scores, images, {"seconds": done.seconds, **notes})


def _cuts(subject: _Subject) -> Cuts:
    origin = subject.block.offset[:2]
    return Cuts.of(
        subject.shown(subject.truth), subject.truth.voxel_size, STEP_LENGTHS, origin=origin
    )


def _scene(subject: _Subject, cuts: Cuts) -> Scene:
    note = "The fast preset from disk to disk, from ever fewer projections."
    if subject.block.shape != subject.truth.shape:
        ranges = (f"{axis} {a}-{b - 1}" for axis, (a, b) in zip("zyx", subject.block, strict=True))
        note += f" Pictures: the block {', '.join(ranges)}."
    return Scene(
        truth=subject.shown(subject.truth),
        cuts=cuts,
        unit="voxels" if subject.truth.voxel_size is None else "µm",
        title=f"{_name(subject)}: quality against acquisition speed",
        note=note,
        scored=_SCORED,
    )


def _name(subject: _Subject) -> str:
    return subject.truth.path.name.partition(".")[0]
