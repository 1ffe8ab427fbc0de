"""What a sweep is about: the volume of the experiment and the settings that all cells share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from microdiffusion_fast import metrics
from microdiffusion_fast.adaptation import AdaptOptions
from microdiffusion_fast.cli_support import VOLUME, naming, read_image
from microdiffusion_fast.device import resolve_device
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.inr import INROptions
from microdiffusion_fast.projection_checks import as_images, check_images
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.provenance import array_hash
from microdiffusion_fast.report_style import Volume
from microdiffusion_fast.simulate import simulate_projections


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
