"""The two experiments of the supplement: `sweep step-length` and `sweep gamma`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer  # noqa: TID253  # the package never imports this module

from microdiffusion_fast import cli_options as option
from microdiffusion_fast.cli_config import configurable
from microdiffusion_fast.errors import InputError

if TYPE_CHECKING:
    from microdiffusion_fast.experiments import Sweep

sweep = typer.Typer(
    name="sweep",
    help="The experiments of the paper's supplement on a volume whose depth is known.",
    no_args_is_help=True,
)

_SWEEP = "Sweep"
StepLengths = Annotated[
    str,
    typer.Option(metavar="S,S,...", help="Slices in a projection.", rich_help_panel=_SWEEP),
]
Gammas = Annotated[
    str,
    typer.Option(metavar="G,G,...", help="Weights of the prior.", rich_help_panel=_SWEEP),
]
GammaSchedules = Annotated[
    str,
    typer.Option(
        metavar="NAME,NAME,...",
        help="Of constant, linear, cosine, late-release; each is run at all gammas.",
        rich_help_panel=_SWEEP,
    ),
]
ChainSteps = Annotated[
    str | None,
    typer.Option(
        "--steps",
        metavar="N|exact",
        help="Calls of the network in a chain; default 8, for the paper's preset exact.",
        rich_help_panel="Reconstruction",
    ),
]
ChainConsistency = Annotated[
    Literal["hard", "off"] | None,
    typer.Option(
        "--consistency",
        help="In every step, or off; default the preset's.",
        rich_help_panel="Reconstruction",
    ),
]
PaperSteps = Annotated[
    int | None,
    typer.Option(
        "--train-steps",
        min=1,
        help="Optimiser steps of every training of --preset paper.",
        rich_help_panel="Reconstruction",
    ),
]
SweepMemory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Go from disk to disk within this much, such as 4GiB; without an INR.",
        rich_help_panel="Larger than memory",
    ),
]
Keep = Annotated[
    bool,
    typer.Option(
        "--keep",
        help="Leave projections and reconstructions of --memory in DIR/volumes.",
        rich_help_panel="Larger than memory",
    ),
]


@sweep.command("step-length")
@configurable("sweep", "step-length")
def step_length(
    volume: option.Volume,
    output: option.Folder,
    step_lengths: StepLengths = "2,4,6,8,10,12",
    preset: option.Preset = "fast",
    train_steps: PaperSteps = None,
    adapt: option.Adapt = True,
    adapt_steps: option.AdaptSteps = None,
    axial_blur: option.AxialBlur = None,
    inr_steps: option.InrSteps = None,
    seed: option.Seed = 0,
    device: option.Device = None,
    memory: SweepMemory = None,
    keep: Keep = False,
    quiet: option.Quiet = False,
) -> None:
    """Quality against acquisition speed: VOLUME from ever fewer projections, by every method.

    A sweep that was interrupted goes on where it stopped when it is run again.
    """
    from microdiffusion_fast import cli_stream as stream
    from microdiffusion_fast.cli_support import VOLUME
    from microdiffusion_fast.experiments import sweep_step_length
    from microdiffusion_fast.experiments_stored import sweep_step_length_stored

    numbers = _numbers(step_lengths, "--step-lengths", whole=True)
    lengths = [int(number) for number in numbers]
    if memory is not None:
        paper = None if preset == "fast" else preset
        stream.refuse({"--preset": paper, "--train-steps": train_steps, "--inr-steps": inr_steps})
        result = sweep_step_length_stored(
            volume,
            output,
            step_lengths=lengths,
            adapt=adapt is not False,
            adapt_steps=adapt_steps,
            axial_blur=axial_blur,
            seed=seed,
            device=device,
            memory=memory,
            keep=keep,
            progress=not quiet,
        )
    else:
        if keep:
            raise InputError("--keep", "--memory with it", "none")
        bytes_each = stream.RECONSTRUCT_BYTES
        stream.refuse_too_large(volume, VOLUME, bytes_per_voxel=bytes_each)
        result = sweep_step_length(
            volume,
            output,
            step_lengths=lengths,
            preset=preset,
            train_steps=train_steps,
            adapt=adapt is not False,
            adapt_steps=adapt_steps,
            axial_blur=axial_blur,
            inr_steps=inr_steps,
            seed=seed,
            device=device,
            progress=not quiet,
        )
    if not quiet:
        _report(result, {"step_length": "step length"}, "speed_up")


@sweep.command("gamma")
@configurable("sweep", "gamma")
def gamma(
    volume: option.Volume,
    output: option.Folder,
    gammas: Gammas = "0,0.05,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    gamma_schedules: GammaSchedules = "constant",
    step_length: option.StepLengthOf = 6,
    preset: option.Preset = "fast",
    steps: ChainSteps = None,
    consistency: ChainConsistency = None,
    train_steps: PaperSteps = None,
    adapt: option.Adapt = True,
    adapt_steps: option.AdaptSteps = None,
    axial_blur: option.AxialBlur = None,
    inr_steps: option.InrSteps = None,
    seed: option.Seed = 0,
    device: option.Device = None,
    quiet: option.Quiet = False,
) -> None:
    """Quality against gamma, the weight of the prior in every blend of the chain.

    A sweep that was interrupted goes on where it stopped when it is run again.
    """
    from microdiffusion_fast.cli_support import parse_steps
    from microdiffusion_fast.experiments import sweep_gamma

    result = sweep_gamma(
        volume,
        output,
        gammas=_numbers(gammas, "--gammas"),
        gamma_schedules=[name.strip() for name in gamma_schedules.split(",")],  # type: ignore[misc]
        step_length=step_length,
        preset=preset,
        steps=parse_steps(steps),
        consistency=consistency,
        train_steps=train_steps,
        adapt=adapt is not False,
        adapt_steps=adapt_steps,
        axial_blur=axial_blur,
        inr_steps=inr_steps,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    if not quiet:
        _report(result, {"gamma": "gamma", "gamma_schedule": "schedule"}, "gamma_schedule")


def _numbers(text: str, argument: str, *, whole: bool = False) -> list[float]:
    from microdiffusion_fast.cli_support import parse_numbers

    values = parse_numbers(text, argument) or ()
    if whole and any(value != value // 1 for value in values):
        expected = "whole numbers of at least 2, with commas between them"
        raise InputError(argument, expected, repr(text))
    return list(values)


def _report(result: Sweep, columns: dict[str, str], group: str) -> None:
    from microdiffusion_fast.cli_summary import print_rows
    from microdiffusion_fast.info import device_line
    from microdiffusion_fast.progress import format_seconds

    print_rows(result.rows, columns, group=group)
    print(f"computed in {format_seconds(result.metrics['seconds'])} on {device_line()}")
    names = sorted(path.name for path in result.folder.iterdir() if path.is_file())
    print(f"wrote {result.folder}: {', '.join(names)}")
