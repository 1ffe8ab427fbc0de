"""The commands around a reconstruction: `evaluate`, `train`, `info`.

They import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import shlex
import time

from microdiffusion_fast import cli_options as option
from microdiffusion_fast import cli_summary as summary
from microdiffusion_fast.errors import InputError


def evaluate(
    recon: option.Recon,
    truth: option.TruthArgument,
    window: option.Window = "uniform",
    as_json: option.AsJson = False,
) -> None:
    """Compare RECON with TRUTH: PSNR and SSIM (means over slices) and DICE."""
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast import metrics

    _, test = support.read_image(recon, "RECON")
    _, reference = support.read_image(truth, "TRUTH")
    with support.naming(test="RECON", reference="TRUTH"):
        scores = metrics.evaluate(test, reference, window=window).as_dict()
    if as_json:
        print(json.dumps(support.to_json(scores)))
    else:
        summary.print_scores({recon.name: scores})


def train(
    output: option.Checkpoint,
    steps: option.TrainSteps = None,
    volumes: option.Volumes = None,
    seed: option.Seed = 0,
    start_from: option.StartFrom = None,
    resume: option.Resume = False,
    overwrite: option.Overwrite = False,
    quiet: option.Quiet = False,
) -> None:
    """Train a denoiser on simulated volumes."""
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast.io_output import prepare_output
    from microdiffusion_fast.progress import format_seconds
    from microdiffusion_fast.training import TrainingConfig
    from microdiffusion_fast.training import train as compute

    # Before anything is replaced, let alone computed for hours.
    begun = time.perf_counter()
    if output.suffix != ".safetensors":
        raise InputError(support.OUTPUT, "a name ending in .safetensors", str(output))
    if resume and overwrite:
        raise InputError("--resume", "no --overwrite beside it", "both")
    with support.naming(path=support.OUTPUT):
        target = prepare_output(output, overwrite=overwrite or resume, store=False)
    support.check_writable(target.parent, support.OUTPUT)
    given = {"steps": steps, "volumes": volumes}
    chosen = {name: value for name, value in given.items() if value is not None}
    config = TrainingConfig(seed=seed, **chosen)
    with support.naming(output=support.OUTPUT):
        compute(
            output,
            config=config,
            start_from=start_from,
            resume=resume,
            overwrite=overwrite,
            progress=not quiet,
        )
    if not quiet:
        print(f"wrote {output} in {format_seconds(time.perf_counter() - begun)}")
        print(f"use it with: microdiffusion-fast reconstruct --denoiser {shlex.quote(str(output))}")


def info(as_json: option.AsJson = False) -> None:
    """Say which backends are in use, and why not the others."""
    from microdiffusion_fast.info import collect_info, info_lines

    found = collect_info()
    print(json.dumps(found) if as_json else "\n".join(info_lines(found)))
