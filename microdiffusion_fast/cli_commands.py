"""The commands that project and reconstruct: `simulate`, `reconstruct`.

They import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer  # noqa: TID253  # the package never imports this module

from microdiffusion_fast import cli_distributed as spreading
from microdiffusion_fast import cli_options as option
from microdiffusion_fast import cli_summary as summary
from microdiffusion_fast.cli_config import configurable
from microdiffusion_fast.errors import InputError

app = typer.Typer(
    name="microdiffusion-fast",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Depth-resolved volumes from axially averaged microscope projections."""


def simulate(
    volume: option.Volume,
    output: option.Output,
    step_length: option.StepLengthOf,
    stride: option.Stride = None,
    weights: option.Weights = None,
    noise: option.NoiseModel = None,
    voxel_size: option.VoxelSize = None,
    seed: option.Seed = 0,
    memory: option.Memory = None,
    overwrite: option.Overwrite = False,
    quiet: option.Quiet = False,
) -> None:
    """Make the projections that a microscope would take of VOLUME."""
    from microdiffusion_fast import cli_stream as stream
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast.provenance import provenance
    from microdiffusion_fast.simulate import simulate_projections

    given = support.parse_numbers(weights, "--weights"), support.parse_noise(noise)
    support.check_output_file(output, overwrite=overwrite, argument=support.OUTPUT, inputs=[volume])
    if memory is not None:
        made = stream.simulate(
            volume,
            output,
            step_length=step_length,
            stride=stride,
            weights=given[0],
            noise=given[1],
            voxel_size=voxel_size,
            seed=seed,
            memory=memory,
            overwrite=overwrite,
            progress=not quiet,
        )
        if made.voxel_size is None:
            summary.warn_no_voxel_size(volume)
        if not quiet:
            summary.print_stack(output, made.shape)
        return
    stream.refuse_too_large(volume, support.VOLUME, bytes_per_voxel=stream.SIMULATE_BYTES)
    image, data = support.read_image(volume, support.VOLUME)
    # The volume itself is sound: what is wrong now is the geometry.
    with support.naming(projections="--step-length", volume=support.VOLUME):
        projections = simulate_projections(
            data,
            step_length=step_length,
            stride=stride,
            weights=given[0],
            noise=given[1],
            seed=seed,
            voxel_size=voxel_size or image.voxel_size,
        )
    origin = provenance(seed=seed, inputs={"volume": data})
    with support.naming(path=support.OUTPUT):
        projections.save(output, overwrite=overwrite, provenance=origin)
    if projections.voxel_size is None:
        summary.warn_no_voxel_size(volume)
    if not quiet:
        summary.print_stack(output, projections.images.shape)


@configurable("reconstruct")
def reconstruct(
    projections: option.Projected,
    output: option.Output,
    step_length: option.StepLength = None,
    stride: option.Stride = None,
    weights: option.Weights = None,
    start: option.Start = None,
    depth: option.Depth = None,
    voxel_size: option.VoxelSize = None,
    truth: option.Truth = None,
    uncertainty: option.Uncertainty = None,
    preset: option.Preset = "fast",
    steps: option.Steps = None,
    tol: option.Tol = 1e-6,
    probe: option.Probe = True,
    sampler: option.Sampler = None,
    gamma: option.Gamma = None,
    gamma_schedule: option.GammaSchedule = "constant",
    guidance: option.Guidance = None,
    variance_mix: option.VarianceMix = None,
    estimate: option.Estimate = "mean",
    samples: option.Samples = 1,
    consistency: option.Consistency = None,
    adapt: option.Adapt = None,
    adapt_steps: option.AdaptSteps = None,
    axial_blur: option.AxialBlur = None,
    inr_steps: option.InrSteps = None,
    train_steps: option.TrainSteps = None,
    denoiser: option.Denoiser = None,
    seed: option.Seed = 0,
    device: option.Device = None,
    batch_size: option.BatchSize = 8,
    memory: option.Memory = None,
    plan: option.Plan = False,
    fresh: option.Fresh = False,
    scheduler: spreading.Scheduler = None,
    shard: spreading.Shard = None,
    threads: spreading.Threads = None,
    sbatch: spreading.Sbatch = None,
    parts: spreading.Parts = spreading.PARTS,
    dtype: option.StoredAs = "float32",
    overwrite: option.Overwrite = False,
    quiet: option.Quiet = False,
) -> None:
    """Reconstruct the volume [Z, Y, X] behind a stack of projections."""
    from microdiffusion_fast import cli_stream as stream
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast.progress import ProgressEvent, format_seconds
    from microdiffusion_fast.projections import Projections

    # Everything that can be wrong with the call is found before the long computation.
    begun = time.perf_counter()
    gammas, taps = support.parse_gamma(gamma), support.parse_numbers(weights, "--weights")
    length = support.parse_steps(steps)
    spread = spreading.Spread(scheduler, shard, threads, sbatch, parts)
    spread.check(fresh=fresh)
    if memory is not None or plan or spread.asked:
        stream.refuse(
            {
                "--truth": truth,
                "--preset": None if preset == "fast" else preset,
                "--variance-mix": variance_mix,
                "--samples": None if samples == 1 else samples,
                "--estimate": None if estimate == "mean" else estimate,
                "--tol": None if tol == 1e-6 else tol,
                "--no-probe": None if probe else "it",
                "--batch-size": None if batch_size == 8 else batch_size,
                "--inr-steps": inr_steps,
                "--train-steps": train_steps,
                "--steps": "exact" if length == "exact" else None,
                "--gamma-schedule": None if gamma_schedule == "constant" else gamma_schedule,
            }
        )
        stream.reconstruct_stored(
            projections,
            output,
            step_length=step_length,
            stride=stride,
            weights=taps,
            start=start,
            depth=depth,
            voxel_size=voxel_size,
            steps=length,
            sampler=sampler,
            gamma=gammas,
            guidance=guidance,
            consistency=consistency,
            adapt=adapt,
            adapt_steps=adapt_steps,
            axial_blur=axial_blur,
            denoiser=denoiser,
            seed=seed,
            device=device,
            memory=memory,
            plan=plan,
            fresh=fresh,
            spread=spread,
            dtype=dtype,
            uncertainty=uncertainty,
            overwrite=overwrite,
            quiet=quiet,
        )
        return
    alone = {"--fresh": fresh, "--threads": threads, "--dtype uint16": dtype == "uint16"}
    for name, value in alone.items():
        if value:
            raise InputError(name, "--memory with it", "none")
    stream.refuse_too_large(
        projections,
        support.PROJ,
        bytes_per_voxel=stream.RECONSTRUCT_BYTES,
        slices=step_length if stride is None else stride,
    )
    outputs = [(output, support.OUTPUT)]
    if uncertainty is not None:
        drawn = preset == "paper" or estimate == "sample" or length is not None
        if drawn and samples < 2:
            raise InputError("--uncertainty", "--samples of at least 2 with it", samples)
        if uncertainty.absolute() == output.absolute():
            raise InputError("--uncertainty", "another file than -o", str(uncertainty))
        outputs.append((uncertainty, "--uncertainty"))
    inputs = [path for path in (projections, truth, denoiser) if path is not None]
    for path, name in outputs:
        support.check_output_file(path, overwrite=overwrite, argument=name, inputs=inputs)
    with support.naming(path=support.PROJ, projections=support.PROJ):
        stack = Projections.from_any(
            projections,
            step_length=step_length,
            stride=stride,
            weights=taps,
            start=start,
            depth=depth,
            voxel_size=voxel_size,
        )
    known = None if truth is None else support.read_truth(truth, stack)
    unsaid = [projections] if stack.voxel_size is None else []

    def warn_once(event: ProgressEvent) -> None:
        # Not before the first step: what `compute` refuses is refused in one line.
        while unsaid:
            summary.warn_no_voxel_size(unsaid.pop())

    from microdiffusion_fast.reconstruct import reconstruct as compute

    result = compute(
        stack,
        preset=preset,
        steps=length,
        tol=tol,
        probe=probe,
        sampler=sampler,
        gamma=gammas,
        gamma_schedule=gamma_schedule,
        guidance=guidance,
        variance_mix=variance_mix,
        estimate=estimate,
        samples=samples,
        consistency=consistency,
        adapt=adapt,
        adapt_steps=adapt_steps,
        axial_blur=axial_blur,
        inr_steps=inr_steps,
        train_steps=train_steps,
        denoiser=denoiser,
        seed=seed,
        device=device,
        batch_size=batch_size,
        progress=not quiet,
        callback=warn_once,
    )
    with support.naming(path=support.OUTPUT):
        result.save(output, overwrite=overwrite)
    if uncertainty is not None and result.uncertainty is not None:
        about = {"kind": "uncertainty", "parameters": result.parameters}
        about["provenance"] = result.provenance
        support.write_beside(
            uncertainty, result.uncertainty, stack, metadata=about, overwrite=overwrite
        )
    if known is not None:
        from microdiffusion_fast.demo_methods import baselines, score

        made = {"inr": result.prior, "reconstruction": result.volume}
        scores = score({**baselines(stack), **made}, known, stack)
        summary.print_scores(scores)
        print(summary.verdict(scores))
    if quiet:
        return
    exact = result.parameters.get("exact")
    if exact:
        print(summary.exact_line(exact))
    summary.print_noise(result.parameters)
    if result.adaptation:
        print(summary.adaptation_line(result.adaptation, asked=adapt is not False))
    z, y, x = result.volume.shape
    print(f"wrote {output}: {z} x {y} x {x} in {format_seconds(time.perf_counter() - begun)}")
    again: dict[str, Any] = {
        "-o": output,
        "--step-length": stack.step_length,
        "--stride": stack.stride,
        "--weights": stack.weights and ",".join(f"{weight:.9g}" for weight in stack.weights),
        "--start": stack.start or None,
        "--depth": stack.depth,
        "--voxel-size": voxel_size,
        "--preset": preset,
        "--steps": steps,
        "--tol": tol if exact else None,
        "--no-probe": bool(exact) and not probe,
        "--sampler": sampler,
        "--gamma": gamma,
        "--gamma-schedule": gamma_schedule,
        "--guidance": guidance,
        "--variance-mix": variance_mix,
        "--estimate": "sample" if estimate == "sample" else None,
        "--samples": samples if samples > 1 else None,
        "--consistency": consistency,
        "--no-adapt": adapt is False,
        "--adapt-steps": adapt_steps,
        "--axial-blur": axial_blur,
        "--inr-steps": inr_steps,
        "--train-steps": train_steps,
        "--denoiser": denoiser,
        "--seed": seed,
        "--device": device,
        "--overwrite": True,
    }
    print(f"recreate with: {summary.command_line('reconstruct', [projections], again)}")
