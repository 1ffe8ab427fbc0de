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

from microdiffusion_fast import metrics
from microdiffusion_fast.cli_support import VOLUME, naming, read_image, staged_folder, to_json
from microdiffusion_fast.demo_methods import Volume, baselines, blur_axially, misfit, score
from microdiffusion_fast.demo_pages import Results, draw_figure, write_page
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.exact import TOL
from microdiffusion_fast.info import machine
from microdiffusion_fast.progress import ProgressCallback
from microdiffusion_fast.provenance import provenance
from microdiffusion_fast.schedule_gamma import GammaSchedule
from microdiffusion_fast.simulate import Noise, simulate_projections, simulate_volume

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
    "report.html",
}
# What file managers leave in a folder that was looked at must not keep it from being replaced.
_CLUTTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Demo:
    """What a demo leaves: the folder of results, and the contents of its `metrics.json`."""

    folder: Path
    metrics: dict[str, Any]


__all__ = ["FILES", "Demo", "baselines", "run_demo", "score"]


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
    command: str | None = None,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> Demo:
    """Simulate projections of a volume, reconstruct it, evaluate all methods, and show the result.

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
        command: The line that makes the same again, for the page.

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
        results = Results(
            name=name,
            truth=truth,
            volumes=volumes,
            scores=score(volumes, truth, projections, intensity=window),
            misfits=misfit(volumes, projections, window),
            projections=projections,
            uncertainty=result.uncertainty,
            window=window,
        )
        clock.lap("evaluate")
        draw_figure(folder / "figure.png", results)
        clock.lap("figure")
        origin = provenance(
            seed=seed,
            inputs={"volume": truth, "projections": projections.images.cpu().numpy()},
            weights=result.parameters.get("denoiser_sha256"),
        )
        projections.save(folder / "projections.ome.tif", provenance=origin)
        result.save(folder / "reconstruction.ome.tif")
        _write(folder / "truth.ome.tif", truth, voxel_size, {"kind": "truth", "provenance": origin})
        if result.uncertainty is not None:
            about = {"kind": "uncertainty", "parameters": result.parameters, "provenance": origin}
            _write(folder / "uncertainty.ome.tif", result.uncertainty, voxel_size, to_json(about))
        clock.lap("write")
        record = {
            "shape": truth.shape,
            "step_length": step_length,
            "stride": projections.stride,
            "seconds": clock.seconds(result.timings),
            "methods": results.scores,
            "consistency_max_abs": results.misfits["reconstruction"],
            "misfits": results.misfits,
            "input": {"volume": name, "voxel_size": voxel_size, "intensity": window},
            "simulation": {"blur": blur, "clip": clip, "noise": noise, "weights": weights},
            "slices_evaluated": int(projections.operator.covered.sum()),
            "parameters": result.parameters,
            "adaptation": result.adaptation,
            "seed": seed,
            "provenance": origin,
            "versions": origin["versions"],
            "machine": machine(),
        }
        plain = to_json(record)
        write_page(folder / "report.html", results, plain, command)
        text = json.dumps(plain, indent=2, allow_nan=False) + "\n"
        (folder / "metrics.json").write_text(text, encoding="utf-8")
    return Demo(Path(output), plain)


def _load(
    volume: str | os.PathLike[str] | None,
) -> tuple[str, Volume, tuple[float, float, float] | None]:
    if volume is None:
        phantom = simulate_volume("vessels", PHANTOM_SHAPE, seed=PHANTOM_SEED)
        return "vessel phantom", phantom, (1.0, 1.0, 1.0)
    path = Path(volume)
    image, truth = read_image(path, VOLUME)
    return path.name.partition(".")[0], truth, image.voxel_size


def _write(
    path: Path,
    data: Volume,
    voxel_size: tuple[float, float, float] | None,
    metadata: Mapping[str, Any],
) -> None:
    from microdiffusion_fast.io import write_volume

    write_volume(path, data, voxel_size=voxel_size, metadata=metadata)


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
