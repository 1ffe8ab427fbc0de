"""From a stack of projections to a depth-resolved volume: the only orchestrator."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .device import resolve_device
from .errors import InputError
from .estimate import estimate as run_estimate
from .exact import TOL, Probe, remembered
from .inference import from_network, to_network
from .preset import Request, noise_to_signal
from .preset_fast import prepare_fast
from .preset_paper import prepare_paper
from .progress import ProgressCallback
from .projections import Projections
from .provenance import provenance
from .schedule import SamplingPlan
from .schedule_gamma import GammaSchedule

__all__ = ["Reconstruction", "noise_to_signal", "reconstruct"]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What `reconstruct` returns.

    Attributes:
        volume: [Z, Y, X] float32, in the intensity units of the projections.
        prior: [Z, Y, X] the INR rendered on the voxel grid, likewise.
        uncertainty: [Z, Y, X] standard deviation, likewise: for the posterior mean of its error
            against slices recorded one by one, as the network states it and, where the volume
            agrees with its projections, with their noise; of the samples where several were
            drawn; else None.
        projections: the validated input.
        timings: seconds of each stage and in total.
        parameters: every option as resolved.
        adaptation: what was tried on this stack, and what was accepted.
    """

    volume: np.ndarray
    prior: np.ndarray
    uncertainty: np.ndarray | None
    projections: Projections
    timings: dict[str, float]
    parameters: dict[str, Any]
    adaptation: dict[str, Any] = field(default_factory=dict)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the volume came from: seed, versions, and hashes of projections and weights."""
        return provenance(
            seed=self.parameters["seed"],
            inputs={"projections": _numpy(self.projections.images)},
            weights=self.parameters["denoiser_sha256"],
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the volume with its voxel size and where it came from; the suffix is the format.

        Raises:
            InputError: the path exists and `overwrite` is False, or cannot be written.
        """
        from .io import write_volume

        return write_volume(
            path,
            self.volume,
            voxel_size=self.projections.voxel_size,
            overwrite=overwrite,
            metadata={
                "kind": "reconstruction",
                "parameters": self.parameters,
                "provenance": self.provenance,
            },
        )


def reconstruct(
    projections: Any,
    *,
    step_length: int | None = None,
    stride: int | None = None,
    weights: Sequence[float] | None = None,
    start: int | None = None,
    depth: int | None = None,
    voxel_size: Sequence[float] | None = None,
    preset: Literal["fast", "paper"] = "fast",
    steps: int | Literal["exact"] | None = None,
    tol: float = TOL,
    probe: bool = True,
    sampler: Literal["ddim", "ddpm", "dpm++"] | None = None,
    gamma: float | Sequence[float] | None = None,
    gamma_schedule: GammaSchedule = "constant",
    guidance: float | None = None,
    variance_mix: float | None = None,
    estimate: Literal["mean", "sample"] = "mean",
    samples: int = 1,
    consistency: Literal["hard", "soft", "off"] | None = None,
    adapt: bool | None = None,
    adapt_steps: int | None = None,
    axial_blur: float | None = None,
    denoiser: str | Path | None = None,
    prior: Any = None,
    inr_steps: int | None = None,
    train_steps: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    cuda_graph: bool = True,
    progress: bool = False,
    callback: ProgressCallback | None = None,
) -> Reconstruction:
    """Reconstruct the volume [Z, Y, X] behind a stack of axial projections [K, Y, X].

    Args:
        projections: array, tensor, anything with DLPack, path, zarr array, or `Projections`.
        step_length: slices integrated into one projection; None takes what the file says.
        stride: slices between window starts; None is `step_length`, disjoint windows.
        weights: axial weights [step_length]; None is the mean.
        start: first slice of the first window.
        depth: slices Z of the volume; None ends with the last window.
        voxel_size: (z, y, x) of the volume's voxels in micrometres; travels to the result, and
            tells adaptation how the axes compare.
        preset: "fast" is the shipped local denoiser, "paper" the published method, its denoiser
            trained on this very stack. An option that is None takes the preset's default:

                             fast             paper
                steps        posterior mean   "exact"
                sampler      "ddim"           "ddpm"
                gamma        0.1              that of the checkpoint, 0.9 without
                guidance     0                1.8
                variance_mix                  0.3
                consistency  "hard" or "soft" "off", as published
                adapt        True             False: it is trained

        steps: calls of the network per chain. The posterior mean is one call: the volume of least
            squared error. A number runs chains of that length, whose end is a sample: sharper, and
            further from the truth on average. "exact" gives what all T = 1000 steps would give to
            `tol`, by as many of the last ones as gamma makes enough.
        tol: for "exact": largest difference to all steps, as a share of the intensity range.
        probe: for "exact": run a second chain from another start, and take more steps until both
            end within `tol`; twice the calls of the first chain.
        sampler: "ddim", "ddpm" or "dpm++" (DPM-Solver++ 2M).
        gamma: weight of the prior in the blend of every state, in [0, 1]: a number, or one per
            step; `schedule.make_plan` has the convention.
        gamma_schedule: "constant", or how gamma falls with the timestep from that number: "linear",
            "cosine", "late-release"; see `schedule_gamma.gamma_schedule`.
        guidance: classifier-free guidance strength w; 0 needs no second network call.
        variance_mix: v of DDPM's learned-variance mix.
        estimate: "mean" is the volume of least squared error: the posterior mean, or with `steps`
            the mean of the samples. "sample" is one draw of the posterior, of 4 steps unless given:
            it looks real, and is further from the truth on average.
        samples: chains to draw; from 2 on their standard deviation is the uncertainty. The
            posterior mean needs 1: it states its own.
        consistency: "hard" makes the projections of the result equal the input to rounding, "soft"
            as nearly as their noise tells. None with "fast" is "soft" where the noise is 1.5 % of
            the intensity range or more, which "hard" would copy into the volume.
        adapt: for "fast": check the weights on this stack, follow them as far as the check allows,
            and train them on the stack itself where that is not far. False checks only.
        adapt_steps: optimiser steps of that training; a number always trains, None 100 steps where
            they are called for.
        axial_blur: sigma in slices by which the volume is softer along z than across, where it is
            known; None estimates it, or takes 1.5 where the stack is short or noisy.
        denoiser: checkpoint (.safetensors). None is the one that ships; for "paper" it trains one
            and keeps it as long as it is needed (`train_paper` makes one to keep).
        prior: [Z, Y, X] in the units of the projections, instead of the INR: what the states are
            blended with.
        inr_steps: optimiser steps of the INR at most.
        train_steps: for "paper" without a checkpoint: optimiser steps of that training, 2000 unless
            given. On a CPU that is for small images.
        seed: of everything random; the same seed and settings give the same bits.
        device: where the sampling runs; None stays where the projections are.
        batch_size: slices per network call at most; changes memory and time only.
        cuda_graph: on a CUDA device, run the steps of three or more samples as one captured graph;
            changes time only.
        progress: show bars.
        callback: called with a `ProgressEvent` after every unit of work; returning False cancels.

    Raises:
        InputError: an argument that does not fit; the message names it. Also weights that give NaN
            or infinity: no volume is returned then.
        Cancelled: the callback returned False.

    Examples:
        >>> from microdiffusion_fast.simulate import simulate_projections, simulate_volume
        >>> truth = simulate_volume("vessels", (24, 32, 32), seed=1)
        >>> stack = simulate_projections(truth, step_length=6)
        >>> result = reconstruct(stack, adapt=False, inr_steps=5)
        >>> result.volume.shape
        (24, 32, 32)
        >>> bool(abs(stack.operator(torch.from_numpy(result.volume)) - stack.images).max() < 1e-5)
        True

    Source: MicroDiffusion (arXiv 2403.10815); the project's DESIGN.md for what differs.
    """
    prepare = {"fast": prepare_fast, "paper": prepare_paper}.get(preset)
    if prepare is None:
        raise InputError("preset", "'fast' or 'paper'", repr(preset))
    if estimate not in ("mean", "sample"):
        raise InputError("estimate", "'mean' or 'sample'", repr(estimate))
    for name, value, least in (("samples", samples, 1), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(name, f"an integer of at least {least}", value)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError("seed", "an integer in [0, 2^63)", seed)
    stack = Projections.from_any(
        projections,
        step_length=step_length,
        stride=stride,
        weights=weights,
        start=start,
        depth=depth,
        voxel_size=voxel_size,
    )
    asked = Request(
        stack=stack,
        steps=steps,
        tol=tol,
        sampler=sampler,
        gamma=gamma,
        gamma_schedule=gamma_schedule,
        guidance=guidance,
        variance_mix=variance_mix,
        estimate=estimate,
        samples=samples,
        consistency=consistency,
        adapt=adapt,
        adapt_steps=adapt_steps,
        axial_blur=axial_blur,
        denoiser=denoiser,
        prior=None if prior is None else _volume("prior", prior, stack),
        inr_steps=inr_steps,
        train_steps=train_steps,
        seed=seed,
        device=resolve_device(device, stack.images.device),
        batch_size=batch_size,
        progress=progress,
        callback=callback,
    )
    begun = time.perf_counter()
    ready = prepare(asked)
    exact = ready.parameters["steps"] == "exact"
    with asked.timed("sampling"):
        found = run_estimate(
            ready.denoise,
            to_network(ready.prior),
            ready.plan if probe else ready.chain,
            chains=ready.chains,
            averaged=estimate == "mean",
            tol=tol if exact and probe else None,
            operator=stack.operator,
            projections=to_network(ready.images),
            seed=seed,
            cuda_graph=cuda_graph,
            progress=progress,
            callback=callback,
        )
    _check_finite("prior", "a prior of finite intensities", ready.prior)
    _check_finite("denoiser", "weights that give finite intensities", found.volume)
    deviation = ready.stated() if ready.stated else found.deviation
    low, high = ready.parameters["intensity_range"]
    scale = high - low
    return Reconstruction(
        volume=_numpy(from_network(found.volume) * scale + low),
        prior=_numpy(ready.prior * scale + low),
        uncertainty=None if deviation is None else _numpy(deviation / 2 * scale),
        projections=stack,
        timings={**asked.timings, "total": time.perf_counter() - begun},
        parameters={
            "step_length": stack.step_length,
            "stride": stack.stride,
            "start": stack.start,
            "depth": stack.depth,
            "weights": stack.weights,
            "preset": preset,
            "estimate": "posterior mean" if ready.stated else estimate,
            "chains": ready.chains,
            "exact": _exactness(ready.plan, ready.chain, tol, found.probe) if exact else None,
            "gamma_schedule": gamma_schedule,
            "samples": samples,
            "seed": seed,
            "device": str(asked.device),
            **ready.parameters,
        },
        adaptation=ready.adaptation,
    )


def _exactness(
    plan: SamplingPlan, chain: SamplingPlan, tol: float, probe: Probe | None
) -> dict[str, Any]:
    """What is on record of an exact chain: differences are shares of the intensity range."""
    taken = probe.plan if probe else chain
    return {
        "steps": len(taken),
        "of": len(plan),
        "tol": tol,
        "bound": remembered(taken),
        "difference": probe.difference if probe else None,
    }


def _volume(name: str, data: Any, stack: Projections) -> Tensor:
    try:
        if isinstance(data, Tensor):
            volume = data.detach().to("cpu", torch.float32)
        else:
            volume = torch.as_tensor(np.asarray(data), dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(name, "an array [Z, Y, X] of numbers", type(data).__name__) from None
    expected = [stack.depth, *stack.images.shape[1:]]
    if list(volume.shape) != expected:
        raise InputError(name, f"shape {expected}", list(volume.shape))
    if not bool(volume.isfinite().all()):
        raise InputError(name, "finite values", "NaN or Inf")
    return volume


def _check_finite(argument: str, expected: str, volume: Tensor) -> None:
    if bool(volume.sum(dtype=torch.float64).isfinite()):  # without a copy
        return
    bad = (~volume.isfinite()).flatten(1).sum(1).nonzero().flatten().tolist()
    got = f"NaN or Inf in {len(bad)} of {len(volume)} slices, the first at z = {bad[0]}"
    raise InputError(argument, expected, got)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy().astype(np.float32, copy=False)
