"""Training of the published denoiser on one stack: `microdiffusion-fast train --preset paper`.

First the INR is fitted to the projections, then the denoiser learns from the projections alone.

Attention is global, so whole images are trained on where they fit: up to `size` pixels a side (the
published method has 128). Larger ones are cropped at random to `size`, while E_img sees the whole
projection; the network then samples slices with more pixels to attend to than it was trained with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .errors import InputError
from .inr import FourierINR, fit_inr
from .paper_checkpoint import save_paper
from .paper_examples import TrainingLoss, draw_examples
from .paper_ranks import Ranks, join
from .paper_recipe import PaperTraining, StackRecord, difference
from .paper_unet import PaperDenoiser
from .progress import Progress, ProgressCallback
from .projections import Projections
from .schedule import NoiseSchedule
from .tensor_files import write_tensors
from .training_state import TrainingState, checked_output, part, resuming, state_path
from .training_step import fast_bfloat16

__all__ = ["PaperTraining", "train_paper"]

# Projections from which E_img takes the statistics that it samples with: one batch, 1 KiB a pixel.
_CALIBRATION = 32
_CALIBRATION_PIXELS = 1 << 20


def train_paper(
    projections: Projections,
    output: str | Path,
    *,
    config: PaperTraining | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
    callback: ProgressCallback | None = None,
) -> Path:
    """Fit the paper's INR to a stack, then train its denoiser on it, and write a checkpoint.

    Writes `output` (.safetensors, to sample from), a card beside it (.json) and the state of the
    training (.state.safetensors), all of them replaced at every checkpoint: what was there before
    is usable until then. Every draw comes from (seed, step, example), so a resumed run equals an
    uninterrupted one bit for bit on one machine with one number of threads.

    Under `torchrun` every process takes its share of the batch (gloo on CPUs, NCCL on CUDA), the
    first one writes and reports, and the result equals that of one process to rounding.

    Args:
        projections: the stack; its images [K, Y, X] are the only data.
        output: the checkpoint, a path that ends in .safetensors.
        config: the recipe.
        resume: go on from the state beside `output`.
        overwrite: replace a checkpoint that exists.
        device: where the training runs; None is the CPU.
        progress: show bars.
        callback: called with a `ProgressEvent` after every step; returning False cancels.

    Raises:
        InputError: output exists without `resume` or `overwrite`; or another recipe or another
            stack began what is to be resumed.
        Cancelled: the callback returned False.

    Source: Hui et al., CVPR 2024 (MicroDiffusion), section 3; Ho et al. 2020, algorithm 1.
    """
    training = config or PaperTraining()
    path = checked_output(output, resume=resume, overwrite=overwrite)
    with join(device) as ranks:
        mine, first = ranks.share(training.batch), ranks.rank == 0
        run = _Run(projections, training, path, ranks.device)
        if resume:
            run.resume()
        progress, callback = progress and first, callback if first else None
        if resume and first:
            run.publish()  # the last run may have ended between its state and its checkpoint
        elif first:
            run.fit(progress=progress, callback=callback)
        if not resume:
            ranks.broadcast([*run.inr.parameters(), *run.inr.buffers()])
        step = _stepper(run, ranks, mine)
        with Progress(
            "train", training.steps - run.step, enabled=progress, callback=callback
        ) as bar:
            while run.step < training.steps:
                run.losses.append(step())
                if first and (
                    run.step % training.checkpoint_steps == 0 or run.step == training.steps
                ):
                    run.save()
                bar.advance(1, note=f"loss {_recent(run.losses):.4f}")
    return path


def _stepper(run: _Run, ranks: Ranks, mine: slice) -> Callable[[], float]:
    """One optimiser step of all processes, as a function that returns its loss."""
    training, schedule = run.training, run.schedule
    loss_of = TrainingLoss(
        run.denoiser,
        run.images,
        run.inr.render(),
        run.operator,
        training,
        schedule=schedule,
        mixed=_bfloat16(training, ranks.device),
    )
    parallel: nn.Module = loss_of
    if ranks.world > 1:
        parallel = DistributedDataParallel(loss_of)

    def step() -> float:
        examples = draw_examples(training, run.step, run.stack.images, schedule.steps)
        for group in run.optimiser.param_groups:
            group["lr"] = learning_rate(training, run.step)
        loss = parallel(examples, mine)
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        run.optimiser.step()
        run.step += 1
        run.average(training.averaging)
        return ranks.mean(loss)

    return step


def learning_rate(training: PaperTraining, step: int) -> float:
    """Linear warm-up to the peak, then a cosine that would reach 0 one step after the last.

    The warm-up takes a tenth of the steps at most: a short training, too, has its peak.
    """
    warm_up = min(training.warm_up, training.steps // 10)
    if step < warm_up:
        return training.learning_rate * (step + 1) / warm_up
    share = (step - warm_up) / max(training.steps - warm_up, 1)
    return training.learning_rate * (0.5 + 0.5 * math.cos(math.pi * share))


def _bfloat16(training: PaperTraining, device: torch.device) -> bool:
    if training.bfloat16 is not None:
        return training.bfloat16
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else fast_bfloat16()


def _recent(losses: list[float]) -> float:
    """Of single steps the loss is noise: it depends on the timesteps drawn."""
    latest = losses[-50:]
    return sum(latest) / len(latest)


class _Run(TrainingState):
    """A training with its stack and its files."""

    inr: FourierINR

    def __init__(
        self, projections: Projections, training: PaperTraining, path: Path, device: torch.device
    ) -> None:
        torch.manual_seed(training.seed)
        self.denoiser = PaperDenoiser(training.network).to(device).train()
        super().__init__(
            self.denoiser,
            torch.optim.AdamW(
                self.denoiser.parameters(), weight_decay=training.weight_decay, fused=True
            ),
        )
        self.training, self.path, self.schedule = training, path, NoiseSchedule()
        self.stack, self.operator = StackRecord.of(projections), projections.operator
        low, high = self.stack.intensity
        self.images = ((projections.images - low) / (high - low)).to(device)
        self.inr = FourierINR(self.stack.shape, training.inr).to(device)
        self.losses: list[float] = []

    def fit(self, *, progress: bool, callback: ProgressCallback | None) -> None:
        self.inr = fit_inr(
            self.images,
            self.operator,
            options=self.training.inr,
            seed=self.training.seed,
            progress=progress,
            callback=callback,
        )

    def save(self) -> None:
        """State first: what is sampled from is never newer than what is resumed."""
        recipe = json.dumps(asdict(self.training))
        metadata = {"step": str(self.step), "recipe": recipe, "stack": _identity(self.stack)}
        tensors = self.tensors()
        tensors |= {f"inr.{name}": value for name, value in self.inr.state_dict().items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        write_tensors(state_path(self.path), tensors, metadata)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Write the checkpoint and its card."""
        averaged = PaperDenoiser(self.training.network).to(self.images.device)
        averaged.load_state_dict(self.averaged)
        most = max(2, min(_CALIBRATION, _CALIBRATION_PIXELS // self.images[0].numel()))
        spread = -(-len(self.images) // most)
        averaged.image_encoder.calibrate(self.images[::spread] * 2 - 1)
        save_paper(
            self.path,
            averaged,
            self.inr,
            self.training,
            self.stack,
            self.schedule,
            step=self.step,
            losses=self.losses,
        )

    def resume(self) -> None:
        """Go on from the state beside the checkpoint.

        Raises:
            InputError: naming `resume`.
        """
        records = {"recipe": asdict(self.training), "stack": json.loads(_identity(self.stack))}
        with resuming(self.path) as (tensors, metadata):
            for name, record in records.items():
                found = difference(json.loads(metadata.get(name, "{}")), record)
                if found is not None:
                    expected = f"the {name} it was begun with, {found[0]}"
                    raise InputError("resume", expected, found[1])
            self.load(tensors, int(metadata["step"]))
            self.inr.load_state_dict(part(tensors, "inr."))
            self.losses = tensors["losses"].tolist()


def _identity(stack: StackRecord) -> str:
    return json.dumps({**stack.geometry, "sha256": stack.sha256})
