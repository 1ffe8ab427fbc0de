"""The command line for volumes larger than memory: `--memory`, `--plan` and `verify`.

One rule for all commands: `--memory SIZE` goes from disk to disk within that much, and without it
what does not fit into the memory that is free is refused, with a line that says so. Results of
`simulate` and `evaluate` are the same either way; a reconstruction from disk to disk blends its
states with linear interpolation in place of the INR.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from microdiffusion_fast import cli_options as option
from microdiffusion_fast import cli_summary as summary
from microdiffusion_fast.errors import InputError

if TYPE_CHECKING:
    from microdiffusion_fast.cli_distributed import Spread
    from microdiffusion_fast.metrics import Window
    from microdiffusion_fast.simulate import Noise
    from microdiffusion_fast.store_source import StoredStack

# Resident bytes per voxel in memory: measured for reconstruct, counted for the others.
RECONSTRUCT_BYTES, SIMULATE_BYTES, EVALUATE_BYTES = 170, 12, 12
_DEFAULT = "4GiB"


def refuse(given: Mapping[str, Any]) -> None:
    """Refuse options that a run from disk to disk does not take.

    Raises:
        InputError: naming the first that is not None.
    """
    for name, value in given.items():
        if value is not None:
            raise InputError(name, "none with --memory", value)


def refuse_too_large(
    path: Path, argument: str, *, bytes_per_voxel: int, slices: int | None = 1
) -> None:
    """Refuse what memory does not hold, before any of it is read.

    Args:
        path: a volume, or a stack of projections.
        argument: its name on the command line.
        bytes_per_voxel: that the command takes in memory.
        slices: of the volume for each image; None is what the file says.

    Raises:
        InputError: saying what it would take.
    """
    from microdiffusion_fast.store_source import open_stack

    free = free_memory()
    try:
        stack = open_stack(path)
    except InputError:
        return  # what is wrong with a file is said where it is read
    stored = stack.extra.get("stride")
    slices = slices or (stored if isinstance(stored, int) else 1)
    count, height, width = stack.shape
    needed = count * slices * height * width * bytes_per_voxel
    if free is not None and needed > free:
        expected = f"about {needed / 2**30:,.1f} GiB of free memory (or --memory SIZE)"
        raise InputError(argument, expected, f"{free / 2**30:,.1f} GiB")


def free_memory() -> int | None:
    """Bytes that programs may still take, None where the system does not say."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(1024 * int(available.split()[1]))
    with suppress(OSError, ValueError):  # a container's limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(found, default=None)


def reconstruct_stored(
    projections: Path,
    output: Path,
    *,
    step_length: int | None,
    stride: int | None,
    weights: tuple[float, ...] | None,
    start: int | None,
    depth: int | None,
    voxel_size: tuple[float, float, float] | None,
    steps: int | Literal["exact"] | None,
    sampler: Literal["ddim", "ddpm", "dpm++"] | None,
    gamma: float | tuple[float, ...] | None,
    guidance: float | None,
    consistency: Literal["hard", "soft", "off"] | None,
    adapt: bool | None,
    adapt_steps: int | None,
    axial_blur: float | None,
    denoiser: Path | None,
    seed: int,
    device: str | None,
    memory: str | None,
    plan: bool,
    fresh: bool,
    spread: Spread,
    dtype: Literal["float32", "uint16"],
    uncertainty: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """`reconstruct --memory SIZE` and `--plan`: from disk to disk, in one process or in many."""
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast.preset_fast import GAMMA, SAMPLER
    from microdiffusion_fast.progress import ProgressEvent, format_seconds
    from microdiffusion_fast.streaming import stream_reconstruct
    from microdiffusion_fast.streaming_outputs import are_finished

    if isinstance(gamma, tuple):
        raise InputError("--gamma", "one number with --memory", gamma)
    if steps == "exact":
        raise InputError("--steps", "a number with --memory", steps)
    if not plan:
        support.check_output_file(
            output, overwrite=True, argument=support.OUTPUT, inputs=[projections]
        )
    unsaid = [projections]

    def warn_once(event: ProgressEvent) -> None:
        if unsaid and voxel_size is None:
            _warn_of(unsaid.pop())

    names = {"path": support.PROJ, "projections": support.PROJ, "output": support.OUTPUT}
    names["resume"] = support.OUTPUT  # what was begun there
    names["uncertainty"] = "--uncertainty"
    compute = partial(
        stream_reconstruct,
        projections,
        output,
        step_length=step_length,
        stride=stride,
        weights=weights,
        start=start,
        depth=depth,
        voxel_size=voxel_size,
        steps=steps,
        sampler=sampler or SAMPLER,
        gamma=GAMMA if gamma is None else gamma,
        guidance=guidance or 0.0,
        consistency=consistency,
        adapt=adapt is not False,
        adapt_steps=adapt_steps,
        axial_blur=axial_blur,
        denoiser=denoiser,
        seed=seed,
        device=device,
        memory=memory or _DEFAULT,
        dtype=dtype,
        uncertainty=uncertainty,
        resume=not fresh,
        overwrite=overwrite,
        shard=spread.shard,
        threads=spread.threads,
        progress=not quiet,
        callback=warn_once,
    )
    asked_only = plan or spread.sbatch is not None
    with support.naming(**names):
        if asked_only:
            done = compute(plan_only=True)
        elif spread.scheduler is None:
            done = compute()
        else:  # what can be wrong with the call is found before workers are asked for
            planned = compute(plan_only=True).planned
            complete = not fresh and are_finished(
                output, uncertainty, planned.identity, overwrite=overwrite
            )
            if not complete:
                support.check_output_file(
                    output, overwrite=overwrite, argument=support.OUTPUT, inputs=[projections]
                )
            with spread.client(device, wanted=not complete) as client:
                done = compute(client=client)
    if plan:
        from microdiffusion_fast.streaming_cost import plan_lines

        print("\n".join(plan_lines(done.planned, memory=memory or _DEFAULT)))
        return
    if spread.sbatch is not None:
        spread.write_script(spread.sbatch, sys.argv[1:], tiles=done.tiles)
        if not quiet:
            print(f"wrote {spread.sbatch} for {done.tiles:,} tiles: sbatch {spread.sbatch}")
        return
    if quiet:
        return
    summary.print_noise(done.parameters)
    if done.adaptation:
        print(summary.adaptation_line(done.adaptation, asked=adapt is not False))
    z, y, x = done.planned.plan.shape
    if not done.finished:
        print(f"part {spread.shard} is done: {done.tiles:,} tiles; {output} waits for the others")
        return
    if not done.tiles:
        print(f"{output} is complete already: {z} x {y} x {x}")
        return
    for clipped, of in (("clipped", ""), ("uncertainty_clipped", " of the uncertainty")):
        if count := done.parameters.get(clipped):
            words = f"{count:,} voxels{of} lie outside of what uint16 spans here"
            print(f"warning: {words}", file=sys.stderr)
    again = (
        f", {done.resumed:,} of {done.tiles:,} tiles from an earlier run" if done.resumed else ""
    )
    print(f"wrote {output}: {z} x {y} x {x} in {format_seconds(done.seconds)}{again}")
    if uncertainty is not None:
        print(f"wrote {uncertainty}: standard deviation of the error")
    print(f"check it with: {summary.command_line('verify', [output], {})}")


def _warn_of(path: Path) -> None:
    from microdiffusion_fast.store_source import open_stack

    stack = open_stack(path)
    if stack.voxel_size is None and not stack.extra.get("voxel_size"):
        summary.warn_no_voxel_size(path)


def simulate(
    volume: Path,
    output: Path,
    *,
    step_length: int,
    stride: int | None,
    weights: tuple[float, ...] | None,
    noise: Noise | None,
    voxel_size: tuple[float, float, float] | None,
    seed: int,
    memory: str,
    overwrite: bool,
    progress: bool,
) -> StoredStack:
    """`simulate --memory SIZE`: slab by slab, into a Zarr store."""
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast.simulate_stream import simulate_stored
    from microdiffusion_fast.store_source import open_stack

    if not output.name.lower().endswith(".zarr"):
        raise InputError(support.OUTPUT, "a name ending in .zarr with --memory", str(output))
    with support.naming(path=support.VOLUME):
        stack = open_stack(volume)
    names = {"path": support.VOLUME, "volume": support.VOLUME, "projections": "--step-length"}
    names["output"] = support.OUTPUT
    with support.naming(**names):
        return simulate_stored(
            stack,
            output,
            step_length=step_length,
            stride=stride,
            weights=weights,
            noise=noise,
            voxel_size=voxel_size,
            seed=seed,
            memory=memory,
            overwrite=overwrite,
            progress=progress,
        )


def evaluate(
    recon: Path, truth: Path, *, window: Window, memory: str, progress: bool
) -> dict[str, Any]:
    """`evaluate --memory SIZE`: slab by slab."""
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast.metrics_stream import evaluate_stored
    from microdiffusion_fast.store_source import open_stack

    with support.naming(path="RECON"):
        test = open_stack(recon)
    with support.naming(path="TRUTH"):
        reference = open_stack(truth)
    with support.naming(test="RECON", reference="TRUTH"):
        found = evaluate_stored(test, reference, window=window, memory=memory, progress=progress)
    return found.as_dict()


def verify(output: option.Store, quiet: option.Quiet = False) -> None:
    """Read all of OUT: every shard there, every checksum right, no NaN."""
    from microdiffusion_fast import cli_support as support
    from microdiffusion_fast.store_verify import verify as check

    with support.naming(path="OUT"):
        found = check(output, progress=not quiet)
    if found.ok:
        if not quiet:
            print(f"{output}: {found.shards:,} shards, all as they were written")
        return
    for fault in found.faults:
        print(fault)
    counts = {"missing": found.missing, "damaged": found.damaged, "NaN voxels": found.unwritten}
    words = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    raise InputError("OUT", f"{found.shards:,} shards as they were written", words)
