"""The prior: an implicit neural representation fitted to the projections through A.

What is compared with the data is the projections of the INR, never slices. Two INRs are fitted in
the same way: a hash grid (`inr_hash`), the fast one, and the paper's Fourier features
(`inr_fourier`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import overload

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .forward_model import AxialProjection
from .inr_base import INR
from .inr_fourier import FourierINR, FourierOptions
from .inr_hash import HashGridINR, INROptions
from .progress import Progress, ProgressCallback

__all__ = [
    "INR",
    "FourierINR",
    "FourierOptions",
    "HashGridINR",
    "INROptions",
    "estimate_noise",
    "fit_inr",
]


def estimate_noise(images: Tensor | Iterable[Tensor]) -> float:
    """Standard deviation of white noise in images [K, Y, X], robust against structure.

    Images that come one by one, [Y, X], may differ in size.

    Source: Immerkaer 1996, "Fast Noise Variance Estimation", with the median in place of the mean.
    """
    found = []
    for image in images:
        rows = image[2:] - 2 * image[1:-1] + image[:-2]
        both = rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2]
        found.append(both.abs().flatten())
    values = torch.cat(found)
    return float(values.median()) / (0.6745 * 6) if len(values) else 0.0


@overload
def fit_inr(
    projections: Tensor,
    operator: AxialProjection,
    *,
    options: INROptions | None = None,
    seed: int = 0,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> HashGridINR: ...


@overload
def fit_inr(
    projections: Tensor,
    operator: AxialProjection,
    *,
    options: FourierOptions,
    seed: int = 0,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> FourierINR: ...


def fit_inr(
    projections: Tensor,
    operator: AxialProjection,
    *,
    options: INROptions | FourierOptions | None = None,
    seed: int = 0,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> HashGridINR | FourierINR:
    """Fit an INR to projections [K, Y, X] through the operator, by Adam on part of the columns.

    It stops early once the error of the projections is down to their noise.

    Args:
        projections: intensities that span about [0, 1].
        operator: the acquisition; gives depth, windows and weights.
        options: `INROptions` (the default) for a hash grid, `FourierOptions` for the paper's INR.
        seed: of the start and of the columns; the same seed gives the same bits.

    Raises:
        InputError: options of another type.

    Source: MicroDiffusion (arXiv 2403.10815), section 3.2.
    """
    inr = _build((operator.depth, *projections.shape[1:]), operator, options or INROptions())
    rng = np.random.default_rng(seed)
    inr.initialise(float(projections.mean()), torch.Generator().manual_seed(seed))
    inr.to(projections.device)
    steps, once = inr.steps()
    optimiser = inr.optimiser()
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: inr.rate(step, steps))
    # no closer than the noise: what would be fitted beyond it is not there
    floor, smoothed = max(estimate_noise(projections), 1e-3) ** 2, 0.0
    with Progress("fit INR", steps, enabled=progress, callback=callback) as bar:
        for step in range(steps):
            rows, columns = inr.choose(rng)
            volume = inr(rows, columns)
            error = (operator(volume) - projections[:, rows, columns]).square().mean()
            loss = error + inr.penalty(volume)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            decay.step()

            smoothed = 0.9 * smoothed + 0.1 * float(error.detach())
            level = smoothed / (1 - 0.9 ** (step + 1))
            bar.advance(1, note=f"error {math.sqrt(level):.4f}")
            if level < floor and step >= once:
                break
    return inr


def _build(
    shape: tuple[int, int, int],
    operator: AxialProjection,
    options: INROptions | FourierOptions,
) -> HashGridINR | FourierINR:
    axial_cell = float(min(operator.step_length, operator.stride))
    if isinstance(options, FourierOptions):
        return FourierINR(shape, options.resolved(operator.depth, axial_cell))
    if isinstance(options, INROptions):
        return HashGridINR(shape, axial_cell, options)
    raise InputError("options", "INROptions or FourierOptions", type(options).__name__)
