"""How the published denoiser is trained on one stack, and what a checkpoint says of that stack."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InputError
from .inr import FourierOptions
from .paper_unet import PaperConfig
from .projections import Projections
from .records import first_difference

STEPS = 2000
GAMMA = 0.9


@dataclass(frozen=True)
class PaperTraining:
    """The recipe of one training.

    Attributes:
        steps: optimiser steps. The authors make 2,001 passes over 21 projections, one at a time.
        batch: projections a step, over all processes; at least 2, of which the batch normalisation
            of E_img takes its statistics.
        learning_rate: peak of AdamW's.
        weight_decay: AdamW's.
        warm_up: steps in which the learning rate rises to its peak; a cosine to 0 follows.
        gamma: weight of the prior in the clean image that is learnt, `(1 - gamma) * y + gamma * A
            prior`. The authors' released code blends `0.1 * image + 0.9 * inr`: gamma = 0.9.
        unconditional: share of the examples whose condition is zeros, from which guidance has its
            unconditional branch. The released code reads this share and never uses it: its
            unconditional branch is a network at an input that it was not trained on.
        averaging: decay of the moving average of the weights, which is what samples.
        size: side in pixels above which images are cropped at random; see `paper_training`.
        bfloat16: multiply in bfloat16; None does where the hardware does.
        seed: of weights, noise, order, dropout and INR.
        checkpoint_steps: steps between checkpoints.
        inr: how the INR is fitted.
        network: widths of the networks.

    Raises:
        InputError: a number out of range; names the field.
    """

    steps: int = STEPS
    batch: int = 8
    learning_rate: float = 2e-4
    weight_decay: float = 1e-4
    warm_up: int = 100
    gamma: float = GAMMA
    unconditional: float = 0.1
    averaging: float = 0.995
    size: int = 256
    bfloat16: bool | None = None
    seed: int = 0
    checkpoint_steps: int = 250
    inr: FourierOptions = field(default_factory=FourierOptions)
    network: PaperConfig = field(default_factory=PaperConfig)

    def __post_init__(self) -> None:
        counts = {
            "steps": 1,
            "batch": 2,
            "warm_up": 0,
            "size": 16,
            "checkpoint_steps": 1,
            "seed": 0,
        }
        for name, least in counts.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(name, f"an integer of at least {least}", repr(value))
        if self.seed >= 2**63:
            raise InputError("seed", "an integer in [0, 2^63)", self.seed)
        for name in ("gamma", "unconditional", "averaging"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(name, "a number in [0, 1]", repr(value))
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(name, "a number in [0, 1)", getattr(self, name))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PaperTraining:
        """The recipe that `asdict` wrote, as read from JSON."""
        network = {**record["network"], "multipliers": tuple(record["network"]["multipliers"])}
        parts = {"inr": FourierOptions(**record["inr"]), "network": PaperConfig(**network)}
        return cls(**{**record, **parts})


@dataclass(frozen=True)
class StackRecord:
    """The stack that a denoiser was trained on: its geometry, its intensities and its hash.

    Attributes:
        images: K, Y and X.
        weights: axial weights [step_length].
        intensity: intensities that the network knows as -1 and 1.
        sha256: of the images as float32.
    """

    images: tuple[int, ...]
    step_length: int
    stride: int
    start: int
    depth: int
    weights: tuple[float, ...]
    intensity: tuple[float, float]
    sha256: str

    @classmethod
    def of(cls, projections: Projections) -> StackRecord:
        data = projections.images.detach().cpu().contiguous().numpy()
        return cls(
            images=tuple(data.shape),
            step_length=projections.step_length,
            stride=projections.stride,
            start=projections.start,
            depth=projections.depth,
            weights=tuple(round(weight, 9) for weight in projections.operator.weights.tolist()),
            intensity=projections.intensity_range(),
            sha256=hashlib.sha256(data.tobytes()).hexdigest(),
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> StackRecord:
        """The record that `asdict` wrote, as read from JSON."""
        lists = ("images", "weights", "intensity")
        return cls(**{**record, **{name: tuple(record[name]) for name in lists}})

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the volume, (Z, Y, X)."""
        return (self.depth, *self.images[1:])  # type: ignore[return-value]

    @property
    def geometry(self) -> dict[str, Any]:
        """What a stack has to share for the denoiser to serve it."""
        names = ("images", "step_length", "stride", "start", "depth", "weights")
        return {name: getattr(self, name) for name in names}


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first value in which two records differ, as each has it; None where they are equal."""
    found = first_difference(first, second)
    if found is None:
        return None
    names, one, other = found
    return f"{' '.join(names)} {one}", f"{' '.join(names)} {other}"
