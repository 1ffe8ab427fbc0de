"""The training step that pretraining and self-training share: noise, blend, predict, compare."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import Denoiser
from .schedule import NoiseSchedule
from .training_data import Acquisition, Batch

ACTIVATIONS = 64  # arrays of the size of a batch's features that a step makes, about


class Losses(NamedTuple):
    """Means over the slices of a batch, every error one that consistency leaves where it is hard.

    Attributes:
        error: squared error of what was predicted.
        reference: squared error of linear interpolation.
        doubt: negative log-likelihood of the errors under the stated standard deviations, which
            alone it trains.
    """

    error: Tensor
    reference: Tensor
    doubt: Tensor

    @property
    def total(self) -> Tensor:
        """What to descend: dim and bright structures count alike."""
        return self.error / (self.reference.detach() + 1e-4) + self.doubt

    @property
    def gain(self) -> float:
        """Over linear interpolation, in dB."""
        error, reference = float(self.error.detach()), float(self.reference)
        return 10 * math.log10((reference + 1e-9) / (error + 1e-9))


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; elsewhere float32 is faster."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not public yet
    return any(getattr(torch.cpu, name, bool)() for name in tests)


def clip_gradients(denoiser: Denoiser, norm: float = 1.0) -> None:
    """Each part by its own norm: the doubt must not slow the prediction down."""
    doubt = denoiser.head.conv_spread
    own = {id(parameter) for parameter in doubt.parameters()}
    others = [p for p in denoiser.parameters() if id(p) not in own]
    for part in (doubt.parameters(), others):
        torch.nn.utils.clip_grad_norm_(part, norm)


def interpolate_windows(windows: Tensor, positions: Tensor, stride: int) -> Tensor:
    """Linear interpolation between the windows of a batch, [B, S, Y, X]; constant at their ends."""
    last = windows.shape[1] - 1
    place = (positions / stride + last / 2).clamp(0, last)
    below = place.floor().clamp(max=last - 1).long()
    rows = torch.arange(len(windows))[:, None]
    fraction = (place - below)[..., None, None]
    return torch.lerp(windows[rows, below], windows[rows, below + 1], fraction)


def training_loss(
    denoiser: Denoiser,
    batch: Batch,
    acquisition: Acquisition,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    *,
    pure_noise: float = 0.5,
    dropout: float = 0.1,
    hard: bool = True,
    mixed: bool = False,
) -> Losses:
    """What a step of training needs to know of the predicted slices.

    The state is noised and blended with the prior as the sampler will do it. Its noise level is
    the highest for the share `pure_noise` of the windows: the chain starts there, and what is
    decided there is decided. For the share `dropout` the features of the projections are zero, as
    the unconditional branch of classifier-free guidance has them. With `hard` the means of the
    windows do not count, as consistency will set them; without it they are to be denoised too.
    `mixed` runs the network in bfloat16, the losses stay float32.
    """
    count, height, width = len(batch.windows), *batch.windows.shape[2:]
    windows, slices = batch.windows * 2 - 1, batch.slices * 2 - 1
    prior = interpolate_windows(windows, batch.positions, acquisition.stride)
    base = prior[:, 1:-1]
    level = _draw_levels(count, schedule, generator, pure_noise)
    signal, noise, gamma = (column[:, None, None, None] for column in level.unbind(1))
    eps = torch.randn(slices.shape, generator=generator)
    prior = _disturb(prior, generator)
    state = (1 - gamma) * (signal * slices + noise * eps) + gamma * prior

    inner = prior.shape[1] - 2
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        features = denoiser.encoder(
            windows.contiguous(memory_format=torch.channels_last), acquisition.geometry
        )
        kept = (torch.rand(count, generator=generator) >= dropout).to(features.dtype)
        features = features * kept[:, None, None, None]
        predicted, spread = denoiser.denoise(
            features.repeat_interleave(inner, 0),
            _triples(state),
            _triples(prior),
            base.reshape(-1, height, width),
            batch.positions[:, 1:-1].reshape(-1),
            acquisition.geometry,
            level.repeat_interleave(inner, 0),
        )
    truth = slices[:, 1:-1]
    error, baseline = predicted.float().reshape(truth.shape) - truth, base - truth
    if hard:
        error, baseline = (_project_out(e, batch, acquisition) for e in (error, baseline))
    spread = spread.reshape(truth.shape)
    doubt = (spread + 0.5 * error.detach().square() * torch.exp(-2 * spread)).mean()
    return Losses(error.square().mean(), baseline.square().mean(), doubt)


def _disturb(prior: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the priors with a smooth error: the INR is near interpolation, but it is not it."""
    count, depth, height, width = prior.shape
    coarse = torch.randn((count, depth, height // 8 + 1, width // 8 + 1), generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
    size = torch.rand((2, count), generator=generator)
    size = torch.where(size[0] < 0.5, torch.zeros(count), 0.1 * size[1] ** 2)
    return prior + size[:, None, None, None] * smooth


def _triples(x: Tensor) -> Tensor:
    """[B, S + 2, Y, X] to [B * S, 3, Y, X]: every slice with its neighbours."""
    return torch.stack([x[:, :-2], x[:, 1:-1], x[:, 2:]], dim=2).flatten(0, 1)


def _project_out(error: Tensor, batch: Batch, acquisition: Acquisition) -> Tensor:
    """What hard consistency leaves of an error, for windows that do not overlap."""
    if acquisition.stride < acquisition.step_length:
        return error  # neighbouring windows have a say, and are not in the batch
    s, weights = acquisition.step_length, acquisition.weights
    centroid = float((weights * torch.arange(s)).sum())
    place = batch.positions[:, 1:-1] + centroid  # per window: some are mirrored along z
    covered = (place > -0.5) & (place < s - 0.5)
    if bool((covered.sum(1) != s).any()):
        return error  # skewed weights: the slices nearest to the centroid are not the window
    w = weights / weights.square().sum().sqrt()
    inside = error[covered].unflatten(0, (len(error), s))
    inside = inside - w[:, None, None] * torch.einsum("s,bsyx->byx", w, inside)[:, None]
    left = error.clone()
    left[covered] = inside.flatten(0, 1)
    return left


def _draw_levels(
    count: int, schedule: NoiseSchedule, generator: torch.Generator, pure_noise: float
) -> Tensor:
    """[B, 3] signal, noise and gamma."""
    drawn = torch.rand(4, count, generator=generator)
    step = torch.where(drawn[0] < pure_noise, torch.ones(count), drawn[1]) * schedule.steps
    alpha_bar = schedule.alpha_bar[step.ceil().long().clamp(min=1)]
    gamma = torch.where(drawn[2] < 0.3, torch.zeros(count), drawn[3])
    return torch.stack([alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float(), gamma], dim=1)
