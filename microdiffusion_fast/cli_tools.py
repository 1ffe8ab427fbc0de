"""The commands around a reconstruction: `evaluate`, `train`, `info`.

They import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion_fast import cli_options as option
from microdiffusion_fast import cli_summary as summary
from microdiffusion_fast.cli_config import configurable
from microdiffusion_fast.errors import InputError

if TYPE_CHECKING:
    from microdiffusion_fast import metrics


def evaluate(
    recon: option.Recon,
    truth: option.TruthArgument,
    window: option.Window = "uniform",
    memory: option.SlabMemory = None,
    report: option.ReportFile = None,
    overwrite: option.Overwrite = False,
    as_json: option.AsJson = False,
) -> None:
    """Compare RECON with TRUTH: PSNR and SSIM (means over slices) and DICE."""
    from microdiffusion_fast import cli_stream as stream
    from microdiffusion_fast import cli_support as support

    if memory is not None:
        if report is not None:
            raise InputError(
                "--report", "no --memory with it: the page needs whole volumes", report
            )
        scores = stream.evaluate(recon, truth, window=window, memory=memory, progress=not as_json)
    else:
        for path, name in ((recon, "RECON"), (truth, "TRUTH")):
            stream.refuse_too_large(path, name, bytes_per_voxel=stream.EVALUATE_BYTES)
        scores = _in_memory(recon, truth, window, report, overwrite=overwrite)
    if as_json:
        print(json.dumps(support.to_json(scores)))
    else:
        summary.print_scores({recon.name: scores})


def _in_memory(
    recon: Path, truth: Path, window: metrics.Window, report: Path | None, *, overwrite: bool
) -> dict[str, Any]:
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast import metrics

    if report is not None:
        from microdiffusion_fast.evaluation_page import check_report, write_page

        check_report(report, overwrite=overwrite, inputs=[recon, truth])
    made, test = support.read_image(recon, "RECON")
    known, reference = support.read_image(truth, "TRUTH")
    with support.naming(test="RECON", reference="TRUTH"):
        scores = metrics.evaluate(test, reference, window=window).as_dict()
    if report is not None:
        write_page(report, (recon, made, test), (truth, known, reference), scores, window)
    return scores


@configurable("train")
def train(
    output: option.Checkpoint,
    projections: option.MaybeProjected = None,
    preset: option.Preset = "fast",
    step_length: option.StepLength = None,
    stride: option.Stride = None,
    weights: option.Weights = None,
    start: option.Start = None,
    depth: option.Depth = None,
    steps: option.OptimiserSteps = None,
    batch: option.Batch = None,
    gamma: option.TrainedGamma = None,
    checkpoint_steps: option.CheckpointSteps = None,
    volumes: option.Volumes = None,
    seed: option.Seed = 0,
    start_from: option.StartFrom = None,
    resume: option.Resume = False,
    device: option.Device = None,
    overwrite: option.Overwrite = False,
    quiet: option.Quiet = False,
) -> None:
    """Train a denoiser: on simulated volumes, or the paper's on PROJ itself."""
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast.io_output import prepare_output
    from microdiffusion_fast.progress import format_seconds

    # Before anything is replaced, let alone computed for hours.
    begun = time.perf_counter()
    geometry: dict[str, Any] = {
        "step_length": step_length,
        "stride": stride,
        "weights": support.parse_numbers(weights, "--weights"),
        "start": start,
        "depth": depth,
    }
    paper = {"batch": batch, "gamma": gamma, "checkpoint_steps": checkpoint_steps}
    only: dict[str, dict[str, Any]] = {
        "paper": {"PROJ": projections, **geometry, **paper, "device": device},
        "fast": {"volumes": volumes, "start_from": start_from},
    }
    for name, value in only["fast" if preset == "paper" else "paper"].items():
        if value is not None:
            raise InputError(name, f"none with --preset {preset}", value)
    if output.suffix != ".safetensors":
        raise InputError(support.OUTPUT, "a name ending in .safetensors", str(output))
    if resume and overwrite:
        raise InputError("--resume", "no --overwrite beside it", "both")
    with support.naming(path=support.OUTPUT):
        target = prepare_output(output, overwrite=overwrite or resume, store=False)
    support.check_writable(target.parent, support.OUTPUT)
    shared: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "progress": not quiet}
    if preset == "paper":
        from microdiffusion_fast.paper_training import PaperTraining, train_paper
        from microdiffusion_fast.projections import Projections

        if projections is None:
            raise InputError(support.PROJ, "a stack of projections for --preset paper", "none")
        recipe = PaperTraining(seed=seed, **_given(steps=steps, **paper))
        with support.naming(path=support.PROJ, projections=support.PROJ):
            stack = Projections.from_any(projections, **geometry)
        with support.naming(output=support.OUTPUT):
            train_paper(stack, output, config=recipe, device=device, **shared)
    else:
        from microdiffusion_fast.training import TrainingConfig
        from microdiffusion_fast.training import train as compute

        config = TrainingConfig(seed=seed, **_given(steps=steps, volumes=volumes))
        with support.naming(output=support.OUTPUT):
            compute(output, config=config, start_from=start_from, **shared)
    if quiet or int(os.environ.get("RANK", "0")):
        return
    print(f"wrote {output} in {format_seconds(time.perf_counter() - begun)}")
    use: dict[str, Any] = {"--denoiser": output}
    if preset == "paper":
        use = {"-o": "OUT", "--preset": "paper", **use}
    print(f"use it with: {summary.command_line('reconstruct', [projections or 'PROJ'], use)}")


def _given(**options: Any) -> dict[str, Any]:
    """Those that are: a recipe has defaults of its own for the others."""
    return {name: value for name, value in options.items() if value is not None}


def info(as_json: option.AsJson = False) -> None:
    """Say which backends are in use, and why not the others."""
    from microdiffusion_fast.info import collect_info, info_lines

    found = collect_info()
    print(json.dumps(found) if as_json else "\n".join(info_lines(found)))
