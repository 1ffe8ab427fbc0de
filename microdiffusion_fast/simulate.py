"""Simulated volumes to train and test on, and the projections that a microscope takes of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.simulation.cells import Cells
from microdiffusion_fast.simulation.fields import gaussian_blur
from microdiffusion_fast.simulation.neurites import Neurites
from microdiffusion_fast.simulation.nuclei import Nuclei
from microdiffusion_fast.simulation.optics import Noise, Optics
from microdiffusion_fast.simulation.raster import Array, Shape
from microdiffusion_fast.simulation.textures import Textures
from microdiffusion_fast.simulation.tissue import Tissue
from microdiffusion_fast.simulation.vessels import Vessels

if TYPE_CHECKING:
    from microdiffusion_fast.forward_model import AxialProjection
    from microdiffusion_fast.projections import Projections

__all__ = [
    "KINDS",
    "Cells",
    "Neurites",
    "Noise",
    "Nuclei",
    "Optics",
    "Textures",
    "Tissue",
    "Vessels",
    "random_volume",
    "simulate_projections",
    "simulate_volume",
]

KINDS = ("vessels", "neurites", "nuclei", "cells", "textures", "mixed")
Morphology = Vessels | Neurites | Nuclei | Cells | Textures
_CLASSES: dict[str, type[Morphology]] = {
    "vessels": Vessels,
    "neurites": Neurites,
    "nuclei": Nuclei,
    "cells": Cells,
    "textures": Textures,
}


def simulate_volume(
    kind: str,
    shape: Sequence[int] = (96, 128, 128),
    *,
    seed: int = 0,
    optics: Optics | None = None,
    morphology: Morphology | None = None,
) -> Array:
    """Make a clean phantom [Z, Y, X] in [0, 1], seen through the optics, without noise.

    Args:
        kind: "vessels", "neurites", "nuclei", "cells", "textures" or "mixed" (the first three
            in one).
        shape: slices, rows and columns.
        seed: the same seed gives the same bits.
        optics: blur, background and modulations; None is a slightly soft, even light sheet.
        morphology: how the structure looks; None takes the defaults of the kind.

    Raises:
        InputError: an unknown kind, a shape that is not three sizes of at least 8, a negative
            seed, or a morphology of another kind.

    Examples:
        >>> volume = simulate_volume("vessels", (12, 32, 32), seed=1)
        >>> volume.shape, bool(0 <= volume.min() and volume.max() <= 1)
        ((12, 32, 32), True)
    """
    size = _check_shape(shape)
    rng = _generator(seed)
    if kind not in KINDS:
        raise InputError("kind", "one of " + ", ".join(KINDS), repr(kind))
    if kind == "mixed":
        if morphology is not None:
            raise InputError("morphology", "None for kind 'mixed'", type(morphology).__name__)
        parts: list[Morphology] = [Vessels(), Neurites(), Nuclei()]
        specimen = _superpose(parts, size, rng)
    else:
        look = _CLASSES[kind]() if morphology is None else morphology
        if not isinstance(look, _CLASSES[kind]):
            raise InputError("morphology", _CLASSES[kind].__name__, type(look).__name__)
        specimen = look.render(size, rng)
    optics = Optics() if optics is None else optics
    image = optics.apply(specimen, rng)
    white = float(np.quantile(image, 0.9995))
    return np.clip(image / max(white, 1e-6), 0, 1).astype(np.float32)


def random_volume(
    seed: int,
    shape: Sequence[int] = (96, 128, 128),
    *,
    noise: bool = True,
    isotropic: bool = False,
) -> Array:
    """Draw a volume [Z, Y, X] in [0, 1] from the training distribution.

    Kind, morphology, tissue background, optics, contrast and camera are all drawn at random, wide
    enough that a network cannot learn the simulator instead of microscopy.

    Args:
        seed: the same seed and shape give the same bits.
        shape: slices, rows and columns.
        noise: False leaves the camera out (the tissue's own texture stays).
        isotropic: True draws point spreads as sharp along z as across, without an axial tail, so
            that any axis may play the depth and an axial blur can be added that is known.

    Raises:
        InputError: a shape that is not three sizes of at least 8, or a negative seed.
    """
    size = _check_shape(shape)
    rng = _generator(seed)
    aspect = 1.0 if rng.random() < 0.65 else float(rng.uniform(0.75, 1.6))
    looks: list[Morphology] = []
    drawn = rng.random()
    names = list(_CLASSES)
    if drawn < 0.86:
        chosen = [names[int(rng.choice(5, p=[0.27, 0.27, 0.2, 0.16, 0.1]))]]
    else:
        chosen = [names[i] for i in rng.permutation(5)[: int(rng.integers(2, 4))]]
    for name in chosen:
        looks.append(replace(_CLASSES[name].random(rng), aspect=aspect))
    specimen = _superpose(looks, size, rng)
    tissue = Tissue.random(rng)
    optics = Optics.random(rng)
    axial, lateral, _ = optics.psf_sigma
    if isotropic:
        axial, optics = lateral, replace(optics, tail=0.0)
    optics = replace(optics, psf_sigma=(axial / aspect, lateral, lateral))
    # thin structures lose most of their brightness in the blur: without this the tissue wins
    seen = float(np.quantile(optics.blur(specimen)[::2], 0.998))
    specimen = np.minimum(specimen / max(seen, 0.02), 50.0).astype(np.float32)
    scene = tissue.surround(specimen, rng)
    image = optics.apply(scene, rng)
    # contrast: what counts as white and black differs from user to user
    clipped = float(np.exp(rng.uniform(math.log(1e-5), math.log(3e-3))))
    white = float(np.quantile(image, 1 - clipped))
    black = float(image.min()) * float(rng.uniform(0.3, 1.0))
    image = np.maximum((image - black) / max(white - black, 1e-6), 0)
    image = image ** float(np.exp(rng.normal(0, 0.22)))
    image = image * float(rng.uniform(0.75, 1.0)) if rng.random() < 0.3 else image
    if noise:
        recorded = Noise.random(rng).apply(image, rng)
        if rng.random() < 0.4:  # resampled or deconvolved data carry smooth noise
            soft = float(rng.uniform(0.3, 0.8))
            axial = soft * float(rng.choice([0.0, 1.0]))
            recorded = image + 1.2 * gaussian_blur(recorded - image, (axial, soft, soft))
        image = recorded
    return np.clip(image, 0, 1).astype(np.float32)


def simulate_projections(
    volume: Any,
    *,
    step_length: int,
    stride: int | None = None,
    weights: Sequence[float] | None = None,
    start: int = 0,
    noise: Noise | None = None,
    seed: int = 0,
    voxel_size: tuple[float, float, float] | None = None,
) -> Projections:
    """Project a volume [Z, Y, X] as an extended depth of field does: K means of slabs of slices.

    Args:
        volume: array or tensor of intensities.
        step_length: slices in a projection.
        stride: slices from one window to the next; None is `step_length` (disjoint windows).
        weights: axial weights [step_length], non-negative; None is the plain mean.
        start: first slice of the first window.
        noise: camera; its full scale is the volume's largest value. None records exactly.
        seed: of the noise.
        voxel_size: (z, y, x) of the volume's voxels in micrometres.

    Raises:
        InputError: a volume that is not three-dimensional and finite, or a geometry that does
            not fit in it.

    Examples:
        >>> volume = simulate_volume("nuclei", (12, 32, 32), seed=1)
        >>> stack = simulate_projections(volume, step_length=6, voxel_size=(1.0, 0.5, 0.5))
        >>> tuple(stack.images.shape), stack.depth
        ((2, 32, 32), 12)
    """
    import torch

    from microdiffusion_fast.projections import Projections

    tensor = torch.as_tensor(volume)
    if tensor.ndim != 3:
        raise InputError("volume", "three dimensions [Z, Y, X]", f"shape {tuple(tensor.shape)}")
    if tensor.dtype != torch.float64:
        tensor = tensor.to(torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise InputError("volume", "finite values", "NaN or infinity")
    depth = tensor.shape[0]
    projection = projection_of(
        depth, step_length=step_length, stride=stride, weights=weights, start=start
    )
    images = projection(tensor).to(torch.float32)
    if noise is not None:
        full = max(float(tensor.max()), 1e-12)
        scaled = images.numpy() / np.float32(full)
        images = torch.from_numpy(noise.apply(scaled, _generator(seed)) * np.float32(full))
    return Projections.from_any(
        images,
        step_length=step_length,
        stride=stride,
        weights=weights,
        start=start,
        depth=depth,
        voxel_size=voxel_size,
    )


def projection_of(
    depth: int,
    *,
    step_length: int,
    stride: int | None,
    weights: Sequence[float] | None,
    start: int,
) -> AxialProjection:
    """The operator that projects a volume of `depth` slices, see `simulate_projections`.

    Raises:
        InputError: a geometry that does not fit.
    """
    from microdiffusion_fast.forward_model import AxialProjection

    if isinstance(step_length, bool) or not isinstance(step_length, int) or step_length < 2:
        raise InputError("step_length", "a whole number of at least 2", step_length)
    if start + step_length > depth or start < 0:
        window = f"slices {start} to {start + step_length - 1}"
        raise InputError("step_length", f"a window within the {depth} slices", window)
    return AxialProjection(depth, step_length, stride=stride, weights=weights, start=start)


def _superpose(looks: Sequence[Morphology], shape: Shape, rng: np.random.Generator) -> Array:
    """Draw several structures into one volume, each at its own brightness."""
    out = np.zeros(shape, dtype=np.float32)
    for index, look in enumerate(looks):
        level = 1.0 if index == 0 else float(rng.uniform(0.25, 1.0))
        np.maximum(out, np.float32(level) * look.render(shape, rng), out=out)
    return out


def _check_shape(shape: Sequence[int]) -> Shape:
    expected = "three whole numbers of at least 8 (z, y, x)"
    try:
        z, y, x = (operator.index(n) for n in shape)
    except (TypeError, ValueError):
        raise InputError("shape", expected, repr(shape)) from None
    if min(z, y, x) < 8:
        raise InputError("shape", expected, (z, y, x))
    return z, y, x


def _generator(seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError("seed", "a whole number of at least 0", seed)
    return np.random.default_rng(seed)
