"""The paper's preset: its INR, its denoiser trained on the stack, and its chain."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from .errors import InputError
from .exact import exact_plan
from .inr import FourierOptions, fit_inr
from .paper import GUIDANCE, VARIANCE_MIX, PaperStackDenoiser, paper_plan
from .paper_checkpoint import PaperModel, load_paper
from .paper_training import PaperTraining, train_paper
from .preset import Prepared, Request, noise_to_signal
from .schedule import Consistency, NoiseSchedule, Sampler, SamplingPlan
from .tensor_files import digest


def prepare_paper(asked: Request) -> Prepared:
    """Read the checkpoint, or train one, and bind its denoiser to the stack.

    Raises:
        InputError: an option out of range, or one that this preset does not have; a checkpoint of
            another geometry; a gamma that keeps an exact chain from forgetting its start.
        Cancelled: the callback returned False.
    """
    _check(asked)
    stack, operator = asked.stack, asked.stack.operator
    model = None if asked.denoiser is None else load_paper(asked.denoiser)
    same = model is None or model.serves(stack)
    gamma = _gamma(asked, model)
    low, high = stack.intensity_range()
    images = (stack.images - low) / (high - low)
    consistency: Consistency = asked.consistency or "off"
    ratio = noise_to_signal(images, operator) if consistency == "soft" else None
    sampler: Sampler = asked.sampler or "ddpm"
    guidance = GUIDANCE if asked.guidance is None else asked.guidance
    steps = _steps(asked, gamma)
    schedule = NoiseSchedule() if model is None else model.schedule
    plan = paper_plan(
        gamma,
        steps=schedule.steps if steps == "exact" else steps,
        schedule=schedule,
        sampler=sampler,
        guidance=guidance,
        variance_mix=asked.variance_mix,
        gamma_schedule=asked.gamma_schedule,
        consistency=consistency,
        noise_to_signal=ratio,
    )
    chain = _exact(plan, asked) if steps == "exact" else plan

    if model is None:
        with asked.timed("training"):
            model = _train(asked, gamma)
    images = images.to(asked.device)
    with asked.timed("prior"):
        if asked.prior is not None:
            prior = (asked.prior - low).to(asked.device) / (high - low)
        elif same:
            prior = model.inr.to(asked.device).render()
        else:
            warnings.warn(
                "denoiser: was trained on other projections of this geometry; the INR is fitted to "
                "these",
                stacklevel=2,
            )
            inr = fit_inr(
                images,
                operator,
                options=model.training.inr,
                seed=asked.seed,
                progress=asked.progress,
                callback=asked.callback,
            )
            prior = inr.render()
    with asked.timed("sampling"):
        denoise = PaperStackDenoiser(
            model.denoiser.to(asked.device),
            images,
            operator,
            plan.timesteps,
            batch=asked.batch_size,
            guided=guidance != 0,
        )
    mixed = VARIANCE_MIX if asked.variance_mix is None else asked.variance_mix
    return Prepared(
        denoise=denoise,
        prior=prior,
        images=images,
        plan=plan,
        chain=chain,
        chains=asked.samples,
        parameters={
            "steps": steps,
            "sampler": sampler,
            "gamma": list(gamma) if isinstance(gamma, Sequence) else gamma,
            "guidance": guidance,
            "variance_mix": mixed if sampler == "ddpm" else None,
            "consistency": consistency,
            "adapt": False,
            "denoiser": "trained here" if asked.denoiser is None else str(asked.denoiser),
            "denoiser_sha256": digest(model.denoiser.state_dict()),
            "trained": {
                "steps": model.step,
                "of": model.training.steps,
                "gamma": model.training.gamma,
                "seed": model.training.seed,
                "on these projections": same,
            },
            "prior": "Fourier INR" if asked.prior is None else "given",
            "intensity_range": [low, high],
        },
    )


def _check(asked: Request) -> None:
    """Refuses the options of the other preset, and of a training where a checkpoint is given."""
    reason = "with preset 'paper', which does not adapt"
    if asked.adapt:
        raise InputError("adapt", f"None or False {reason}", asked.adapt)
    for name in ("adapt_steps", "axial_blur"):
        if getattr(asked, name) is not None:
            raise InputError(name, f"None {reason}", getattr(asked, name))
    if asked.denoiser is not None:
        for name in ("inr_steps", "train_steps"):
            if getattr(asked, name) is not None:
                expected = "None beside a checkpoint, which was trained already"
                raise InputError(name, expected, getattr(asked, name))


def _gamma(asked: Request, model: PaperModel | None) -> float | Sequence[float]:
    """Of the chain: that of the checkpoint, or another with a word about it."""
    trained = PaperTraining().gamma if model is None else model.training.gamma
    if asked.gamma is None:
        return trained
    if model is not None and asked.gamma != trained:
        warnings.warn(
            f"gamma: the checkpoint was trained with {trained:g}, the chain blends with "
            f"{asked.gamma}",
            stacklevel=2,
        )
    return asked.gamma


def _steps(asked: Request, gamma: float | Sequence[float]) -> int | Literal["exact"]:
    if asked.steps is not None:
        return asked.steps
    return len(gamma) if isinstance(gamma, Sequence) else "exact"


def _exact(plan: SamplingPlan, asked: Request) -> SamplingPlan:
    try:
        return exact_plan(plan, asked.tol)
    except InputError as error:
        if error.argument != "gamma" or asked.steps is not None:
            raise
        expected = f"{error.expected} (the default; steps={len(plan)} runs all of them)"
        raise InputError("gamma", expected, error.got) from None


def _train(asked: Request, gamma: float | Sequence[float]) -> PaperModel:
    """A checkpoint of this stack alone, kept for as long as it takes to read it."""
    config = PaperTraining(
        gamma=max(gamma) if isinstance(gamma, Sequence) else gamma,
        seed=asked.seed,
        inr=FourierOptions() if asked.inr_steps is None else FourierOptions(steps=asked.inr_steps),
    )
    if asked.train_steps is not None:
        config = replace(config, steps=asked.train_steps)
    if asked.progress:
        print(
            f"no checkpoint: training the paper's denoiser on this stack for {config.steps} steps "
            "(`train --preset paper` makes one to keep)",
            file=sys.stderr,
        )
    with tempfile.TemporaryDirectory(prefix="microdiffusion-fast-") as folder:
        path = train_paper(
            asked.stack,
            Path(folder) / "paper.safetensors",
            config=config,
            device=asked.device,
            progress=asked.progress,
            callback=asked.callback,
        )
        return load_paper(path)
