"""From a stack of projections to a depth-resolved volume: the only orchestrator."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .adaptation import AdaptOptions, adapt
from .denoiser import load_denoiser
from .errors import InputError
from .estimate import estimate
from .exact import TOL, Probe, exact_plan, remembered
from .forward_model import AxialProjection
from .inference import StackDenoiser, from_network, to_network
from .inr import INROptions, estimate_noise, fit_inr
from .progress import ProgressCallback
from .projections import Projections
from .schedule import NoiseSchedule, SamplingPlan, make_plan
from .schedule_gamma import GammaSchedule

# Chosen on simulated validation volumes; docs/defaults.md has the comparison.
MEAN_STEPS = 1  # one call from pure noise is the posterior mean, which more steps leave
SAMPLE_STEPS = 4
GAMMA = 0.1
SAMPLER: Literal["ddim"] = "ddim"


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What `reconstruct` returns.

    Attributes:
        volume: [Z, Y, X] float32, in the intensity units of the projections.
        prior: [Z, Y, X] the INR rendered on the voxel grid, likewise.
        uncertainty: [Z, Y, X] standard deviation of the samples, likewise; None for one sample.
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

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the volume with its voxel size and parameters; the suffix gives the format.

        Raises:
            InputError: the path exists and `overwrite` is False, or cannot be written.
        """
        from .io import write_volume

        return write_volume(
            path,
            self.volume,
            voxel_size=self.projections.voxel_size,
            overwrite=overwrite,
            metadata={"kind": "reconstruction", "parameters": self.parameters},
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
    preset: Literal["fast"] = "fast",
    steps: int | Literal["exact"] | None = None,
    tol: float = TOL,
    probe: bool = True,
    sampler: Literal["ddim", "ddpm", "dpm++"] | None = None,
    gamma: float | Sequence[float] | None = None,
    gamma_schedule: GammaSchedule = "constant",
    guidance: float = 0.0,
    variance_mix: float | None = None,
    samples: int = 1,
    consistency: Literal["hard", "soft", "off"] = "hard",
    adapt: bool = True,
    adapt_steps: int | None = None,
    axial_blur: float | None = None,
    denoiser: str | Path | None = None,
    prior: Any = None,
    inr_steps: int | None = None,
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
        preset: "fast" is the shipped local denoiser.
        steps: calls of the network per chain. None estimates the posterior mean, in one call: the
            volume of least squared error. A number runs chains of that length, whose end is a
            sample: sharper, and further from the truth on average. "exact" gives what all T = 1000
            steps would give to `tol`, by as many of the last ones as gamma makes enough.
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
        samples: chains to draw; 2 or more give the uncertainty. With `steps` the volume is their
            mean; without, it is the posterior mean, and the chains take 4 steps.
        consistency: "hard" makes the projections of the result equal the input to rounding.
        adapt: self-train on this stack, and keep it only if a check along z says so.
        adapt_steps: budget of that training in optimiser steps.
        axial_blur: sigma in slices by which the volume is softer along z than across, where it is
            known; None assumes 1.5.
        denoiser: checkpoint (.safetensors); None is the one that ships.
        prior: [Z, Y, X] in the units of the projections, instead of the INR: what the states are
            blended with.
        inr_steps: optimiser steps of the INR at most.
        seed: of everything random; the same seed and settings give the same bits.
        device: where the sampling runs; None stays where the projections are.
        batch_size: slices per network call; changes memory and time only.
        cuda_graph: on a CUDA device, run the steps of three or more samples as one captured graph;
            changes time only.
        progress: show bars.
        callback: called with a `ProgressEvent` after every unit of work; returning False cancels.

    Raises:
        InputError: an argument that does not fit; the message names it.
        Cancelled: the callback returned False.

    Source: MicroDiffusion (arXiv 2403.10815); the project's DESIGN.md for what differs.
    """
    if preset != "fast":
        raise InputError("preset", "'fast'", repr(preset))
    for name, value, least in (("samples", samples, 1), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(name, f"an integer of at least {least}", value)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError("seed", "an integer in [0, 2^63)", seed)
    if axial_blur is not None and not (
        isinstance(axial_blur, int | float) and 0 <= axial_blur <= 20
    ):
        raise InputError("axial_blur", "a sigma in slices from 0 to 20", axial_blur)
    budget = AdaptOptions() if adapt_steps is None else AdaptOptions(steps=adapt_steps)
    options = INROptions() if inr_steps is None else INROptions(steps=inr_steps)
    stack = Projections.from_any(
        projections,
        step_length=step_length,
        stride=stride,
        weights=weights,
        start=start,
        depth=depth,
        voxel_size=voxel_size,
    )
    operator = stack.operator
    low, high = stack.intensity_range()
    images = (stack.images - low) / (high - low)
    given = None if prior is None else _volume("prior", prior, stack)
    method = sampler or SAMPLER
    blend = GAMMA if gamma is None else gamma
    if steps is None and isinstance(blend, Sequence):
        steps = len(blend)
    ratio = noise_to_signal(images, operator) if consistency == "soft" else None

    def plan_of(length: int) -> SamplingPlan:
        return make_plan(
            length,
            sampler=method,
            gamma=blend,
            gamma_schedule=gamma_schedule,
            variance_mix=variance_mix,
            guidance=guidance,
            consistency=consistency,
            noise_to_signal=ratio,
            # of all timesteps there is one spacing only, and "time" is quick to find
            spacing="snr" if method == "dpm++" and steps != "exact" else "time",
        )

    mean_plan = plan_of(MEAN_STEPS) if steps is None else None
    if steps == "exact":
        plan = plan_of(NoiseSchedule().steps)
        chain = exact_plan(plan, tol)
    else:
        plan = chain = plan_of(SAMPLE_STEPS if steps is None else steps)
    chains = samples if samples > 1 or mean_plan is None else 0
    place = _device(device, stack)
    network = load_denoiser(None if denoiser is None else Path(denoiser))
    images = images.to(place)
    timings: dict[str, float] = {}
    begun = time.perf_counter()

    with _timed(timings, "prior"):
        if given is None:
            inr = fit_inr(
                images, operator, options=options, seed=seed, progress=progress, callback=callback
            )
            rendered = inr.render()
            if consistency == "hard":
                rendered = operator.consistent(rendered, images)
        else:
            rendered = (given - low).to(place) / (high - low)

    with _timed(timings, "adaptation"):
        adapted = _adapt(  # on the CPU: its random draws are, and the step is small
            network,
            images.cpu(),
            operator,
            voxel_size=stack.voxel_size,
            axial_blur=axial_blur,
            train=adapt,
            options=budget,
            seed=seed,
            progress=progress,
            callback=callback,
        )

    with _timed(timings, "sampling"):
        denoise = StackDenoiser(
            adapted.denoiser.to(place),
            images,
            operator,
            axial_blur=adapted.axial_blur,
            batch=batch_size,
            guided=guidance != 0,
            both_ways=True,
        )
        found = estimate(
            denoise,
            to_network(rendered),
            plan if probe else chain,
            chains=chains,
            tol=tol if steps == "exact" and probe else None,
            mean_plan=mean_plan,
            operator=operator,
            projections=to_network(images),
            seed=seed,
            cuda_graph=cuda_graph,
            progress=progress,
            callback=callback,
        )

    timings["total"] = time.perf_counter() - begun
    scale = high - low
    return Reconstruction(
        volume=_numpy(from_network(found.volume) * scale + low),
        prior=_numpy(rendered * scale + low),
        uncertainty=_numpy(found.deviation / 2 * scale) if found.deviation is not None else None,
        projections=stack,
        timings=timings,
        parameters={
            "step_length": stack.step_length,
            "stride": stack.stride,
            "start": stack.start,
            "depth": stack.depth,
            "weights": stack.weights,
            "preset": preset,
            "estimate": "posterior mean" if mean_plan else "mean of samples",
            "steps": steps,
            "chains": chains,
            "exact": _exactness(plan, chain, tol, found.probe) if steps == "exact" else None,
            "sampler": method,
            "gamma": blend if isinstance(blend, int | float) else list(blend),
            "gamma_schedule": gamma_schedule,
            "guidance": guidance,
            "samples": samples,
            "consistency": consistency,
            "adapt": adapt,
            "adapt_steps": budget.steps if adapt else 0,
            "axial_blur": adapted.axial_blur,
            "denoiser": "shipped" if denoiser is None else str(denoiser),
            "prior": "INR" if prior is None else "given",
            "seed": seed,
            "device": str(place),
            "intensity_range": [low, high],
        },
        adaptation={
            "accepted": adapted.accepted,
            "axial_blur": adapted.axial_blur,
            **adapted.evidence,
        },
    )


def noise_to_signal(images: Tensor, operator: AxialProjection) -> float:
    """Noise of the projections over what they may still tell, for soft consistency.

    The noise is estimated from the images, the signal from how neighbouring projections differ.
    """
    if len(images) < 2:
        return 0.0
    noise = estimate_noise(images) ** 2
    signal = float((images[1:] - images[:-1]).square().mean()) / 2
    gram = float(operator.weights.square().sum())
    return noise / max(gram * max(signal - noise, 0.01 * signal), 1e-12)


_adapt = adapt  # `reconstruct` has an argument of that name


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


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - begun


def _device(device: str | torch.device | None, stack: Projections) -> torch.device:
    if device is None:
        return stack.images.device
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError("device", "'cpu' or 'cuda'", repr(device)) from None
    if place.type not in ("cpu", "cuda"):
        raise InputError("device", "'cpu' or 'cuda'", repr(str(device)))
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device", "'cpu': torch sees no CUDA device here", repr(str(device)))
    return place


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


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy().astype(np.float32, copy=False)
