"""What the two INRs have in common: a volume as a function of its columns, and how it is fitted."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError

Columns = tuple[slice, slice]


class INR(nn.Module, ABC):
    """Intensity of a volume [Z, Y, X] as a function of the voxel.

    `fit_inr` asks it for the start, the optimiser and what a step sees; it knows nothing else of
    how the function is made.

    Attributes:
        shape: (Z, Y, X) of the volume.
    """

    shape: tuple[int, int, int]

    @abstractmethod
    def forward(self, rows: slice, columns: slice) -> Tensor:
        """All slices of the columns at these rows and columns, [Z, rows, columns]."""

    @abstractmethod
    def initialise(self, mean: float, generator: torch.Generator) -> None:
        """Seeded start: a nearly constant volume at the mean of the projections."""

    @abstractmethod
    def optimiser(self) -> torch.optim.Optimizer:
        """A fresh optimiser of all that is fitted."""

    @abstractmethod
    def steps(self) -> tuple[int, int]:
        """Optimiser steps at most, and how many of them see about every column once."""

    @abstractmethod
    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 0), as a share of the full one."""

    @abstractmethod
    def choose(self, rng: np.random.Generator) -> Columns:
        """The rows and columns that a step sees."""

    def penalty(self, volume: Tensor) -> Tensor | float:
        """What is added to the squared error, for the part [Z, rows, columns] that a step saw."""
        return 0.0

    @torch.no_grad()
    def render(self, rows_at_once: int = 16) -> Tensor:
        """The prior on the voxel grid, [Z, Y, X]: every voxel once."""
        height = self.shape[1]
        parts = [
            self(slice(low, min(low + rows_at_once, height)), slice(None))
            for low in range(0, height, rows_at_once)
        ]
        return torch.cat(parts, dim=1)


def check_counts(options: object, names: tuple[str, ...]) -> None:
    """Refuses options that are not integers of at least 1.

    Raises:
        InputError: for the first of them.
    """
    for name in names:
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"inr {name}", "an integer of at least 1", value)
