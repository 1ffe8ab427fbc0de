"""What a sweep computes: for every parameter, by every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from microdiffusion_fast.demo_methods import baselines
from microdiffusion_fast.experiments_networks import FastNetwork, PaperNetwork, fit_fourier
from microdiffusion_fast.experiments_store import Store
from microdiffusion_fast.experiments_subject import Options
from microdiffusion_fast.progress import ProgressCallback
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.reconstruct import Reconstruction, reconstruct
from microdiffusion_fast.report_style import Volume
from microdiffusion_fast.schedule_gamma import GammaSchedule

CONSISTENT = "+consistency"


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


Chains = Mapping[GammaSchedule, Sequence[Entry]]
Compute = Callable[[set[str], ProgressCallback], Iterator[Made]]


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
    compute: Compute


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
        with PaperNetwork(store, stack, options, callback, name=place) as network:
            result = network.reconstruct()
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
    network = FastNetwork(store, stack, options)

    def prior() -> Volume:
        kept = store.load(inr.name, inr.key)
        assert kept is not None, "the baselines come first"
        return kept.images["volume"]

    def baseline(wanted: set[str], callback: ProgressCallback) -> Iterator[Made]:
        for entry, volume in zip(simple, baselines(stack).values(), strict=True):
            yield Made(entry, volume)
        if inr.name in wanted:
            yield Made(inr, network.fit(callback))
        if fast.name in wanted:
            result = network.reconstruct(prior(), callback)
            yield Made(fast, result.volume, _notes(result))
        if fourier.name in wanted:
            yield Made(fourier, fit_fourier(stack, options, callback))

    found = (*simple, inr, fast, *([fourier] if options.preset == "paper" else []))
    tasks = [Task("baselines", stack, found, baseline)]
    for gamma in gammas:
        entries = {
            kind: [
                Entry(name, {"gamma": gamma, "gamma_schedule": kind}, f"gamma-{gamma!r}-{kind}")
                for name in chain_names(options)
            ]
            for kind in schedules
        }
        flat = tuple(entry for chain in entries.values() for entry in chain)
        if options.preset == "fast":
            compute = _fast_chains(network, prior, stack, gamma, entries)
        else:
            compute = _paper_chains(store, stack, options, gamma, entries)
        tasks.append(Task(f"gamma {gamma:g}", stack, flat, compute))
    return tasks


def chain_names(options: Options) -> list[str]:
    """The methods that gamma acts on: the chain, and where it was left free, it made consistent."""
    name = "fast-chain" if options.preset == "fast" else "paper"
    return [name] + ([name + CONSISTENT] if options.consistency == "off" else [])


def _fast_chains(
    network: FastNetwork,
    prior: Callable[[], Volume],
    stack: Projections,
    gamma: float,
    chains: Chains,
) -> Compute:
    """All schedules at one gamma, by the fast preset."""

    def compute(wanted: set[str], callback: ProgressCallback) -> Iterator[Made]:
        for kind, entries in _missing(chains, wanted):
            result = network.reconstruct(prior(), callback, gamma=gamma, schedule=kind)
            yield from _chain(entries, result, stack)

    return compute


def _paper_chains(
    store: Store, stack: Projections, options: Options, gamma: float, chains: Chains
) -> Compute:
    """All schedules at one gamma, by the paper's network, trained once for them."""

    def compute(wanted: set[str], callback: ProgressCallback) -> Iterator[Made]:
        name = f"gamma-{gamma!r}"
        with PaperNetwork(store, stack, options, callback, name=name, gamma=gamma) as network:
            for kind, entries in _missing(chains, wanted):
                yield from _chain(entries, network.reconstruct(schedule=kind), stack)

    return compute


def _missing(chains: Chains, wanted: set[str]) -> Iterator[tuple[GammaSchedule, Sequence[Entry]]]:
    for kind, entries in chains.items():
        if any(entry.name in wanted for entry in entries):
            yield kind, entries


def _chain(entries: Sequence[Entry], result: Reconstruction, stack: Projections) -> Iterator[Made]:
    """The end of a chain, and it made consistent where that is asked for."""
    yield Made(entries[0], result.volume, _notes(result))
    for entry in entries[1:]:
        x = torch.from_numpy(result.volume)
        yield Made(entry, stack.operator.consistent(x, stack.images.to(x)).numpy())


def _notes(result: Reconstruction) -> dict[str, Any]:
    exact, steps = result.parameters["exact"], result.parameters["steps"]
    accepted = result.adaptation.get("accepted")
    return {
        "seconds": result.timings["total"],
        "steps": exact["steps"] if exact else steps,
        **({} if accepted is None else {"adaptation_accepted": accepted}),
    }
