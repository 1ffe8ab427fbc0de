"""What a sweep computes: the methods, and what several of their cells share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from microdiffusion_fast import metrics
from microdiffusion_fast.adaptation import AdaptOptions, adapt
from microdiffusion_fast.cli_support import VOLUME, naming, read_image
from microdiffusion_fast.demo import baselines
from microdiffusion_fast.denoiser import load_denoiser, save_denoiser
from microdiffusion_fast.device import resolve_device
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.experiments_store import Store, array_hash
from microdiffusion_fast.inr import FourierOptions, INROptions, fit_inr
from microdiffusion_fast.progress import ProgressCallback
from microdiffusion_fast.projection_checks import as_images, check_images
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.reconstruct import Reconstruction, reconstruct
from microdiffusion_fast.schedule_gamma import GammaSchedule
from microdiffusion_fast.simulate import simulate_projections

ALL_STEPS = 1000
CONSISTENT = "+consistency"
Volume = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings that all cells of a sweep share; see `experiments.sweep_gamma`."""

    preset: Literal["fast", "paper"]
    steps: int | Literal["exact"] | None = None
    consistency: Literal["hard", "off"] | None = None
    adapt: bool = True
    adapt_steps: int | None = None
    axial_blur: float | None = None
    inr_steps: int | None = None
    train_steps: int | None = None
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if self.preset not in ("fast", "paper"):
            raise InputError("--preset", "'fast' or 'paper'", repr(self.preset))
        if self.preset == "fast" and self.train_steps is not None:
            raise InputError("--train-steps", "none with --preset fast", self.train_steps)
        # what a run would refuse later is refused before the folder is made
        resolve_device(self.device, torch.device("cpu"))
        if self.axial_blur is not None and not 0 <= self.axial_blur <= 20:
            raise InputError("--axial-blur", "a sigma in slices from 0 to 20", self.axial_blur)
        if self.adapt_steps is not None:
            AdaptOptions(steps=self.adapt_steps)
        if self.inr_steps is not None:
            INROptions(steps=self.inr_steps)


@dataclass(frozen=True, eq=False)
class Subject:
    """The volume of the experiment.

    Attributes:
        name: for the headline.
        truth: [Z, Y, X], limited to its 0.1 and 99.9 percentiles.
        intensity: these percentiles: the grey levels 0 and 255.
        voxel_size: (z, y, x) in micrometres, where the file says.
    """

    name: str
    truth: Volume
    intensity: tuple[float, float]
    voxel_size: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, volume: str | os.PathLike[str] | Volume) -> Subject:
        """Read or take a volume.

        Raises:
            InputError: naming `VOLUME`.
        """
        name, size = "volume", None
        with naming(reference=VOLUME, projections=VOLUME):
            if isinstance(volume, str | os.PathLike):
                image, truth = read_image(Path(volume), VOLUME)
                name, size = Path(volume).name.partition(".")[0], image.voxel_size
            else:
                tensor, _ = as_images(volume)
                check_images(tensor)
                truth = tensor.numpy()
            window = metrics.intensity_window(truth)
        return cls(name, np.clip(truth, *window), window, size)

    @property
    def record(self) -> dict[str, Any]:
        """What identifies it, as plain values; its name does not."""
        shape, size = list(self.truth.shape), self.voxel_size
        return {"shape": shape, "voxel_size": size, "sha256": array_hash(self.truth)}

    def project(self, step_length: int, seed: int) -> Projections:
        """Its disjoint projections, without noise."""
        return simulate_projections(
            self.truth, step_length=step_length, seed=seed, voxel_size=self.voxel_size
        )


@dataclass(frozen=True, eq=False)
class Entry:
    """One cell to be: a method at one parameter.

    Attributes:
        method: as in the tables.
        at: the parameter, as columns of the table.
        place: the parameter in the name of the file.
        whole: keep the volume, which other cells need.
    """

    method: str
    at: Mapping[str, Any]
    place: str
    whole: bool = False

    @property
    def name(self) -> str:
        return f"{self.place}_{self.method}"

    @property
    def key(self) -> dict[str, Any]:
        return {"method": self.method, **self.at}


@dataclass(frozen=True, eq=False)
class Made:
    """A volume [Z, Y, X] in the units of the input, and notes such as the seconds it took."""

    entry: Entry
    volume: Volume
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Task:
    """One computation that gives several cells.

    Attributes:
        title: for the progress.
        stack: what it starts from.
        entries: the cells.
        compute: makes them one after the other; told which are wanted, by name.
    """

    title: str
    stack: Projections
    entries: tuple[Entry, ...]
    compute: Callable[[set[str], ProgressCallback], Iterator[Made]]


def step_length_tasks(store: Store, stack: Projections, options: Options) -> list[Task]:
    """All methods on one stack: those without training, and the paper's where it is asked for."""
    length = stack.step_length
    at = {"step_length": length, "speed_up": stack.stride, "projections": len(stack.images)}
    place = f"step-length-{length:02d}"
    simple = [Entry(name, at, place) for name in baselines(stack)]
    inr, fast = Entry("inr", at, place), Entry("fast", at, place)
    fourier, paper = Entry("fourier-inr", at, place), Entry("paper", at, place)

    def without_training(wanted: set[str], callback: ProgressCallback) -> Iterator[Made]:
        for entry, volume in zip(simple, baselines(stack).values(), strict=True):
            yield Made(entry, volume)
        if wanted & {inr.name, fast.name}:
            result = reconstruct(
                stack,
                adapt=options.adapt,
                adapt_steps=options.adapt_steps,
                axial_blur=options.axial_blur,
                inr_steps=options.inr_steps,
                seed=options.seed,
                device=options.device,
                callback=callback,
            )
            yield Made(inr, result.prior)
            yield Made(fast, result.volume, _notes(result))

    def published(wanted: set[str], callback: ProgressCallback) -> Iterator[Made]:
        begun = time.perf_counter()
        with _Checkpoint(store, stack, options, callback, name=place) as checkpoint:
            result = checkpoint.reconstruct()
        yield Made(fourier, result.prior)
        notes = {**_notes(result), "seconds": time.perf_counter() - begun}
        yield Made(paper, result.volume, notes)

    title = f"step length {length}"
    tasks = [Task(title, stack, (*simple, inr, fast), without_training)]
    if options.preset == "paper":
        tasks.append(Task(f"{title}, paper", stack, (fourier, paper), published))
    return tasks


def gamma_tasks(
    store: Store,
    stack: Projections,
    options: Options,
    gammas: Sequence[float],
    schedules: Sequence[GammaSchedule],
) -> list[Task]:
    """What does not depend on gamma, once; then one task a gamma, with all its schedules."""
    nowhere = {"gamma": None, "gamma_schedule": None}
    simple = [Entry(name, nowhere, "baseline") for name in baselines(stack)]
    inr = Entry("inr", nowhere, "baseline", whole=True)
    fast = Entry("fast", nowhere, "baseline")
    fourier = Entry("fourier-inr", nowhere, "baseline")
    shared = _Shared(store, stack, options, inr)

    def baseline(wanted: set[str], callback: ProgressCallback) -> Iterator[Made]:
        for entry, volume in zip(simple, baselines(stack).values(), strict=True):
            yield Made(entry, volume)
        if inr.name in wanted:
            yield Made(inr, shared.fit(callback))
        if fast.name in wanted:
            result = shared.reconstruct(callback)
            yield Made(fast, result.volume, _notes(result))
        if fourier.name in wanted:
            yield Made(fourier, _fourier(stack, options, callback))

    found = (*simple, inr, fast, *([fourier] if options.preset == "paper" else []))
    tasks = [Task("baselines", stack, found, baseline)]
    for gamma in gammas:
        entries = {
            kind: [
                Entry(name, {"gamma": gamma, "gamma_schedule": kind}, f"gamma-{gamma:g}-{kind}")
                for name in chain_names(options)
            ]
            for kind in schedules
        }
        flat = tuple(entry for chain in entries.values() for entry in chain)
        compute = _chains(store, stack, options, shared, gamma, entries)
        tasks.append(Task(f"gamma {gamma:g}", stack, flat, compute))
    return tasks


def chain_names(options: Options) -> list[str]:
    """The methods that gamma acts on: the chain, and where it was left free, it made consistent."""
    name = "fast-chain" if options.preset == "fast" else "paper"
    return [name] + ([name + CONSISTENT] if options.consistency == "off" else [])


def _chains(
    store: Store,
    stack: Projections,
    options: Options,
    shared: _Shared,
    gamma: float,
    entries: Mapping[GammaSchedule, Sequence[Entry]],
) -> Callable[[set[str], ProgressCallback], Iterator[Made]]:
    """All schedules at one gamma; the paper's network is trained once for them."""

    def made(chain: Sequence[Entry], result: Reconstruction) -> Iterator[Made]:
        yield Made(chain[0], result.volume, _notes(result))
        for entry in chain[1:]:
            x, operator = torch.from_numpy(result.volume), stack.operator
            yield Made(entry, operator.consistent(x, stack.images.to(x)).numpy())

    def compute(wanted: set[str], callback: ProgressCallback) -> Iterator[Made]:
        missing = {
            kind: chain
            for kind, chain in entries.items()
            if any(entry.name in wanted for entry in chain)
        }
        if options.preset == "fast":
            for kind, chain in missing.items():
                yield from made(chain, shared.reconstruct(callback, gamma=gamma, schedule=kind))
            return
        name = f"gamma-{gamma:g}"
        with _Checkpoint(store, stack, options, callback, name=name, gamma=gamma) as checkpoint:
            for kind, chain in missing.items():
                yield from made(chain, checkpoint.reconstruct(schedule=kind))

    return compute


class _Shared:
    """The INR and the adapted denoiser of the fast preset, made once for all gammas."""

    def __init__(self, store: Store, stack: Projections, options: Options, inr: Entry) -> None:
        self.store, self.stack, self.options, self.inr = store, stack, options, inr
        self.network = store.cells / "denoiser.safetensors"
        low, high = stack.intensity_range()
        self.images, self.low, self.scale = (stack.images - low) / (high - low), low, high - low

    def fit(self, callback: ProgressCallback) -> Volume:
        """The prior [Z, Y, X], made consistent as the preset has it."""
        steps = self.options.inr_steps
        fitted = fit_inr(
            self.images,
            self.stack.operator,
            options=INROptions() if steps is None else INROptions(steps=steps),
            seed=self.options.seed,
            callback=callback,
        )
        prior = self.stack.operator.consistent(fitted.render(), self.images)
        return prior.mul_(self.scale).add_(self.low).cpu().numpy()

    def adapted(self, callback: ProgressCallback) -> Path | None:
        """The denoiser as adapted to the stack; None is the one that ships."""
        if not self.options.adapt:
            return None
        if not self.network.is_file():
            steps = self.options.adapt_steps
            found = adapt(
                load_denoiser(),
                self.images,
                self.stack.operator,
                voxel_size=self.stack.voxel_size,
                axial_blur=self.options.axial_blur,
                options=AdaptOptions() if steps is None else AdaptOptions(steps=steps),
                seed=self.options.seed,
                callback=callback,
            )
            save_denoiser(self.network, found.denoiser)
        return self.network

    def reconstruct(
        self,
        callback: ProgressCallback,
        *,
        gamma: float | None = None,
        schedule: GammaSchedule = "constant",
    ) -> Reconstruction:
        """The posterior mean, or a chain at a gamma."""
        kept = self.store.load(self.inr.name, self.inr.key)
        assert kept is not None, "the baselines come first"
        chain = gamma is not None
        return _exactly(
            lambda steps: reconstruct(
                self.stack,
                steps=steps,
                gamma=gamma,
                gamma_schedule=schedule,
                probe=False,
                consistency=self.options.consistency if chain else None,
                adapt=False,
                axial_blur=self.options.axial_blur,
                denoiser=self.adapted(callback),
                prior=kept.images["volume"],
                seed=self.options.seed,
                device=self.options.device,
                callback=callback,
            ),
            self.options.steps if chain else None,
        )


class _Checkpoint:
    """A training of the paper's denoiser that survives the process, and goes when it was used."""

    def __init__(
        self,
        store: Store,
        stack: Projections,
        options: Options,
        callback: ProgressCallback,
        *,
        name: str,
        gamma: float | None = None,
    ) -> None:
        self.stack, self.options, self.callback, self.gamma = stack, options, callback, gamma
        self.path = store.cells / f"training-{name}.safetensors"

    def __enter__(self) -> _Checkpoint:
        from microdiffusion_fast.paper_training import train_paper
        from microdiffusion_fast.training_state import state_path

        resume = state_path(self.path).is_file()
        train_paper(
            self.stack,
            self.path,
            config=self._recipe(),
            resume=resume,
            overwrite=not resume,
            device=self.options.device,
            progress=False,
            callback=self.callback,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for path in self.path.parent.glob(f"{self.path.stem}.*"):
                path.unlink()

    def reconstruct(self, *, schedule: GammaSchedule = "constant") -> Reconstruction:
        """The chain at the gamma that was trained with."""
        return _exactly(
            lambda steps: reconstruct(
                self.stack,
                preset="paper",
                steps=steps,
                gamma_schedule=schedule,
                probe=False,
                consistency=self.options.consistency,
                denoiser=self.path,
                seed=self.options.seed,
                device=self.options.device,
                callback=self.callback,
            ),
            "exact" if self.options.steps is None else self.options.steps,
        )

    def _recipe(self) -> Any:
        from microdiffusion_fast.paper_recipe import GAMMA, STEPS, PaperTraining

        options = self.options
        steps = STEPS if options.train_steps is None else options.train_steps
        return PaperTraining(
            steps=steps,
            gamma=GAMMA if self.gamma is None else self.gamma,
            seed=options.seed,
            checkpoint_steps=max(1, min(250, steps // 4)),
            inr=_fourier_options(options),
        )


def _fourier_options(options: Options) -> FourierOptions:
    return (
        FourierOptions() if options.inr_steps is None else FourierOptions(steps=options.inr_steps)
    )


def _fourier(stack: Projections, options: Options, callback: ProgressCallback) -> Volume:
    """The paper's INR, [Z, Y, X]: the same whatever gamma is."""
    low, high = stack.intensity_range()
    images = (stack.images - low) / (high - low)
    fitted = fit_inr(
        images,
        stack.operator,
        options=_fourier_options(options),
        seed=options.seed,
        callback=callback,
    )
    return fitted.render().mul_(high - low).add_(low).cpu().numpy()


def _exactly(
    run: Callable[[int | Literal["exact"] | None], Reconstruction],
    steps: int | Literal["exact"] | None,
) -> Reconstruction:
    """Run a chain; where its last steps do not stand for all of them, run all of them."""
    try:
        return run(steps)
    except InputError as error:
        if steps != "exact" or error.argument != "gamma":
            raise
        return run(ALL_STEPS)


def _notes(result: Reconstruction) -> dict[str, Any]:
    exact, steps = result.parameters["exact"], result.parameters["steps"]
    accepted = result.adaptation.get("accepted")
    return {
        "seconds": result.timings["total"],
        "steps": exact["steps"] if exact else steps,
        **({} if accepted is None else {"adaptation_accepted": accepted}),
    }
