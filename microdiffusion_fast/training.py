"""Pretraining of the denoiser on simulated volumes: `microdiffusion-fast train`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from .allocator import keeping
from .denoiser import Denoiser, DenoiserConfig, grown, load_denoiser, save_denoiser
from .errors import InputError
from .progress import Progress, ProgressCallback
from .provenance import versions
from .schedule import NoiseSchedule
from .simulate import random_volume
from .tensor_files import write_tensors
from .training_data import Acquisition, Source, draw_batch
from .training_state import TrainingState, checked_output, resuming, state_path
from .training_step import ACTIVATIONS, clip_gradients, fast_bfloat16, training_loss

VALIDATION_SEED = 900_000_000  # seeds from here on are never trained on
_SLICES = 24  # slices a step predicts, about: windows times stride
_STRONG = (math.log(0.015), math.log(0.2))  # noise of the range that must not be copied


@dataclass(frozen=True)
class TrainingConfig:
    """One stage of the recipe of the shipped weights; their card lists the stages.

    Attributes:
        steps: optimiser steps.
        volumes: simulated volumes to draw windows from.
        side: their side in voxels.
        size: side of a window in pixels.
        learning_rate: peak; 200 steps of warm-up, then a cosine.
        seed: of volumes, windows, noise and weights.
        pure_noise: share of the windows that start from pure noise, the task of the posterior mean.
        averaging: decay of the moving average of the weights, which is what is saved.
        noisy: share of the steps with so much noise that it is to be removed from the means too.
        unstated: share of the stacks that state the assumed blur whatever it is.
        only_doubt: leaves the prediction as it is and trains what the network states of its error.
        checkpoint: steps between checkpoints.
        network: widths and blocks; a smaller network to start from grows into it.
    """

    steps: int = 5000
    volumes: int = 400
    side: int = 96
    size: int = 64
    learning_rate: float = 1.2e-3
    seed: int = 0
    pure_noise: float = 0.5
    averaging: float = 0.998
    noisy: float = 0.2
    unstated: float = 0.5
    only_doubt: bool = False
    checkpoint: int = 250
    network: DenoiserConfig = field(default_factory=DenoiserConfig)

    def __post_init__(self) -> None:
        limits = {"steps": 1, "volumes": 1, "side": 64, "size": 16, "checkpoint": 1}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise InputError(name, f"an integer of at least {least}", getattr(self, name))
        if not 0 <= self.seed < 1000:
            raise InputError("seed", "an integer in [0, 1000)", self.seed)
        for name in ("pure_noise", "noisy", "unstated"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(name, "a share in [0, 1]", getattr(self, name))


def simulated_source(seed: int, side: int) -> Source:
    """One simulated volume, scaled so that its projections span about [0, 1]."""
    volume = torch.from_numpy(random_volume(seed, (side,) * 3, noise=False, isotropic=True))
    windows = volume[: side // 6 * 6].unflatten(0, (-1, 6)).mean(1).numpy()
    low, high = np.percentile(windows, [0.1, 99.9])
    scaled = (volume - float(low)) / max(float(high - low), 1e-3)
    return Source(scaled.half(), (0, 1, 2))


def train(
    output: str | Path,
    *,
    config: TrainingConfig | None = None,
    start_from: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callback: ProgressCallback | None = None,
) -> Path:
    """Train the denoiser and write its averaged weights to `output` (.safetensors).

    The state beside it (`.state.safetensors`) is replaced at every checkpoint. Every step draws
    from generators seeded by (seed, step), so a resumed run equals an uninterrupted one.
    `start_from` is a checkpoint whose weights the first step begins with, instead of random ones.

    Raises:
        InputError: output exists without `resume` or `overwrite`, another recipe began it, or
            `start_from` is no checkpoint.
    """
    config = config or TrainingConfig()
    path = checked_output(output, resume=resume, overwrite=overwrite)
    torch.manual_seed(config.seed)
    if start_from is None:
        denoiser = Denoiser(config.network)
    else:
        start = load_denoiser(Path(start_from), argument="start_from")
        denoiser = grown(start, config.network).train()
    if config.only_doubt:
        denoiser.requires_grad_(False).head.conv_spread.requires_grad_(True)
    run = _Run(denoiser, config, path)
    if resume:
        run.resume()
    sources = []
    with Progress("simulate", config.volumes, enabled=progress, callback=callback) as bar:
        for index in range(config.volumes):
            sources.append(simulated_source(config.seed * 100_000 + index, config.side))
            bar.advance(1)
    schedule = NoiseSchedule()
    left = config.steps - run.step
    seen = denoiser.feature_bytes(_SLICES // 4 * config.size**2)  # windows of a usual step
    with (
        Progress("train", left, enabled=progress, callback=callback) as bar,
        keeping(seen, ACTIVATIONS),
    ):
        while run.step < config.steps:
            gain = _train_step(run, sources, schedule, config)
            run.average(config.averaging)
            if run.step % config.checkpoint == 0 or run.step == config.steps:
                run.save()
            bar.advance(1, note=f"{gain:+.2f} dB over interpolation")
    return path


def _train_step(
    run: _Run, sources: list[Source], schedule: NoiseSchedule, config: TrainingConfig
) -> float:
    """One optimiser step; returns the gain over linear interpolation in dB."""
    rng = np.random.default_rng([config.seed, run.step])
    generator = torch.Generator().manual_seed(config.seed * 10_000_000 + run.step)
    acquisition = Acquisition.random(rng, unstated=config.unstated)
    count = max(1, round(_SLICES / acquisition.stride))
    noise, noisy = 0.0, rng.random() < config.noisy
    if noisy:
        noise = math.exp(rng.uniform(*_STRONG))
    elif rng.random() < 0.7:
        sigma = math.exp(rng.uniform(math.log(0.001), math.log(0.06)))
        noise = sigma / math.sqrt(acquisition.step_length)
    drawn = [sources[int(i)] for i in rng.integers(len(sources), size=count)]
    recorded = [Source(source.volume, source.depth_axes, noise) for source in drawn]
    batch = draw_batch(recorded, acquisition, rng, count=count, size=config.size, vary=True)
    losses = training_loss(
        run.denoiser,
        batch,
        acquisition,
        schedule,
        generator,
        pure_noise=config.pure_noise,
        hard=not noisy,
        mixed=fast_bfloat16(),
    )
    warm = min(1.0, (run.step + 1) / 200)
    rate = config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * run.step / config.steps))
    for group in run.optimiser.param_groups:
        group["lr"] = rate + 1e-5
    run.optimiser.zero_grad(set_to_none=True)
    losses.total.backward()
    clip_gradients(run.denoiser)
    run.optimiser.step()
    run.step += 1
    return losses.gain


class _Run(TrainingState):
    """A state that knows its recipe and its files."""

    def __init__(self, denoiser: Denoiser, config: TrainingConfig, path: Path) -> None:
        parameters = denoiser.parameters()
        super().__init__(
            denoiser, torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-3)
        )
        self.denoiser, self.config, self.path = denoiser, config, path

    def save(self) -> None:
        recipe = json.dumps(asdict(self.config))
        metadata = {"step": str(self.step), "recipe": recipe}
        write_tensors(state_path(self.path), self.tensors(), metadata)
        self.publish()

    def publish(self) -> None:
        """Write the averaged weights."""
        averaged = Denoiser(self.denoiser.config)
        averaged.load_state_dict(self.averaged)
        recipe = json.dumps(asdict(self.config))
        card = {"recipe": recipe, "step": str(self.step), "versions": json.dumps(versions())}
        save_denoiser(self.path, averaged, card)

    def resume(self) -> None:
        with resuming(self.path) as (tensors, metadata):
            if metadata.get("recipe") != json.dumps(asdict(self.config)):
                raise InputError("resume", "the recipe it was begun with", asdict(self.config))
            self.load(tensors, int(metadata["step"]))
        self.publish()  # the last run may have ended between its state and its weights
