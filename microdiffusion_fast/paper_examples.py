"""One training example of the published denoiser is one acquired projection; and its loss.

The clean image is the projection blended with that of the prior, as the released code has it: there
image, INR and position features are averaged over the slices of a window, which is what A does.
Conditioned on is what was acquired alone. The released code encodes the mean of the *true* slices
around every depth, in training and in sampling; an experiment has no such images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forward_model import AxialProjection
from .inference import to_network
from .paper_recipe import PaperTraining
from .paper_unet import PaperDenoiser
from .schedule import NoiseSchedule


@dataclass(frozen=True)
class Example:
    """What is drawn for one example; the same for whichever process computes it.

    Attributes:
        projection: index of the acquired projection.
        timestep: t, in 1..T.
        conditional: whether the network is told projection and position.
        top, left: corner of its crop.
        noise, dropout: seeds.
    """

    projection: int
    timestep: int
    conditional: bool
    top: int
    left: int
    noise: int
    dropout: int


def draw_examples(
    training: PaperTraining, step: int, images: tuple[int, ...], timesteps: int
) -> list[Example]:
    """The global batch of a step, from images [K, Y, X]: every K in a row see each image once."""
    count, height, width = images
    examples = []
    for index in range(training.batch):
        epoch, place = divmod(step * training.batch + index, count)
        order = np.random.default_rng([training.seed, 0, epoch]).permutation(count)
        rng = np.random.default_rng([training.seed, 1, step, index])
        examples.append(
            Example(
                projection=int(order[place]),
                timestep=int(rng.integers(1, timesteps + 1)),
                conditional=bool(rng.random() >= training.unconditional),
                top=int(rng.integers(max(height - training.size, 0) + 1)),
                left=int(rng.integers(max(width - training.size, 0) + 1)),
                noise=int(rng.integers(1 << 62)),
                dropout=int(rng.integers(1 << 62)),
            )
        )
    return examples


class ExampleDropout(nn.Module):
    """Dropout whose mask belongs to the example, wherever in whichever batch it is computed."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generators: list[torch.Generator] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        mask = torch.empty_like(x)
        for own, generator in zip(mask, self.generators, strict=True):
            own.bernoulli_(1 - self.rate, generator=generator)
        return x * mask.div_(1 - self.rate)

    @classmethod
    def install(cls, module: nn.Module) -> list[ExampleDropout]:
        """Put these in the place of every `nn.Dropout` of a module."""
        installed = []
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Dropout):
                    installed.append(cls(child.p))
                    setattr(parent, name, installed[-1])
        return installed


class TrainingLoss(nn.Module):
    """Mean squared error of the noise that the denoiser finds in blended, noised projections.

    Args:
        denoiser: what is trained.
        images: projections [K, Y, X] that span about [0, 1].
        prior: the INR [Z, Y, X], likewise.
        operator: the acquisition.
        training: the recipe.
        schedule: of the noise.
        mixed: whether the networks multiply in bfloat16; the loss is float32.
    """

    def __init__(
        self,
        denoiser: PaperDenoiser,
        images: Tensor,
        prior: Tensor,
        operator: AxialProjection,
        training: PaperTraining,
        *,
        schedule: NoiseSchedule,
        mixed: bool,
    ) -> None:
        super().__init__()
        self.denoiser, self.size, self.mixed = denoiser, training.size, mixed
        self.dropouts = ExampleDropout.install(denoiser)
        # not buffers: nothing of them is to be saved, or sent between processes
        self.images = to_network(images)
        blended = (1 - training.gamma) * images + training.gamma * operator(prior)
        self.clean = to_network(blended)
        self.weights = operator.weights.to(images)
        positions = slice_positions(operator.depth, images.device)
        windows = [positions[low:high] for low, high in operator.windows]
        self.positions = torch.stack(windows)
        self.alpha_bar = schedule.alpha_bar.to(images)

    def forward(self, examples: Sequence[Example], mine: slice) -> Tensor:
        """The loss of my examples of a batch.

        E_img sees all images of the batch in every process: its batch normalisation then has the
        statistics of the whole batch without sending them around, and costs a small part of a step.
        """
        own, device = examples[mine], self.images.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.mixed):
            t = torch.tensor([example.timestep for example in own], device=device)
            told = torch.tensor([[float(example.conditional)] for example in own], device=device)
            condition = self._conditions(examples)[mine] * told
            clean = torch.stack([self._crop(self.clean, example) for example in own])
            drawn = [
                torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(example.noise))
                for example in own
            ]
            eps = torch.stack(drawn).to(device)
            share = self.alpha_bar[t][:, None, None]
            state = share.sqrt() * clean + (1 - share).sqrt() * eps
            generators = [torch.Generator(device).manual_seed(example.dropout) for example in own]
            for dropout in self.dropouts:
                dropout.generators = generators
            found = self.denoiser(state, self.denoiser.biases(t, condition))
        return F.mse_loss(found.float(), eps)

    def _conditions(self, examples: Sequence[Example]) -> Tensor:
        """E_pos averaged over the window of every example, beside E_img of its projection."""
        which = [example.projection for example in examples]
        taps = self.positions.shape[1]
        places = self.denoiser.position_encoder(self.positions[which].flatten())
        place = torch.einsum("nsf,s->nf", places.unflatten(0, (-1, taps)), self.weights)
        return torch.cat([place, self.denoiser.image_encoder(self.images[which])], dim=1)

    def _crop(self, images: Tensor, example: Example) -> Tensor:
        rows = slice(example.top, example.top + self.size)
        columns = slice(example.left, example.left + self.size)
        return images[example.projection, rows, columns]


def slice_positions(depth: int, device: torch.device) -> Tensor:
    """Where slices 0 to Z - 1 lie along the axis, `2 z / Z - 1`, as in the released code."""
    return torch.arange(depth, device=device, dtype=torch.float32) * (2 / depth) - 1
