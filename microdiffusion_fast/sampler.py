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
            step counts from 0, in the last steps of a longer plan as in all of it.
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
    chain = Chain(denoise, prior, plan, operator=operator, projections=projections)
    chain.begin(seed=seed, stream=stream, offset=offset, volume_shape=volume_shape, start=start)
    return chain.advance(callback)


class Chain:
    """One chain on memory of its own: `begin` sets its start and its noise, `advance` runs it.

    Between runs the prior and the projections may be changed in place, for another tile of the
    same shape. Arguments as in `sample`; `ChainGraph` captures `advance`.
    """

    def __init__(
        self,
        denoise: Denoise,
        prior: Tensor,
        plan: SamplingPlan,
        *,
        operator: AxialProjection | None = None,
        projections: Tensor | None = None,
    ) -> None:
        if not isinstance(prior, Tensor) or prior.ndim != 3 or not prior.is_floating_point():
            got = f"shape {list(prior.shape)}, {prior.dtype}, {type(prior).__name__}"
            raise InputError("prior", "a floating-point volume [Z, Y, X]", got)
        if plan.uses("trust"):
            _check_projections(operator, projections, prior)
        else:
            operator = projections = None
        self.denoise, self.prior, self.plan = denoise, prior, plan
        self.operator, self.projections = operator, projections
        self.x = torch.empty_like(prior, memory_format=torch.contiguous_format)
        self.history = torch.zeros_like(self.x) if plan.uses("c") else None
        self.table = plan.table.to(prior.device, torch.promote_types(prior.dtype, torch.float32))
        self.counter = torch.zeros((), dtype=torch.int64, device=prior.device)
        # whose noise the steps draw; the words on the device, because a graph is captured once
        self.words = torch.zeros(3, dtype=torch.int64, device=prior.device)
        self.key: NoiseKey | None = None

    @torch.no_grad()
    def begin(
        self,
        *,
        seed: int = 0,
        stream: int = 0,
        offset: tuple[int, int, int] = (0, 0, 0),
        volume_shape: tuple[int, int, int] | None = None,
        start: Tensor | None = None,
    ) -> None:
        """Sets the first blended state and the noise of the steps to come; as in `sample`."""
        prior, plan = self.prior, self.plan
        if start is not None and start.shape != prior.shape:
            expected = f"shape {list(prior.shape)}, like the prior"
            raise InputError("start", expected, list(start.shape))
        key = NoiseKey(seed, stream, offset, volume_shape or tuple(prior.shape), self.words)
        self.words.copy_(key.new_words(prior.shape))
        self.key = key
        self.counter.zero_()
        if self.history is not None:
            self.history.zero_()
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
        self.x.copy_((1 - plan.gammas[0]) * start + plan.gammas[0] * prior)

    def take(self) -> NoiseKey:
        """The key that `begin` set, for the one run that it serves."""
        if self.key is None:
            raise InputError("chain", "one that was begun", "one that was not, or ran already")
        key, self.key = self.key, None
        return key

    @torch.no_grad()
    def advance(self, callback: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """All steps of the plan; returns the state that they end in, which the next run reuses.

        Raises:
            InputError: `begin` was not called since the last run.
        """
        key = self.take()
        draws, guided = self.plan.column("d").tolist(), self.plan.uses("w")
        operator = self.operator
        skipped = self.plan.skipped
        for step, level in enumerate(self.plan.levels):
            output = self.denoise(self.x, skipped + step, level)
            cond, uncond = output if isinstance(output, tuple) else (output, None)
            if uncond is None and guided:
                expected = "(conditional, unconditional) for guidance"
                raise InputError("denoise", expected, "one volume")
            blended_step(
                self.x,
                self.prior,
                cond,
                self.table,
                self.counter,
                uncond=uncond,
                noise=key if draws[step] else None,
                history=self.history,
                projections=self.projections,
                weights=operator.weights if operator else None,
                stride=operator.stride if operator else None,
                start=operator.start if operator else 0,
            )
            self.counter += 1
            if callback is not None:
                callback(skipped + step, self.x)
        return self.x


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
