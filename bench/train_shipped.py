"""The later stages of the shipped weights, from the weights after stage 2 (their card has all).

    python -m bench.train_shipped stage2.safetensors FOLDER

Stages 1 and 2 are `microdiffusion_fast.training.train` with the settings of the card and the
smaller `network=DenoiserConfig(quarter_blocks=2, head_blocks=3)`. Every stage goes on where it was
stopped. About six hours on two cores; `prior` and `noisy` are what ships. Stages 3 to 5 ran before
training knew unstated blurs, limited peaks and strong noise, so that a repetition gives other bits.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch

from microdiffusion_fast.denoiser import grown, load_denoiser, save_denoiser
from microdiffusion_fast.progress import Cancelled, ProgressEvent
from microdiffusion_fast.tensor_files import read_tensors
from microdiffusion_fast.training import TrainingConfig, train

STAGE3 = TrainingConfig(
    steps=8000,
    volumes=1200,
    learning_rate=6e-4,
    seed=2,
    pure_noise=0.85,
    averaging=0.999,
    noisy=0.0,
)
STAGE3_ENDS = 2000  # of its 8000 steps: the time was needed for the next
STAGE4 = replace(STAGE3, steps=4200, volumes=800, learning_rate=5e-4, seed=3, pure_noise=0.9)
DOUBT = TrainingConfig(
    steps=800,
    volumes=200,
    learning_rate=1e-2,
    seed=4,
    pure_noise=1.0,
    averaging=0.99,
    noisy=0.0,
    only_doubt=True,
)
STAGE6 = TrainingConfig(
    steps=5000, volumes=500, learning_rate=5e-4, seed=5, pure_noise=0.9, averaging=0.999
)
STAGE7 = replace(STAGE6, steps=3300, seed=6)
STAGE8 = replace(STAGE6, steps=4000, seed=7, noisy=0.0, unstated=0.0)
DOUBT_SCALE = 0.8  # of what is stated: right on average on recorded validation volumes


def main() -> None:
    """Runs the stages that are not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage2", type=Path)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    third = stage(asked.folder / "stage3.safetensors", STAGE3, asked.stage2, ends=STAGE3_ENDS)
    fourth = stage(asked.folder / "stage4.safetensors", STAGE4, third)
    mean = asked.folder / "mean.safetensors"
    average(asked.stage2, fourth, mean)
    fifth = stage(asked.folder / "stage5.safetensors", DOUBT, mean)
    sixth = stage(asked.folder / "stage6.safetensors", STAGE6, fifth)
    noisy = stage(asked.folder / "noisy.safetensors", STAGE7, sixth)
    eighth = stage(asked.folder / "stage8.safetensors", STAGE8, noisy)
    average(fourth, eighth, asked.folder / "mean8.safetensors")
    fewer_doubts(asked.folder / "mean8.safetensors", asked.folder / "prior.safetensors")


def stage(path: Path, config: TrainingConfig, start: Path, *, ends: int | None = None) -> Path:
    """One stage, gone on with where its state is there; stopped after `ends` steps."""
    state = path.with_suffix(".state.safetensors")
    if path.exists() and not state.exists():
        return path  # stopped on purpose

    before = load_step(path) if state.exists() else 0

    def enough(event: ProgressEvent) -> bool:
        return ends is None or event.stage != "train" or before + event.done <= ends

    try:
        train(path, config=config, start_from=start, resume=state.exists(), callback=enough)
    except Cancelled:
        if load_step(path) != ends:
            raise
        state.unlink()
    return path


def load_step(path: Path) -> int:
    """The step at which a checkpoint was written."""
    _, metadata = read_tensors(path, "checkpoint", "one of this training")
    return int(metadata["step"])


def average(first: Path, second: Path, output: Path) -> None:
    """The mean of two networks' weights, the first grown into the second."""
    one, other = load_denoiser(first), load_denoiser(second)
    small, large = grown(one, other.config).state_dict(), other.state_dict()
    other.load_state_dict({name: (small[name] + large[name]) / 2 for name in large})
    save_denoiser(output, other)


def fewer_doubts(path: Path, output: Path) -> None:
    """The same network, with what it states of its error scaled by `DOUBT_SCALE`."""
    network = load_denoiser(path)
    with torch.no_grad():
        network.head.conv_spread.bias += math.log(DOUBT_SCALE)  # type: ignore[operator]
    save_denoiser(output, network)


if __name__ == "__main__":
    main()
