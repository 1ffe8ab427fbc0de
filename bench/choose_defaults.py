"""How the sampler's defaults were chosen: quality against settings, on simulated volumes.

    python -m bench.choose_defaults -o bench/results/defaults.json

The volumes come from validation seeds, which no training has seen. Adaptation is off, so that the
settings are compared on one network. Prints a table; docs/defaults.md shows the one we decided by.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from microdiffusion_fast import metrics
from microdiffusion_fast.denoiser import load_denoiser
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.inference import StackDenoiser, from_network, to_network
from microdiffusion_fast.inr import fit_inr
from microdiffusion_fast.sampler import sample
from microdiffusion_fast.schedule import make_plan
from microdiffusion_fast.simulate import random_volume
from microdiffusion_fast.training import VALIDATION_SEED

SHAPE = (60, 64, 64)
SETTINGS: list[dict[str, object]] = [
    {"steps": 1, "gamma": 0.0},
    {"steps": 1, "gamma": 0.1},
    {"steps": 1, "gamma": 0.5},
    {"steps": 1, "gamma": 0.9},
    {"steps": 1, "gamma": 0.9, "prior": "interpolation"},
    *({"steps": steps, "gamma": gamma} for steps in (2, 4) for gamma in (0.0, 0.1, 0.5, 0.9)),
    {"steps": 8, "gamma": 0.1},
    {"steps": 4, "gamma": 0.1, "sampler": "ddpm"},
    {"steps": 4, "gamma": 0.1, "sampler": "dpm++"},
    {"steps": 4, "gamma": 0.1, "samples": 4},
    {"steps": 2, "gamma": 0.1, "samples": 4},
    {"steps": 4, "gamma": 0.1, "guidance": 0.5},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--volumes", type=int, default=6)
    parser.add_argument("--step-length", type=int, default=6)
    options = parser.parse_args()
    network = load_denoiser()
    rows: dict[str, list[dict[str, float]]] = {}
    for index in range(options.volumes):
        volume = random_volume(VALIDATION_SEED + index, SHAPE)
        low, high = metrics.intensity_window(volume)
        truth = torch.from_numpy(np.clip(volume, low, high))
        operator = AxialProjection(SHAPE[0], options.step_length)
        truth = truth[: operator.windows[-1][1]]
        operator = AxialProjection(len(truth), options.step_length)
        images = operator(truth)
        black, white = (float(v) for v in np.percentile(images.numpy(), [0.1, 99.9]))
        images = (images - black) / (white - black)
        inr = fit_inr(images, operator).render()
        linear = operator.interpolate(images)
        priors = {
            "INR+consistency": operator.consistent(inr, images),
            "INR": inr,
            "interpolation": linear,
        }

        def score(
            name: str,
            x: torch.Tensor,
            seconds: float,
            *,
            truth: torch.Tensor = truth,
            scale: tuple[float, float] = (black, white),
            window: tuple[float, float] = (low, high),
        ) -> None:
            grey = (x * (scale[1] - scale[0]) + scale[0]).numpy()
            found = metrics.evaluate(grey, truth.numpy(), intensity=window).as_dict()
            rows.setdefault(name, []).append({**found, "seconds": seconds})

        score("interpolation+consistency", operator.consistent(linear, images), 0.0)
        for name, prior in priors.items():
            score(f"blended prior: {name}", prior, 0.0)
        for setting in SETTINGS:
            chosen = dict(setting)
            prior = priors[str(chosen.pop("prior", "INR+consistency"))]
            samples = int(str(chosen.pop("samples", 1)))
            begun = time.perf_counter()
            guided = chosen.get("guidance", 0) != 0
            denoise = StackDenoiser(network, images, operator, guided=guided)
            spacing = "snr" if chosen.get("sampler") == "dpm++" else "time"
            plan = make_plan(consistency="hard", spacing=spacing, **chosen)  # type: ignore[arg-type]
            drawn = [
                sample(
                    denoise,
                    to_network(prior),
                    plan,
                    operator=operator,
                    projections=to_network(images),
                    stream=stream,
                )
                for stream in range(samples)
            ]
            mean = from_network(torch.stack(drawn).mean(0))
            name = ", ".join(f"{key} {value}" for key, value in setting.items())
            score(name, mean, time.perf_counter() - begun)
    report = {
        name: {k: float(np.mean([s[k] for s in v])) for k in v[0]} for name, v in rows.items()
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"volumes": options.volumes, "step_length": options.step_length, "mean": report}
    options.output.write_text(json.dumps(settings, indent=1) + "\n")
    print("| setting | PSNR dB | SSIM | DICE | seconds |\n|---|---|---|---|---|")
    for name, mean in report.items():
        figures = f"{mean['psnr']:.2f} | {mean['ssim']:.4f} | {mean['dice']:.4f}"
        print(f"| {name} | {figures} | {mean['seconds']:.1f} |")


if __name__ == "__main__":
    main()
