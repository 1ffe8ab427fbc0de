"""The options that commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer  # noqa: TID253  # the package never imports this module

_GEOMETRY, _MODEL = "Geometry", "Reconstruction"


def _seed(value: int) -> int:
    # A range in the declaration would print its 19 digits in every help text.
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"expected an integer from 0 to 2^63 - 1, got {value}")
    return value


Volume = Annotated[Path, typer.Argument(metavar="VOLUME", help="Volume: TIFF, OME-Zarr or NPY.")]
Projected = Annotated[Path, typer.Argument(metavar="PROJ", help="Stack of projections.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
Seed = Annotated[int, typer.Option(callback=_seed, help="Same seed, same result.")]
StepLength = Annotated[
    int | None, typer.Option(help="Slices in one projection.", rich_help_panel=_GEOMETRY)
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Slices between the starts of two projections; default the step length.",
        rich_help_panel=_GEOMETRY,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="W,W,...",
        help="Axial weights, one a slice, that sum to 1; default uniform.",
        rich_help_panel=_GEOMETRY,
    ),
]
NoiseModel = Annotated[
    str | None,
    typer.Option(
        metavar="photons=N,read=N",
        help="Camera noise (also background=N, bits=N); photons is the count at the brightest.",
    ),
]
VoxelSize = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        metavar="Z Y X",
        help="Voxel size of the volume in micrometres; default what the file says.",
        rich_help_panel=_GEOMETRY,
    ),
]
Preset = Annotated[
    Literal["fast", "paper"],
    typer.Option(
        help="This package's method, or the published one, trained on the stack.",
        rich_help_panel=_MODEL,
    ),
]
Gamma = Annotated[
    str | None,
    typer.Option(
        metavar="G[,G...]",
        help="Weight of the prior in the blend, 0 to 1; one, or one a step.",
        rich_help_panel=_MODEL,
    ),
]
GammaSchedule = Annotated[
    Literal["constant", "linear", "cosine", "late-release"],
    typer.Option(
        help="How gamma falls from --gamma, the largest, with the timestep.",
        rich_help_panel=_MODEL,
    ),
]
Steps = Annotated[
    str | None,
    typer.Option(
        metavar="N|exact",
        help="Calls of the network in a chain, or exact: what all 1000 give, by the last ones; "
        "default the posterior mean in one call, of paper exact.",
        rich_help_panel=_MODEL,
    ),
]
Tol = Annotated[
    float,
    typer.Option(
        help="Of --steps exact: largest difference to all steps, as a share of the range.",
        rich_help_panel=_MODEL,
    ),
]
Probe = Annotated[
    bool,
    typer.Option(
        "--probe/--no-probe",
        help="Check --steps exact by a second chain from another start.",
        rich_help_panel=_MODEL,
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        min=1,
        help="Samples to draw with --steps or --estimate sample; from 2, their spread is the "
        "uncertainty. The posterior mean states its own.",
        rich_help_panel=_MODEL,
    ),
]
Estimate = Annotated[
    Literal["mean", "sample"],
    typer.Option(
        help="The volume of least squared error, or one draw that looks real.",
        rich_help_panel=_MODEL,
    ),
]
Adapt = Annotated[
    bool | None,
    typer.Option(
        "--adapt/--no-adapt",
        help="Of --preset fast: check the weights on this stack and train them on it where that is "
        "called for, or check only.",
        rich_help_panel=_MODEL,
    ),
]
AxialBlur = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Blur of the volume along z beyond that across, sigma in slices; default 1.5.",
        rich_help_panel=_MODEL,
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu or cuda; default cpu.", rich_help_panel=_MODEL)
]
Start = Annotated[
    int | None,
    typer.Option(help="First slice of the first projection.", rich_help_panel=_GEOMETRY),
]
Depth = Annotated[
    int | None,
    typer.Option(
        help="Slices of the volume; default the end of the last projection.",
        rich_help_panel=_GEOMETRY,
    ),
]
Truth = Annotated[
    Path | None, typer.Option(metavar="VOLUME", help="The known volume: prints the scores.")
]
Uncertainty = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the standard deviation of the error to a file; with --memory to an .ome.zarr.",
    ),
]
Sampler = Annotated[
    Literal["ddim", "ddpm", "dpm++"] | None,
    typer.Option(help="Default: the preset's.", rich_help_panel=_MODEL),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance strength w; default 0, of paper 1.8.", rich_help_panel=_MODEL
    ),
]
Consistency = Annotated[
    Literal["hard", "soft", "off"] | None,
    typer.Option(
        help="How strictly A x = y is kept; default hard, soft where noise is 1.5 % of the range "
        "or more, of paper off.",
        rich_help_panel=_MODEL,
    ),
]
VarianceMix = Annotated[
    float | None,
    typer.Option(help="Variance mix v of --sampler ddpm, 0 to 1.", rich_help_panel=_MODEL),
]
AdaptSteps = Annotated[
    int | None,
    typer.Option(min=0, help="Training steps of the adaptation.", rich_help_panel=_MODEL),
]
InrSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Steps of fitting the INR, at most.", rich_help_panel=_MODEL),
]
Denoiser = Annotated[
    Path | None,
    typer.Option(
        metavar="CHECKPOINT",
        help="Default the shipped weights; of paper, trained here.",
        rich_help_panel=_MODEL,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(min=1, help="Slices at a time; changes memory, not the result."),
]
Recon = Annotated[Path, typer.Argument(metavar="RECON", help="The reconstruction.")]
TruthArgument = Annotated[Path, typer.Argument(metavar="TRUTH", help="The known volume.")]
Window = Annotated[
    Literal["uniform", "gaussian", "global"], typer.Option(help="Window of the SSIM.")
]
ReportFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE.html", help="Also write a page to look at both."),
]
Folder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of results.")]
MaybeVolume = Annotated[
    Path | None,
    typer.Argument(metavar="VOLUME", help="Volume to project; default a vessel phantom."),
]
StepLengthOf = Annotated[
    int, typer.Option("--step-length", help="Slices in one projection.", rich_help_panel=_GEOMETRY)
]
Blur = Annotated[float, typer.Option(min=0.0, help="Blur VOLUME along z first, sigma in slices.")]
Clip = Annotated[
    bool, typer.Option("--clip/--no-clip", help="Limit VOLUME to its 0.1-99.9 percentiles first.")
]
Checkpoint = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Weights to write; a training state lies beside."
    ),
]
MaybeProjected = Annotated[
    Path | None,
    typer.Argument(metavar="PROJ", help="Stack of projections, for --preset paper."),
]
OptimiserSteps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Optimiser steps; default the preset's.")
]
Batch = Annotated[int | None, typer.Option(min=2, help="Of --preset paper: projections in a step.")]
CheckpointSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Of --preset paper: steps between checkpoints; default 250."),
]
TrainedGamma = Annotated[
    float | None,
    typer.Option("--gamma", min=0.0, max=1.0, help="Of --preset paper: weight of the prior."),
]
TrainSteps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Of --preset paper without a checkpoint: training steps, default 2000.",
        rich_help_panel=_MODEL,
    ),
]
Volumes = Annotated[
    int | None, typer.Option(min=1, help="Of --preset fast: simulated volumes to learn from.")
]
StartFrom = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Of --preset fast: weights to begin with, not random ones."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where OUTPUT stopped.")]

_DISK = "Larger than memory"
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Go from disk to disk within this much, such as 4GiB; -o is then a .zarr store.",
        rich_help_panel=_DISK,
    ),
]
SlabMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Compare from disk within this much, such as 1GiB."),
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Print tiles, traffic, memory and hours of a run from disk to disk; compute nothing.",
        rich_help_panel=_DISK,
    ),
]
StoredAs = Annotated[
    Literal["float32", "uint16"],
    typer.Option(
        "--dtype",
        help="Of the volume on disk: uint16 is rounded and scaled, in half the room.",
        rich_help_panel=_DISK,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Begin anew where a run with --memory was stopped, instead of going on.",
        rich_help_panel=_DISK,
    ),
]
Store = Annotated[Path, typer.Argument(metavar="OUT", help="Zarr store to check.")]

# Arguments in Python that are options here, for the wording of errors.
NAMES = {
    "step_length",
    "stride",
    "weights",
    "start",
    "depth",
    "voxel_size",
    "preset",
    "steps",
    "tol",
    "sampler",
    "gamma",
    "gamma_schedule",
    "guidance",
    "variance_mix",
    "samples",
    "consistency",
    "adapt",
    "adapt_steps",
    "inr_steps",
    "axial_blur",
    "denoiser",
    "seed",
    "device",
    "batch_size",
    "blur",
    "batch",
    "checkpoint_steps",
    "train_steps",
    "volumes",
    "start_from",
    "resume",
    "memory",
    "scheduler",
    "shard",
    "threads",
}
