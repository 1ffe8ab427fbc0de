"""The guided sampling loop: network, one fused step, network, one fused step.

It knows no network, no INR and no file: the denoiser, the prior and the operator are arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.kernels.blended_step import NoiseKey, blended_step
from microdiffusion_fast.kernels.counter_noise import counter_noise
from microdiffusion_fast.schedule import NoiseLevel, SamplingPlan

Denoise = Callable[[Tensor, int, NoiseLevel], Tensor | tuple[Tensor, Tensor]]


@torch.no_grad()
def sample(
    denoise: Denoise,
    prior: Tensor,
    plan: SamplingPlan,
    *,
    operator: AxialProjection | None = None,
    projections: Tensor | None = None,
    seed: int = 0,
    stream: int = 0,
    offset: tuple[int, int, int] = (0, 0, 0),
    volume_shape: tuple[int, int, int] | None = None,
    start: Tensor | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Runs the blended chain of the plan and returns its clean volume, [Z, Y, X].

    The noise that enters the state of timestep t belongs to (seed, stream, t, voxel): a block
    sampled alone gets the noise of its place in the whole volume.

    Args:
        denoise: `denoise(x, step, level)` returns the network's prediction [Z, Y, X] for the
            blended state x, or (conditional, unconditional). x is reused: do not keep or change it.
        prior: [Z, Y, X]; its device and dtype are those of the chain.
        plan: from `make_plan`.
        operator: A, when the plan asks for consistency.
        projections: y of that A, [K, Y, X].
        seed: the key of the noise, in [0, 2^64).
        stream: which sample of this volume, in [0, 2^32): each has its own noise.
        offset: (z, y, x) of this block in the whole volume.
        volume_shape: (Z, Y, X) of the whole volume; needed beside an offset.
        start: state before the first blend, [Z, Y, X]; default `plan.start` of prior and noise.
        callback: `callback(step, x)` after every step, with the state that it ended in.

    Raises:
        InputError: prior, start or projections do not fit, or the plan asks for a part not given.

    Source: MicroDiffusion (arXiv 2403.10815), section 3.
    """
    if not isinstance(prior, Tensor) or prior.ndim != 3 or not prior.is_floating_point():
        got = f"shape {list(prior.shape)}, {prior.dtype}, {type(prior).__name__}"
        raise InputError("prior", "a floating-point volume [Z, Y, X]", got)
    if start is not None and start.shape != prior.shape:
        raise InputError("start", f"shape {list(prior.shape)}, like the prior", list(start.shape))
    if plan.uses("trust"):
        _check_projections(operator, projections, prior)
    else:
        operator = projections = None
    key = NoiseKey(seed, stream, offset, volume_shape or tuple(prior.shape))
    table = plan.table.to(prior.device, torch.promote_types(prior.dtype, torch.float32))
    counter = torch.zeros((), dtype=torch.int64, device=prior.device)
    history = torch.zeros_like(prior) if plan.uses("c") else None
    draws, guided = plan.column("d").tolist(), plan.uses("w")

    if start is None:
        start = plan.start[0] * prior + plan.start[1] * counter_noise(
            prior.shape,
            seed=seed,
            step=plan.timesteps[0],
            stream=stream,
            offset=key.offset,
            volume_shape=key.volume_shape,
            device=prior.device,
        )
    x = ((1 - plan.gammas[0]) * start + plan.gammas[0] * prior).to(prior.dtype)
    for step, level in enumerate(plan.levels):
        output = denoise(x, step, level)
        cond, uncond = output if isinstance(output, tuple) else (output, None)
        if uncond is None and guided:
            raise InputError("denoise", "(conditional, unconditional) for guidance", "one volume")
        noise = key if draws[step] else None
        blended_step(
            x,
            prior,
            cond,
            table,
            counter,
            uncond=uncond,
            noise=noise,
            history=history,
            projections=projections,
            weights=operator.weights if operator else None,
            stride=operator.stride if operator else None,
            start=operator.start if operator else 0,
        )
        counter += 1
        if callback is not None:
            callback(step, x)
    return x


def _check_projections(
    operator: AxialProjection | None, projections: Tensor | None, prior: Tensor
) -> None:
    if operator is None or projections is None:
        missing = "operator" if operator is None else "projections"
        raise InputError(missing, "one for a plan with consistency", None)
    if operator.depth != prior.shape[0]:
        raise InputError("operator", f"depth {prior.shape[0]}, like the prior", operator.depth)
    expected = [operator.count, *prior.shape[1:]]
    if list(projections.shape) != expected:
        raise InputError("projections", f"shape {expected}", list(projections.shape))
