"""The regression by which the axial blur of a stack is estimated, fitted to simulated stacks.

    python -m bench.fit_axial_blur -o microdiffusion_fast/weights/axial_blur.json

To be repeated for other weights: it says how these answer when they are told a blur. Half of the
stacks have step length 6, the others any acquisition that training knows; blurs of 0 to 3.3 slices,
contrast and content varied as in training, peaks limited in most, white noise in more than half. A
fifth of the sources is left out in turn for the error that is printed. Half an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.machine import describe
from microdiffusion_fast.adaptation_blur import FEWEST, MOST, blur_features
from microdiffusion_fast.denoiser import load_denoiser
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.projections import percentile_range
from microdiffusion_fast.tensor_files import digest
from microdiffusion_fast.training import simulated_source
from microdiffusion_fast.training_data import Acquisition, Scene, Source, blur_depth, changed

SEED = 370_000  # of the first source; no training and no validation has used them
SIDE, EACH, FOLDS = 64, 5, 5
DEPTH = 60  # slices that a stack covers, about
LONGEST = 12  # the longest windows; their double is trained for the check alone
RIDGE = 1.0

Array = NDArray[np.float64]


class Stack(NamedTuple):
    """Projections [K, Y, X] that span about [0, 1], how they were made, and the truth."""

    projections: Tensor
    operator: AxialProjection
    blur: float


def main() -> None:
    """Simulates, fits, says how well blurs of sources that were left out are found, and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sources", type=int, default=150)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # the same bits on any machine of a kind
    denoiser = load_denoiser()
    numbers: list[list[float]] = []
    blurs: list[float] = []
    folds: list[int] = []
    for index in range(asked.sources):
        source = simulated_source(SEED + index, 96)
        for copy in range(EACH):
            drawn = stack(source, EACH * index + copy)
            if drawn is None:
                continue
            numbers.append(blur_features(denoiser, drawn.projections, drawn.operator))
            blurs.append(drawn.blur)
            folds.append(index % FOLDS)
        print(f"{index + 1} of {asked.sources} sources, {len(blurs)} stacks", flush=True)
    x, y, fold = np.array(numbers), np.array(blurs), np.array(folds)
    found = np.zeros_like(y)
    for left_out in range(FOLDS):
        held = fold == left_out
        intercept, slopes = ridge(x[~held], y[~held])
        found[held] = intercept + x[held] @ slopes
    error = math.sqrt(float(np.square(found - y).mean()))
    explained = 1 - error**2 / float(y.var())
    print(f"{len(y)} stacks: error {error:.2f} slices, explains {explained:.2f} of the variance")
    intercept, slopes = ridge(x, y)
    fitted = {
        "network": digest(denoiser.state_dict()),
        "intercept": intercept,
        "coefficients": slopes.tolist(),
        "made_by": "python -m bench.fit_axial_blur",
        "stacks": len(y),
        "error": round(error, 3),
        "explained": round(explained, 3),
        **describe(),
    }
    asked.output.write_text(json.dumps(fitted, indent=1) + "\n", encoding="utf-8")


def stack(source: Source, seed: int) -> Stack | None:
    """A stack of a simulated volume; None where nothing is to be seen in it."""
    rng = np.random.default_rng([13, seed])
    drawn = Acquisition.random(rng)
    if seed % 2 == 0:
        drawn = Acquisition.uniform(6)
    length, stride = drawn.step_length, drawn.stride
    blur = 0.0 if rng.random() < 0.2 else float(rng.uniform(0.3, 3.3))
    drawn = replace(drawn, axial_blur=blur)
    if length > LONGEST:
        return None
    count = max(FEWEST, min(MOST, round(DEPTH / stride)))
    depth = (count - 1) * stride + length
    scene = Scene.draw(source, rng, vary=True)
    z, y, x = (
        int(rng.integers(max(1, size - want + 1)))
        for size, want in zip(scene.shape, (depth, SIDE, SIDE), strict=True)
    )
    margin = math.ceil(3 * blur)
    block = scene.block((z - margin, z + depth + margin), (y, y + SIDE), (x, x + SIDE))
    if rng.random() < 0.6:
        block = changed(block, [source], rng)
    block = blur_depth(block, blur)[margin : margin + depth]
    low, high = np.percentile(block.numpy(), [0.1, 99.9])
    if high - low < 1e-3:
        return None
    block = (block - low) / (high - low)
    if rng.random() < 0.85:
        block = block.clamp(0, 1)
    if rng.random() < 0.6:  # that of recorded volumes
        noise = torch.from_numpy(rng.standard_normal(block.shape, dtype=np.float32))
        block = block + math.exp(rng.uniform(math.log(1e-3), math.log(3e-2))) * noise
    operator = AxialProjection(depth, length, stride=stride, weights=drawn.weights)
    images = operator(block)
    low, high = percentile_range(images.numpy())
    if high - low < 1e-3:
        return None
    return Stack((images - low) / (high - low), operator, blur)


def ridge(x: Array, y: Array) -> tuple[float, Array]:
    """Intercept and slopes of a ridge regression on standardised numbers [N, F].

    Source: Hoerl and Kennard 1970.
    """
    mean, scale = x.mean(0), x.std(0) + 1e-3
    z = (x - mean) / scale
    slopes = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ (y - y.mean())) / scale
    return float(y.mean() - mean @ slopes), slopes


if __name__ == "__main__":
    main()
