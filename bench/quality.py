"""Is the reconstruction worth having: every claim about quality, on volumes it was not trained on.

    python -m bench.quality -o bench/results/quality.json VOLUME...

Recorded volumes are given as files; simulated ones come from validation seeds. Every row is one run
of `reconstruct` against interpolation made consistent. docs/quality.md shows the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.machine import describe
from microdiffusion_fast import metrics
from microdiffusion_fast.demo import baselines, blur_axially, score
from microdiffusion_fast.denoiser import load_denoiser
from microdiffusion_fast.io import read_volume
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.reconstruct import reconstruct
from microdiffusion_fast.simulate import Noise, simulate_projections, simulate_volume
from microdiffusion_fast.tensor_files import digest
from microdiffusion_fast.training import VALIDATION_SEED

Volume = NDArray[np.float32]

KINDS = ("vessels", "neurites", "nuclei")
SHAPE = (96, 96, 96)
BLUR = 1.7  # slices: an objective with less axial resolution
BASELINE = "interpolation+consistency"
QUANTILES = 10


@dataclass(frozen=True)
class Case:
    """One run: what is done to a volume before it is projected, how, and what is asked for."""

    name: str
    blur: float = 0.0
    acquisition: dict[str, Any] = field(default_factory=lambda: {"step_length": 6})
    options: dict[str, Any] = field(default_factory=dict)


PLAIN = Case("default")
STEPS = (2, 4, 8, 10, 12)
RECORDED = (
    PLAIN,
    Case("blurred along z", blur=BLUR),
    Case("50 photons", acquisition={"step_length": 6, "noise": Noise(photons=50)}),
    Case(
        "50 photons, hard",
        acquisition={"step_length": 6, "noise": Noise(photons=50)},
        options={"consistency": "hard"},
    ),
    Case("overlapping", acquisition={"step_length": 6, "stride": 3}),
    Case("gaps", acquisition={"step_length": 6, "stride": 8}),
    Case("prior off", options={"gamma": 0.0}),
    Case("without the check", options={"adapt": False}),
    Case("consistency off", options={"consistency": "off"}),
    Case("a sample of 4 steps", options={"estimate": "sample"}),
    *(Case(f"step length {length}", acquisition={"step_length": length}) for length in STEPS),
)


def main() -> None:
    """Runs every case on every volume; a file that is there is gone on with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("volumes", type=Path, nargs="*")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--simulated", type=int, default=2, help="volumes of each kind")
    asked = parser.parse_args()
    weights = digest(load_denoiser().state_dict())
    found: dict[str, Any] = {**describe(), "weights": weights, "rows": {}}
    if asked.output.exists():
        begun = json.loads(asked.output.read_text())
        if begun.get("weights") != weights:
            sys.exit(f"{asked.output} has rows of other weights; take another file")
        found = begun
    for name, truth, cases in volumes(asked.volumes, asked.simulated):
        for case in cases:
            if f"{name}: {case.name}" in found["rows"]:
                continue
            row = run(truth, case)
            found["rows"][f"{name}: {case.name}"] = row
            asked.output.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name}: {case.name}: {line(row)}", flush=True)
    print(table(found["rows"]))


def volumes(files: list[Path], simulated: int) -> Iterator[tuple[str, Volume, tuple[Case, ...]]]:
    """Name, volume and cases, each made when it is asked for."""
    for path in files:
        yield path.stem, np.asarray(read_volume(path).data, np.float32), RECORDED
    for kind in KINDS:
        for index in range(simulated):
            seed = VALIDATION_SEED + 1000 + index
            yield f"simulated {kind} {index}", simulate_volume(kind, SHAPE, seed=seed), (PLAIN,)


def run(truth: Volume, case: Case) -> dict[str, Any]:
    """Scores of the baseline, the prior and the reconstruction, the calibration, seconds."""
    if case.blur:
        truth = blur_axially(truth, case.blur)
    window = metrics.intensity_window(truth)
    truth = np.clip(truth, *window).astype(np.float32)
    stack = simulate_projections(truth, seed=0, **case.acquisition)
    begun = time.perf_counter()
    result = reconstruct(stack, **case.options)
    seconds = time.perf_counter() - begun
    made = {
        BASELINE: baselines(stack)[BASELINE],
        "INR+consistency": consistent(result.prior, stack),
        "reconstruction": result.volume,
    }
    scores = score(made, truth, stack, intensity=window)
    row: dict[str, Any] = {"seconds": round(seconds, 1), **scores}
    row["gain"] = scores["reconstruction"]["psnr"] - scores[BASELINE]["psnr"]
    if result.uncertainty is not None:
        row["calibration"] = calibration(result.volume, result.uncertainty, truth, stack)
    row["adaptation"] = result.adaptation
    return row


def consistent(prior: Volume, stack: Projections) -> Volume:
    """The prior as hard consistency leaves it, whatever the run asked for."""
    made = stack.operator.consistent(torch.from_numpy(prior), stack.images)
    return np.asarray(made, dtype=np.float32)


def calibration(
    volume: Volume, stated: Volume, truth: Volume, stack: Projections
) -> dict[str, Any]:
    """Stated standard deviation against the root mean square error, as shares of the range.

    Returns: `ratio`, error over stated of all voxels, and the two for each tenth of the voxels in
    order of what is stated.
    """
    covered = stack.operator.covered.numpy()
    low, high = metrics.intensity_window(truth)
    error = torch.from_numpy((volume - truth)[covered].ravel()).double() / (high - low)
    said = torch.from_numpy(stated[covered].ravel()).double() / (high - low)
    order = said.argsort()
    tenths = [part for part in order.tensor_split(QUANTILES)]

    def root(values: torch.Tensor) -> float:
        return float(values.square().mean().sqrt())

    return {
        "ratio": root(error) / root(said),
        "stated": [root(said[part]) for part in tenths],
        "error": [root(error[part]) for part in tenths],
    }


def table(rows: dict[str, Any]) -> str:
    """All rows as Markdown: PSNR / SSIM / DICE of baseline, prior and reconstruction."""
    columns = (BASELINE, "INR+consistency", "reconstruction")
    lines = [f"| run | {' | '.join(columns)} | gain, dB | error / stated | seconds |"]
    lines.append("|---" * 7 + "|")
    for name, row in rows.items():
        cells = [
            f"{row[c]['psnr']:.2f} / {row[c]['ssim']:.3f} / {row[c]['dice']:.3f}" for c in columns
        ]
        stated = f"{row['calibration']['ratio']:.2f}" if "calibration" in row else ""
        tail = f"{row['gain']:+.2f} | {stated} | {row['seconds']:.0f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {tail} |")
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """One row in words."""
    ours, theirs = row["reconstruction"], row[BASELINE]
    words = f"{row['gain']:+.2f} dB ({theirs['psnr']:.2f} -> {ours['psnr']:.2f})"
    words += "".join(f", {m.upper()} {ours[m] - theirs[m]:+.3f}" for m in ("ssim", "dice"))
    if "calibration" in row:
        words += f", error / stated {row['calibration']['ratio']:.2f}"
    return f"{words}, {row['seconds']:.0f} s"


if __name__ == "__main__":
    main()
