"""The published denoiser bound to one stack, and the published chain.

Conditioned on is the acquired projection closest to each slice. The released code encodes the mean
of the true slices around it, which an experiment does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .forward_model import AxialProjection
from .inference import to_network
from .kernels.blended_step import COLUMNS
from .paper_examples import slice_positions
from .paper_unet import PaperDenoiser
from .schedule import Consistency, NoiseLevel, NoiseSchedule, Sampler, SamplingPlan, make_plan
from .schedule_gamma import GammaSchedule

GUIDANCE = 1.8  # w
VARIANCE_MIX = 0.3  # v


class PaperStackDenoiser:
    """The published denoiser bound to one stack: what the sampler calls at each step.

    What the network adds for a slice and for a timestep is computed here once, E_img once per
    projection; a step is then the U-Net alone, on batches of slices.

    Args:
        denoiser: the network.
        projections: [K, Y, X], spanning about [0, 1].
        operator: the acquisition.
        timesteps: of the whole chain; a step of the sampler is an index into them.
        batch: slices per forward pass, twice as many images with guidance; the volume does not
            depend on it beyond rounding.
        guided: also give the unconditional prediction, for a condition of zeros, in the same
            forward pass.
        bfloat16: multiply in bfloat16: quicker, and no longer exact to float32.
    """

    def __init__(
        self,
        denoiser: PaperDenoiser,
        projections: Tensor,
        operator: AxialProjection,
        timesteps: Sequence[int],
        *,
        batch: int = 8,
        guided: bool = True,
        bfloat16: bool = False,
    ) -> None:
        self.denoiser, self.batch, self.guided = denoiser.eval(), batch, guided
        self.bfloat16, device = bfloat16, projections.device
        slices = torch.arange(operator.depth, dtype=torch.float64)
        nearest = (slices[:, None] - operator.centres).abs().argmin(dim=1).to(device)
        with torch.no_grad():
            images = to_network(projections).split(batch)
            seen = torch.cat([denoiser.image_encoder(part) for part in images])
            places = denoiser.position_encoder(slice_positions(operator.depth, device))
            condition = torch.cat([places, seen[nearest]], dim=1)
            self.told = denoiser.condition_biases(condition)
            self.untold = denoiser.condition_biases(torch.zeros_like(condition[:1]))
            self.times = denoiser.time_biases(torch.tensor(timesteps, device=device))

    @torch.no_grad()
    def __call__(self, x: Tensor, step: int, level: NoiseLevel) -> Tensor | tuple[Tensor, Tensor]:
        """eps [Z, Y, X] of the blended state x, in network units; a pair if guided."""
        found, unconditional = torch.empty_like(x), torch.empty_like(x)
        for low in range(0, len(x), self.batch):
            part = slice(low, low + self.batch)
            states, biases = x[part], self.told[part]
            count = len(states)
            if self.guided:
                states = torch.cat([states, states])
                biases = torch.cat([biases, self.untold.expand(count, -1)])
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
                eps = self.denoiser(states, biases + self.times[step])
            found[part] = eps[:count]
            if self.guided:
                unconditional[part] = eps[count:]
        return (found, unconditional) if self.guided else found


def paper_plan(
    gamma: float | Sequence[float],
    *,
    steps: int | None = None,
    schedule: NoiseSchedule | None = None,
    sampler: Sampler = "ddpm",
    guidance: float = GUIDANCE,
    variance_mix: float | None = None,
    gamma_schedule: GammaSchedule = "constant",
    consistency: Consistency = "off",
    noise_to_signal: float | None = None,
) -> SamplingPlan:
    """The published chain: ancestral sampling with T = 1000, guidance and a mix of variances.

    The final state is clipped to [-1, 1]. The last step ends in the estimate of the clean image, so
    that clips what the last row computes, and no other row clips anything.

    Args:
        gamma: weight of the prior in the states; see `schedule.make_plan`.
        steps: of the chain; None is T, all of them.
        schedule: of the noise.
        sampler: "ddpm" is the published one.
        guidance: w.
        variance_mix: v of "ddpm".
        gamma_schedule, consistency, noise_to_signal: as in `schedule.make_plan`.

    Source: Hui et al., CVPR 2024 (MicroDiffusion), section 3.3; Ho et al. 2020, algorithm 2.
    """
    schedule = schedule or NoiseSchedule()
    plan = make_plan(
        schedule.steps if steps is None else steps,
        schedule=schedule,
        sampler=sampler,
        prediction="eps",
        gamma=gamma,
        gamma_schedule=gamma_schedule,
        guidance=guidance,
        variance_mix=variance_mix,
        consistency=consistency,
        noise_to_signal=noise_to_signal,
        clamp=None,
        spacing="snr" if sampler == "dpm++" and steps not in (None, schedule.steps) else "time",
    )
    table = plan.table.clone()
    table[-1, COLUMNS.index("low")], table[-1, COLUMNS.index("high")] = -1.0, 1.0
    return replace(plan, table=table)
