"""Checkpoints of the published denoiser: one file to sample from, a card to read.

`OUT.safetensors` holds the averaged weights and the INR, and in its metadata the recipe and the
stack that they belong to. `OUT.json` says the same to people. Nothing in either is executed.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import InputError
from .inr import FourierINR
from .paper_recipe import PaperTraining, StackRecord, difference
from .paper_unet import PaperDenoiser
from .projections import Projections
from .schedule import NoiseSchedule
from .tensor_files import check_fit, read_tensors, whole, write_tensors
from .training_state import part

FORMAT = "microdiffusion_fast.paper/1"
_PARTS = 20  # into which a card divides the curve of the loss


@dataclass(frozen=True, eq=False)
class PaperModel:
    """A checkpoint as read.

    Attributes:
        denoiser: averaged weights, in evaluation.
        inr: fitted to the stack; `inr.render()` is the prior [Z, Y, X] in units where the
            projections span about [0, 1].
        training: the recipe, with its gamma.
        stack: what it was trained on.
        schedule: of the noise.
        step: optimiser steps that were made.
    """

    denoiser: PaperDenoiser
    inr: FourierINR
    training: PaperTraining
    stack: StackRecord
    schedule: NoiseSchedule
    step: int

    def serves(self, projections: Projections, *, argument: str = "denoiser") -> bool:
        """Whether these are the very projections it was trained on; others of its geometry pass.

        Raises:
            InputError: another geometry or size; names `argument` and the first difference.
        """
        other = StackRecord.of(projections)
        found = difference(self.stack.geometry, other.geometry)
        if found is not None:
            expected = f"a checkpoint trained on a stack of this geometry, {found[1]}"
            raise InputError(argument, expected, f"one for {found[0]}")
        return self.stack.sha256 == other.sha256


def save_paper(
    path: Path,
    denoiser: PaperDenoiser,
    inr: FourierINR,
    training: PaperTraining,
    stack: StackRecord,
    schedule: NoiseSchedule,
    *,
    step: int,
    losses: Sequence[float],
) -> None:
    """Write a checkpoint and its card, each whole or not at all."""
    card = {
        "format": FORMAT,
        "step": step,
        "recipe": asdict(training),
        "stack": asdict(stack),
        "schedule": asdict(schedule),
        "versions": {
            "microdiffusion_fast": importlib.metadata.version("microdiffusion-fast"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    tensors = {f"denoiser.{name}": value for name, value in denoiser.state_dict().items()}
    tensors |= {f"inr.{name}": value for name, value in inr.state_dict().items()}
    metadata = {"format": FORMAT, "card": json.dumps(card)}
    write_tensors(path, tensors, metadata)
    name = shlex.quote(path.name)
    shown = {
        "what": f"The published denoiser, {step} of {training.steps} steps on one stack.",
        "sample with": f"microdiffusion-fast reconstruct PROJ -o OUT --preset paper "
        f"--denoiser {name}",
        "condition": "E_img of the closest acquired projection; no true slice was ever seen.",
        "loss": loss_curve(losses),
        **card,
    }
    with whole(path.with_suffix(".json")) as written:
        written.write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")


def loss_curve(losses: Sequence[float]) -> list[dict[str, Any]]:
    """The mean loss of each of about 20 equal parts of a training."""
    length = max(1, -(-len(losses) // _PARTS))
    curve = []
    for low in range(0, len(losses), length):
        stretch = losses[low : low + length]
        steps = f"{low + 1}-{low + len(stretch)}"
        curve.append({"steps": steps, "mean": round(sum(stretch) / len(stretch), 6)})
    return curve


def load_paper(path: str | Path, *, argument: str = "denoiser") -> PaperModel:
    """Read a checkpoint of the published denoiser, in evaluation, on the CPU.

    Raises:
        InputError: the file is missing, not safetensors, truncated, or of another network; names
            `argument`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(argument, "an existing .safetensors file", str(path))
    tensors, metadata = read_tensors(path, argument, "a safetensors checkpoint")
    if metadata.get("format") != FORMAT:
        expected = f"a checkpoint of `train --preset paper` (format {FORMAT})"
        raise InputError(argument, expected, f"{path}: {metadata.get('format')}")
    try:
        card = json.loads(metadata["card"])
        training = PaperTraining.from_record(card["recipe"])
        stack = StackRecord.from_record(card["stack"])
        weights, fit = part(tensors, "denoiser."), part(tensors, "inr.")
        check_fit(lambda: PaperDenoiser(training.network), weights)
        check_fit(lambda: FourierINR(stack.shape, training.inr), fit)
        denoiser, inr = PaperDenoiser(training.network), FourierINR(stack.shape, training.inr)
        denoiser.load_state_dict(weights)
        inr.load_state_dict(fit)
        schedule, step = NoiseSchedule(**card["schedule"]), int(card["step"])
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        reason = f"{path}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InputError(argument, "the tensors that its recipe asks for", reason) from None
    return PaperModel(denoiser.eval(), inr.eval(), training, stack, schedule, step)
