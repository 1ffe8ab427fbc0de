"""The two experiments of the supplement: quality against step length, and against gamma.

Both project a volume whose depth is known, reconstruct it by every method, and leave tables and a
figure. A sweep that was interrupted goes on where it stopped; see `experiments_store`.

Source: MicroDiffusion (arXiv 2403.10815), supplement, Figures 1 and 2.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from microdiffusion_fast.cli_support import VOLUME, naming
from microdiffusion_fast.demo_methods import score
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.experiments_checks import (
    chosen_schedules,
    sorted_gammas,
    sorted_integers,
)
from microdiffusion_fast.experiments_cuts import Cuts
from microdiffusion_fast.experiments_figures import (
    Scene,
    draw_gammas,
    draw_step_lengths,
    gamma_lines,
    step_length_lines,
)
from microdiffusion_fast.experiments_methods import (
    Task,
    chain_names,
    gamma_tasks,
    step_length_tasks,
)
from microdiffusion_fast.experiments_page import Sweeping
from microdiffusion_fast.experiments_results import Sweep, finish, identity_of, rows_of
from microdiffusion_fast.experiments_store import Cell, Store
from microdiffusion_fast.experiments_subject import Options, Subject
from microdiffusion_fast.progress import Progress, ProgressCallback, ProgressEvent
from microdiffusion_fast.schedule_gamma import GammaSchedule

STEP_LENGTHS = (2, 4, 6, 8, 10, 12)
GAMMAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Gamma moves the end of a chain; the posterior mean, one call, hardly notices it. Every step blends
# with the prior once, so a gamma means less in 8 steps than in the 1000 of the paper.
CHAIN_STEPS = 8
Volume = str | os.PathLike[str] | np.ndarray


def sweep_step_length(
    volume: Volume,
    output: str | os.PathLike[str],
    *,
    step_lengths: Sequence[int] = STEP_LENGTHS,
    preset: Literal["fast", "paper"] = "fast",
    adapt: bool = True,
    adapt_steps: int | None = None,
    axial_blur: float | None = None,
    inr_steps: int | None = None,
    train_steps: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> Sweep:
    """Reconstruct a volume from ever fewer projections, by every method.

    Args:
        volume: the truth [Z, Y, X], or a file with it.
        output: folder of the results; one that holds part of this very sweep is completed.
        step_lengths: slices in one projection, which is also how many times faster is recorded.
        preset: "fast", or "paper" for the published method beside it, trained at every step length.
        adapt, adapt_steps, axial_blur, inr_steps, seed, device: as in `reconstruct`.
        train_steps: optimiser steps of every training of the paper preset.
        progress: show a bar; its units are the computations that are missing.
        callback: called on the way; returning False cancels, and what is finished stays.

    Raises:
        InputError: a volume or a step length that cannot be projected, or a folder of something
            else; the message names it as the command line does.
        Cancelled: the callback returned False.
    """
    wanted = sorted_integers("--step-lengths", step_lengths)
    options = Options(
        preset=preset,
        adapt=adapt,
        adapt_steps=adapt_steps,
        axial_blur=axial_blur,
        inr_steps=inr_steps,
        train_steps=train_steps,
        seed=seed,
        device=device,
    )
    subject = Subject.of(volume)
    with naming(projections="--step-lengths", step_length="--step-lengths", volume=VOLUME):
        stacks = [subject.project(length, seed) for length in wanted]
    # not of the list that was asked for: it may grow, and the images stay
    cuts = Cuts.of(subject.truth, subject.voxel_size, STEP_LENGTHS)
    identity = identity_of("step-length", subject.record, asdict(options))
    with Store(Path(output), identity) as store:
        tasks = [task for stack in stacks for task in step_length_tasks(store, stack, options)]
        cells = _run(store, subject, tasks, cuts, progress=progress, callback=callback)
        rows = _rows(tasks, cells)
        images = {row["step_length"]: cell.images for row, cell in rows if row["method"] == preset}
        note = f"The {preset} preset, from ever fewer projections."
        scene = _scene(subject, cuts, "quality against acquisition speed", note)
        plain = [row for row, _ in rows]
        page = draw_step_lengths(scene, plain, images, method=preset)
        shown = Sweeping(
            parameter="step length",
            column="step_length",
            found=rows,
            method=preset,
            lines=step_length_lines(plain),
        )
        return finish(store, subject.name, scene, shown, page)


def sweep_gamma(
    volume: Volume,
    output: str | os.PathLike[str],
    *,
    gammas: Sequence[float] = GAMMAS,
    gamma_schedules: Sequence[GammaSchedule] = ("constant",),
    step_length: int = 6,
    preset: Literal["fast", "paper"] = "fast",
    steps: int | Literal["exact"] | None = None,
    consistency: Literal["hard", "off"] | None = None,
    adapt: bool = True,
    adapt_steps: int | None = None,
    axial_blur: float | None = None,
    inr_steps: int | None = None,
    train_steps: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> Sweep:
    """Reconstruct a volume with ever more weight on the prior; the baselines do not depend on it.

    INR and adaptation do not depend on gamma either and are made once. The paper preset trains at
    every gamma, as its clean image is blended with the same weight.

    Args:
        volume, output, preset, progress, callback: as in `sweep_step_length`.
        adapt, adapt_steps, axial_blur, inr_steps, train_steps, seed, device: likewise.
        gammas: weights of the prior in the blend of every state, in [0, 1].
        gamma_schedules: how gamma falls along the chain; each is run at all gammas.
        step_length: slices in one projection.
        steps: calls of the network in a chain; default 8 for "fast" and "exact" for "paper". Where
            "exact" is refused because gamma is too small, all 1000 steps are run, which is exact.
        consistency: default the preset's, "hard" for "fast" and "off" for "paper". With "off" the
            result is also reported made consistent at the end.

    Raises:
        InputError: as in `sweep_step_length`.
        Cancelled: the callback returned False.
    """
    values = sorted_gammas(gammas)
    schedules = chosen_schedules(gamma_schedules)
    if steps is None:
        steps = CHAIN_STEPS if preset == "fast" else "exact"
    elif steps != "exact" and not (type(steps) is int and 1 <= steps <= 1000):
        raise InputError("--steps", "a number from 1 to 1000, or 'exact'", repr(steps))
    options = Options(
        preset=preset,
        steps=steps,
        consistency=consistency or ("hard" if preset == "fast" else "off"),
        adapt=adapt,
        adapt_steps=adapt_steps,
        axial_blur=axial_blur,
        inr_steps=inr_steps,
        train_steps=train_steps,
        seed=seed,
        device=device,
    )
    subject = Subject.of(volume)
    with naming(projections="--step-length", step_length="--step-length", volume=VOLUME):
        stack = subject.project(step_length, seed)
    cuts = Cuts.of(subject.truth, subject.voxel_size, [step_length])
    settings = {"step_length": step_length, **asdict(options)}
    identity = identity_of("gamma", subject.record, settings)
    with Store(Path(output), identity) as store:
        tasks = gamma_tasks(store, stack, options, values, schedules)
        cells = _run(store, subject, tasks, cuts, progress=progress, callback=callback)
        rows = _rows(tasks, cells)
        order: list[str | None] = [None, *schedules]
        rows.sort(key=lambda found: order.index(found[0]["gamma_schedule"]))
        method, schedule = chain_names(options)[0], schedules[0]
        images = {
            row["gamma"]: cell.images
            for row, cell in rows
            if (row["method"], row["gamma_schedule"]) == (method, schedule)
        }
        taken = "exact chains" if steps == "exact" else f"chains of {steps} steps"
        note = f"The {preset} preset, {taken}, {schedule} gamma, step length {step_length}."
        scene = _scene(subject, cuts, "the weight of the prior", note)
        plain = [row for row, _ in rows]
        page = draw_gammas(scene, plain, images, method=method, schedule=schedule)
        shown = Sweeping(
            parameter="gamma",
            column="gamma",
            found=rows,
            method=method,
            lines=gamma_lines(plain, method=method, schedule=schedule),
            schedule=schedule,
        )
        return finish(store, subject.name, scene, shown, page)


def _run(
    store: Store,
    subject: Subject,
    tasks: Sequence[Task],
    cuts: Cuts,
    *,
    progress: bool,
    callback: ProgressCallback | None,
) -> dict[str, Cell]:
    """All cells by name: those that are there, and the others computed and kept."""
    cells: dict[str, Cell] = {}
    missing = []
    for task in tasks:
        found = {entry.name: store.load(entry.name, entry.key) for entry in task.entries}
        cells |= {name: cell for name, cell in found.items() if cell is not None}
        if None in found.values():
            missing.append(task)
    with Progress("sweep", len(missing), enabled=progress, callback=callback, unit="run") as bar:
        for task in missing:

            def tell(event: ProgressEvent, title: str = task.title) -> None:
                of = "" if event.total is None else f"/{event.total}"
                bar.advance(0, note=f"{title}: {event.stage} {event.done}{of}")

            wanted = {entry.name for entry in task.entries} - set(cells)
            for made in task.compute(wanted, tell):
                entry = made.entry
                if entry.name in wanted:
                    images = cuts.take(made.volume) | (
                        {"volume": made.volume} if entry.whole else {}
                    )
                    truth, window = subject.truth, subject.intensity
                    scores = score({"it": made.volume}, truth, task.stack, intensity=window)["it"]
                    cell = Cell(scores, images, dict(made.notes))
                    cells[entry.name] = store.keep(entry.name, entry.key, cell)
            bar.advance(1, note=task.title)
    return cells


def _rows(tasks: Sequence[Task], cells: dict[str, Cell]) -> list[tuple[dict[str, Any], Cell]]:
    return rows_of([entry for task in tasks for entry in task.entries], cells)


def _scene(subject: Subject, cuts: Cuts, words: str, note: str) -> Scene:
    return Scene(
        truth=subject.truth,
        cuts=cuts,
        unit="voxels" if subject.voxel_size is None else "µm",
        title=f"{subject.name}: {words}",
        note=note,
    )
