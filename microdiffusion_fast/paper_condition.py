"""What the published denoiser is conditioned on: an acquired projection, and where the slice lies.

Both become a few features each, which stand side by side as the condition of a slice.
Source: Hui et al., CVPR 2024 (MicroDiffusion), E_img and E_pos.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLED = 4  # pixels along each side of the map that E_img reads its features from


class PositionEncoder(nn.Module):
    """E_pos: positions along the axis, in [-1, 1], to features [N, features].

    A position z is seen as z itself and the sines and cosines of 2^i z. The released code has two
    linear layers in a row where this has one, which spans the same functions.

    Args:
        levels: number of frequencies.
        features: width of the MLP and of its result.
    """

    def __init__(self, levels: int = 10, features: int = 32) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(levels), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * levels + 1, features), nn.SiLU(), nn.Linear(features, features)
        )

    frequencies: Tensor

    def forward(self, positions: Tensor) -> Tensor:
        z = positions[:, None]
        phase = z * self.frequencies
        return self.layers(torch.cat([z, phase.sin(), phase.cos()], dim=1))


class ImageNorm(nn.BatchNorm2d):
    """Batch normalisation that takes no statistics from a single image: see `ImageEncoder`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 1:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class ImageBlock(nn.Module):
    """Residual block of two 3x3 convolutions; the first one may halve the image."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = ImageNorm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = ImageNorm(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), ImageNorm(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ImageEncoder(nn.Module):
    """E_img: images [N, Y, X] of any size to features [N, features].

    A ResNet-18 whose stem is a 3x3 convolution without pooling. Its last map is averaged to 4 x 4,
    which for 128 x 128 pixels is the published average over 4 x 4 windows.

    Batch normalisation is kept, and needs care: the released program trains with one image at a
    time, each normalised by itself, and then samples with running statistics that no image was ever
    normalised by. Here training sees batches of a stack's projections, and
    - a batch of one is normalised by the running statistics, in training as in evaluation: one
      image says nothing about the spread between images;
    - `calibrate` sets the running statistics to those of the whole stack, for weights that were
      averaged over training and have no statistics of their own.
    They are part of the state_dict. In evaluation an image's features do not depend on its batch.

    Args:
        channels: of the first stage; the four stages have 1, 2, 4 and 8 times as many.
        features: width of the result.
    """

    def __init__(self, channels: int = 64, features: int = 128) -> None:
        super().__init__()
        widths = [channels, 2 * channels, 4 * channels, 8 * channels]
        self.conv = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.norm = ImageNorm(channels)
        self.blocks = nn.Sequential()
        before = channels
        for stage, width in enumerate(widths):
            self.blocks.append(ImageBlock(before, width, stride=1 if stage == 0 else 2))
            self.blocks.append(ImageBlock(width, width, stride=1))
            before = width
        self.linear = nn.Linear(before * POOLED**2, features)

    def forward(self, images: Tensor) -> Tensor:
        h = self.blocks(F.relu(self.norm(self.conv(images[:, None]))))
        return self.linear(F.adaptive_avg_pool2d(h, POOLED).flatten(1))

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Set the running statistics to those of these images [N, Y, X] as one batch.

        Takes about 1 KiB of memory for every pixel of the images.
        Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", precise statistics.
        """
        training = self.training
        images = images if len(images) > 1 else images.repeat(2, 1, 1)
        norms = [module for module in self.modules() if isinstance(module, ImageNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        self.train()(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.train(training)
