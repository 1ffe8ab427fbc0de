"""The demo: project a volume whose depth is known, reconstruct it, and say how well that went.

Every method sees the same projections; all are compared with the volume that was projected.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion_fast import metrics
from microdiffusion_fast.cli_support import VOLUME, naming, read_image, staged_folder, to_json
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.exact import TOL
from microdiffusion_fast.info import machine, versions
from microdiffusion_fast.progress import ProgressCallback
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.schedule_gamma import GammaSchedule
from microdiffusion_fast.simulate import Noise, simulate_projections, simulate_volume

Volume = NDArray[np.float32]

# Training draws from seeds below 1e8 and validation from those after 9e8: this is of neither.
PHANTOM_SEED = 7_031_405_119
PHANTOM_SHAPE = (96, 128, 128)
FILES = {
    "truth.ome.tif",
    "projections.ome.tif",
    "reconstruction.ome.tif",
    "uncertainty.ome.tif",
    "metrics.json",
    "figure.png",
}
# What file managers leave in a folder that was looked at must not keep it from being replaced.
_CLUTTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Demo:
    """What a demo leaves: the folder of results, and the contents of its `metrics.json`."""

    folder: Path
    metrics: dict[str, Any]


def run_demo(
    output: str | os.PathLike[str],
    *,
    volume: str | os.PathLike[str] | None = None,
    step_length: int = 6,
    stride: int | None = None,
    weights: Sequence[float] | None = None,
    noise: Noise | None = None,
    blur: float = 0.0,
    clip: bool = True,
    preset: Literal["fast", "paper"] = "fast",
    steps: int | Literal["exact"] | None = None,
    tol: float = TOL,
    gamma: float | Sequence[float] | None = None,
    gamma_schedule: GammaSchedule = "constant",
    samples: int = 1,
    adapt: bool | None = None,
    adapt_steps: int | None = None,
    axial_blur: float | None = None,
    inr_steps: int | None = None,
    train_steps: int | None = None,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> Demo:
    """Simulate projections of a volume, reconstruct it, evaluate all methods and draw the figure.

    Scores are taken over the slices that a projection covers, in grey levels: the 0.1 and 99.9
    percentiles of the volume are 0 and 255.

    Args:
        output: Folder for the results. It appears when everything is done, or not at all.
        volume: File with the truth [Z, Y, X]; None takes a phantom of vessels.
        step_length: Slices in one projection.
        stride: Slices between the starts of two projections; default `step_length`.
        weights: Axial weights [step_length]; default uniform.
        noise: Camera; None records exactly.
        blur: Gaussian sigma in slices by which the volume is blurred along z beforehand, to mimic
            an objective with less axial resolution.
        clip: Limit the volume to its 0.1 and 99.9 percentiles before it is projected.
        preset, steps, tol, gamma, gamma_schedule, samples, adapt, adapt_steps, axial_blur,
            inr_steps, train_steps, seed, device, progress, callback: As in `reconstruct`.
        overwrite: Replace an earlier demo in that folder.

    Raises:
        InputError: For a volume or geometry that cannot be projected, or a folder that exists.
    """
    from microdiffusion_fast.reconstruct import reconstruct

    clock = _Clock()
    if not (math.isfinite(blur) and blur >= 0):
        raise InputError("--blur", "a sigma of at least 0 slices", blur)
    with staged_folder(Path(output), known=FILES | _CLUTTER, overwrite=overwrite) as folder:
        name, truth, voxel_size = _load(volume)
        if blur > 0:
            truth = blur_axially(truth, blur)
        with naming(reference=VOLUME):
            window = metrics.intensity_window(truth)
        if clip:
            truth = np.clip(truth, *window)
        clock.lap("read")
        # The volume itself is sound: what is wrong now is the geometry.
        with naming(projections="--step-length", volume=VOLUME):
            projections = simulate_projections(
                truth,
                step_length=step_length,
                stride=stride,
                weights=weights,
                noise=noise,
                seed=seed,
                voxel_size=voxel_size,
            )
        clock.lap("project")
        result = reconstruct(
            projections,
            preset=preset,
            steps=steps,
            tol=tol,
            gamma=gamma,
            gamma_schedule=gamma_schedule,
            samples=samples,
            adapt=adapt,
            adapt_steps=adapt_steps,
            axial_blur=axial_blur,
            inr_steps=inr_steps,
            train_steps=train_steps,
            seed=seed,
            device=device,
            progress=progress,
            callback=callback,
        )
        clock.lap("reconstruct")
        volumes = {
            **baselines(projections),
            "inr": np.asarray(result.prior, dtype=np.float32),
            "reconstruction": np.asarray(result.volume, dtype=np.float32),
        }
        scores = score(volumes, truth, projections, intensity=window)
        misfits = misfit(volumes, projections, window)
        clock.lap("evaluate")
        title = f"{name}: depth from {len(projections.images)} projections of {step_length} slices"
        _draw(folder, volumes, truth, scores, projections, result.uncertainty, window, title)
        clock.lap("figure")
        projections.save(folder / "projections.ome.tif")
        result.save(folder / "reconstruction.ome.tif")
        _write(folder / "truth.ome.tif", truth, voxel_size)
        if result.uncertainty is not None:
            _write(folder / "uncertainty.ome.tif", result.uncertainty, voxel_size)
        clock.lap("write")
        record = {
            "shape": truth.shape,
            "step_length": step_length,
            "stride": projections.stride,
            "seconds": clock.seconds(result.timings),
            "methods": scores,
            "consistency_max_abs": misfits["reconstruction"],
            "misfits": misfits,
            "input": {"volume": name, "voxel_size": voxel_size, "intensity": window},
            "simulation": {"blur": blur, "clip": clip, "noise": noise, "weights": weights},
            "slices_evaluated": int(projections.operator.covered.sum()),
            "parameters": result.parameters,
            "adaptation": result.adaptation,
            "seed": seed,
            "versions": versions(),
            "machine": machine(),
        }
        plain = to_json(record)
        text = json.dumps(plain, indent=2, allow_nan=False) + "\n"
        (folder / "metrics.json").write_text(text, encoding="utf-8")
    return Demo(Path(output), plain)


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


def _load(
    volume: str | os.PathLike[str] | None,
) -> tuple[str, Volume, tuple[float, float, float] | None]:
    if volume is None:
        phantom = simulate_volume("vessels", PHANTOM_SHAPE, seed=PHANTOM_SEED)
        return "vessel phantom", phantom, (1.0, 1.0, 1.0)
    path = Path(volume)
    image, truth = read_image(path, VOLUME)
    return path.name.partition(".")[0], truth, image.voxel_size


def _draw(
    folder: Path,
    volumes: Mapping[str, Volume],
    truth: Volume,
    scores: Mapping[str, Mapping[str, float]],
    projections: Projections,
    uncertainty: Volume | None,
    window: tuple[float, float],
    title: str,
) -> None:
    from microdiffusion_fast.report import draw_report

    size = projections.voxel_size
    cells = "voxels of unknown size" if size is None else "voxels of {:g} x {:g} x {:g} µm"
    z, y, x = truth.shape
    note = f"{z} x {y} x {x} " + cells.format(*(size or ()))
    note += " (z y x). PSNR and SSIM: means over the covered slices; DICE: of their volume."
    draw_report(
        folder / "figure.png",
        volumes=volumes,
        truth=truth,
        scores=scores,
        operator=projections.operator,
        intensity=window,
        uncertainty=uncertainty,
        voxel_size=size,
        title=title,
        note=note,
    )


def _write(path: Path, data: Volume, voxel_size: tuple[float, float, float] | None) -> None:
    from microdiffusion_fast.io import write_volume

    write_volume(path, data, voxel_size=voxel_size)


def _array(tensor: Tensor) -> Volume:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32)


class _Clock:
    """Seconds of the stages, one after the other."""

    def __init__(self) -> None:
        self._begun = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps[stage], self._last = now - self._last, now

    def seconds(self, inner: Mapping[str, float]) -> dict[str, float]:
        parts = {f"reconstruct.{name}": float(value) for name, value in inner.items()}
        found = {**self._laps, **parts, "total": time.perf_counter() - self._begun}
        return {name: round(value, 3) for name, value in found.items()}
