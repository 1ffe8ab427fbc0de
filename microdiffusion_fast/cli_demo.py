"""The command `demo`.

It imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

from microdiffusion_fast import cli_options as option
from microdiffusion_fast import cli_summary as summary
from microdiffusion_fast.cli_config import configurable, line


@configurable("demo")
def demo(
    output: option.Folder,
    volume: option.MaybeVolume = None,
    step_length: option.StepLengthOf = 6,
    stride: option.Stride = None,
    weights: option.Weights = None,
    noise: option.NoiseModel = None,
    blur: option.Blur = 0.0,
    clip: option.Clip = True,
    preset: option.Preset = "fast",
    steps: option.Steps = None,
    tol: option.Tol = 1e-6,
    gamma: option.Gamma = None,
    gamma_schedule: option.GammaSchedule = "constant",
    samples: option.Samples = 1,
    adapt: option.Adapt = None,
    adapt_steps: option.AdaptSteps = None,
    axial_blur: option.AxialBlur = None,
    inr_steps: option.InrSteps = None,
    train_steps: option.TrainSteps = None,
    seed: option.Seed = 0,
    device: option.Device = None,
    overwrite: option.Overwrite = False,
    quiet: option.Quiet = False,
) -> None:
    """Simulate projections of VOLUME (or of a phantom), reconstruct, evaluate and draw."""
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast.demo import run_demo
    from microdiffusion_fast.info import device_line
    from microdiffusion_fast.progress import format_seconds

    result = run_demo(
        output,
        volume=volume,
        step_length=step_length,
        stride=stride,
        weights=support.parse_numbers(weights, "--weights"),
        noise=support.parse_noise(noise),
        blur=blur,
        clip=clip,
        preset=preset,
        steps=support.parse_steps(steps),
        tol=tol,
        gamma=support.parse_gamma(gamma),
        gamma_schedule=gamma_schedule,
        samples=samples,
        adapt=adapt,
        adapt_steps=adapt_steps,
        axial_blur=axial_blur,
        inr_steps=inr_steps,
        train_steps=train_steps,
        seed=seed,
        device=device,
        overwrite=overwrite,
        command=line(),
        progress=not quiet,
    )
    if quiet:
        return
    scores = result.metrics["methods"]
    summary.print_scores(scores, result.metrics["misfits"])
    print(summary.verdict(scores))
    exact = result.metrics["parameters"].get("exact")
    if exact:
        print(summary.exact_line(exact))
    summary.print_noise(result.metrics["parameters"])
    if result.metrics["adaptation"]:
        print(summary.adaptation_line(result.metrics["adaptation"], asked=adapt is not False))
    seconds = format_seconds(result.metrics["seconds"]["total"])
    print(f"took {seconds} on {device_line(device)}")
    print(f"wrote {output}: {', '.join(sorted(path.name for path in result.folder.iterdir()))}")
    again = {
        "-o": "again.ome.tif",
        "--preset": preset,
        "--steps": steps,
        "--tol": tol if exact else None,
        "--gamma": gamma,
        "--gamma-schedule": gamma_schedule,
        "--samples": samples if samples > 1 else None,
        "--no-adapt": adapt is False,
        "--adapt-steps": adapt_steps,
        "--axial-blur": axial_blur,
        "--inr-steps": inr_steps,
        "--train-steps": train_steps,
        "--seed": seed,
        "--device": device,
        "--truth": output / "truth.ome.tif",
    }
    words = summary.command_line("reconstruct", [output / "projections.ome.tif"], again)
    print(f"recreate with: {words}")
