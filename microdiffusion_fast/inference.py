"""The denoiser on a whole stack: what the sampler calls at each step."""

from __future__ import annotations

import torch
from torch import Tensor

from .allocator import keeping
from .denoiser import Denoiser, Geometry
from .forward_model import AxialProjection
from .kernels.constants import constant
from .schedule import NoiseLevel, NoiseSchedule
from .training_data import axial_spread

_TOGETHER = 8 * 2**20  # bytes of features that are computed at once on a CPU; more is slower


class StackDenoiser:
    """A denoiser bound to one stack: encodes it once, then denoises states of the whole volume.

    Args:
        denoiser: the network.
        projections: [K, Y, X], spanning about [0, 1].
        operator: the acquisition.
        axial_blur: what to tell the network, in slices.
        batch: slices per forward pass at most, fewer on a CPU where images are large; the volume
            does not depend on it beyond rounding.
        guided: also give the unconditional prediction, without the features of the projections.
        both_ways: average the predictions for the stack and for the stack turned upside down, where
            the axial weights allow it; twice the work for about 0.1 dB.

    The prior that the network is *shown* is linear interpolation, which it was trained with; the
    INR acts through the blended state. Showing it the INR cost 0.6 dB (docs/defaults.md).

    Attributes:
        deviation: [Z, Y, X] the standard deviation that the network states for its last
            conditional prediction, in network units; None before the first.
    """

    deviation: Tensor | None = None

    def __init__(
        self,
        denoiser: Denoiser,
        projections: Tensor,
        operator: AxialProjection,
        *,
        axial_blur: float = 0.0,
        batch: int = 8,
        guided: bool = False,
        both_ways: bool = False,
    ) -> None:
        spread = axial_spread(operator.weights)
        self.geometry = Geometry(operator.step_length, operator.stride, axial_blur, spread)
        self.denoiser, self.guided = denoiser.eval(), guided
        each = denoiser.feature_bytes(projections[0].numel())
        self.large = 0
        if projections.device.type == "cpu":
            batch = max(1, min(batch, _TOGETHER // each))
            self.large = batch * each
        self.batch = batch
        self.base = to_network(operator.interpolate(projections))
        shown = to_network(projections)
        # by direction along z: +1 as acquired, -1 upside down
        self.features: dict[int, Tensor] = {}
        with torch.no_grad(), keeping(self.large):
            self.features[1] = denoiser.encode(shown, self.geometry, batch=batch)
            if both_ways and -1 in directions(operator):
                turned = denoiser.encode(shown.flip(0), self.geometry, batch=batch)
                self.features[-1] = turned.flip(0)
        slices = torch.arange(operator.depth, dtype=torch.float64)
        offsets = slices[:, None] - operator.centres[None, :]
        # beyond the outer windows nothing was measured and nothing trained: the last slice is kept
        reach = max(operator.step_length, operator.stride) / 2
        inside = (offsets.abs().amin(dim=1) <= reach).nonzero()[:, 0]
        self.repeat = slices.long().clamp(int(inside[0]), int(inside[-1])).to(projections.device)
        nearest = offsets.abs().argmin(dim=1, keepdim=True)
        self.window = nearest[:, 0].to(projections.device)
        self.position = offsets.gather(1, nearest)[:, 0].to(projections)

    def __call__(self, x: Tensor, step: int, level: NoiseLevel) -> Tensor | tuple[Tensor, Tensor]:
        """Posterior mean [Z, Y, X] given the blended state, in network units; a pair if guided."""
        with keeping(self.large):
            conditional, self.deviation = self._denoise(x, level, self.features)
            if not self.guided:
                return conditional
            none = torch.zeros_like(self.features[1][:1])
            return conditional, self._denoise(x, level, dict.fromkeys(self.features, none))[0]

    @torch.no_grad()
    def _denoise(
        self, x: Tensor, level: NoiseLevel, features: dict[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        depth = len(x)
        clean, deviation = torch.zeros_like(x), torch.zeros_like(x)
        for index in torch.arange(depth, device=x.device).split(self.batch):
            for direction, encoded in features.items():
                near = [(index + d * direction).clamp(0, depth - 1) for d in (-1, 0, 1)]
                slices = torch.stack(near, dim=1)
                window = self.window[index].clamp(max=len(encoded) - 1)
                mean, doubt = self.denoiser.denoise(
                    encoded[window],
                    x[slices],
                    self.base[slices],
                    self.base[index],
                    direction * self.position[index],
                    self.geometry,
                    constant(tuple(level), x.dtype, x.device).expand(len(index), 3),
                )
                clean[index] += mean
                deviation[index] += doubt.exp()
        # two directions err alike: their deviations are averaged as if they were one
        return clean[self.repeat] / len(features), deviation[self.repeat] / len(features)


def directions(operator: AxialProjection) -> tuple[int, ...]:
    """The stack is seen from both ends where its axial weights are symmetric."""
    symmetric = torch.allclose(operator.weights, operator.weights.flip(0), rtol=0, atol=1e-6)
    return (1, -1) if symmetric else (1,)


def to_network(x: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return x * 2 - 1


def from_network(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (x + 1) / 2


def posterior_mean(
    denoiser: Denoiser, projections: Tensor, operator: AxialProjection, *, axial_blur: float = 0.0
) -> Tensor:
    """One call of the network from pure noise, [Z, Y, X]: the posterior mean."""
    stack = StackDenoiser(denoiser, projections, operator, axial_blur=axial_blur)
    state = torch.randn(stack.base.shape, generator=torch.Generator().manual_seed(0))
    schedule = NoiseSchedule()
    mean = stack(state.to(stack.base), 0, schedule.level(schedule.steps))
    assert isinstance(mean, Tensor)
    return from_network(mean)
