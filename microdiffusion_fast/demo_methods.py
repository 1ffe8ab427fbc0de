"""What a reconstruction is compared with, and by which figures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion_fast import metrics
from microdiffusion_fast.projections import Projections

Volume = NDArray[np.float32]


def baselines(projections: Projections) -> dict[str, Volume]:
    """What needs no model: nearest, linear interpolation, and that made consistent, [Z, Y, X]."""
    operator, images = projections.operator, projections.images
    linear = operator.interpolate(images)
    found = {
        "nearest": operator.interpolate(images, mode="nearest"),
        "interpolation": linear,
        "interpolation+consistency": operator.consistent(linear, images),
    }
    return {name: _array(volume) for name, volume in found.items()}


def score(
    volumes: Mapping[str, Volume],
    truth: Volume,
    projections: Projections,
    *,
    intensity: tuple[float, float] | None = None,
) -> dict[str, dict[str, float]]:
    """PSNR, SSIM and DICE of each volume against the truth, over the covered slices.

    Args:
        volumes: Reconstructions [Z, Y, X] by method.
        truth: [Z, Y, X].
        projections: What they were reconstructed from.
        intensity: Intensities of the grey levels 0 and 255; default the truth's percentiles.

    Raises:
        InputError: For a truth of another shape, or without an intensity range.
    """
    covered = projections.operator.covered.numpy()
    window = metrics.intensity_window(truth) if intensity is None else intensity
    return {
        name: metrics.evaluate(volume[covered], truth[covered], intensity=window).as_dict()
        for name, volume in volumes.items()
    }


def misfit(
    volumes: Mapping[str, Volume], projections: Projections, intensity: tuple[float, float]
) -> dict[str, float]:
    """How far each volume is from explaining the projections: `max |A x - y|` in grey levels of
    255.
    """
    operator, images = projections.operator, projections.images.double()
    scale = metrics.GREY_LEVELS / (intensity[1] - intensity[0])
    found = {}
    for name, volume in volumes.items():
        # In float64: the sums of the check must not add to what is checked.
        projected = operator(torch.from_numpy(np.ascontiguousarray(volume)).double())
        found[name] = float((projected - images).abs().max()) * scale
    return found


def blur_axially(volume: Volume, sigma: float) -> Volume:
    """Blur a volume [Z, Y, X] along z by a Gaussian, `sigma` in slices, the ends reflected."""
    reach = min(math.ceil(4 * sigma), volume.shape[0] - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).float()
    padded = np.pad(volume, ((reach, reach), (0, 0), (0, 0)), mode="symmetric")
    columns = torch.from_numpy(padded).flatten(1).T[:, None]
    blurred = torch.nn.functional.conv1d(columns, kernel[None, None])
    return _array(blurred[:, 0].T.reshape(volume.shape))


def _array(tensor: Tensor) -> Volume:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32)
