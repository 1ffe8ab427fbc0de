"""The published denoiser: a U-Net with attention everywhere, told the time and the condition.

Time and condition act only as biases of the residual blocks. `PaperDenoiser.biases` computes those
of all blocks side by side, in two small matrix products; a sampler does it once per timestep and
once per slice, whatever the number of forward passes.

The architecture is the published one to the parameter (10.45 million in the U-Net), the arithmetic
is not: attention (`paper_attention`) never holds the [Y * X, Y * X] weights, 1 GiB for one slice of
128 x 128, forwards or backwards, and tensors are channels-last, so that an image [N, C, Y, X] is
the tokens [N, Y * X, C] without a copy.
Source: Hui et al., CVPR 2024 (MicroDiffusion); Ho et al. 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .paper_attention import attend
from .paper_condition import ImageEncoder, PositionEncoder

LONGEST_PERIOD = 10_000.0  # of the time embedding, in timesteps, over 2 pi
EMBEDDING = 4  # width of the embeddings, in units of `channels`


@dataclass(frozen=True)
class PaperConfig:
    """Widths of the published networks; the defaults are the published ones.

    Attributes:
        channels: of the first level of the U-Net and the first stage of E_img; even.
        multipliers: width of each level of the U-Net, in units of `channels`.
        blocks: residual blocks a level on the way down; one more on the way up.
        groups: of every GroupNorm; divides every width.
        dropout: probability in the residual blocks, in training.
        position_levels: frequencies that E_pos sees a position at.
        position_features: width of E_pos.
        image_features: width of E_img.

    Raises:
        InputError: there is no network of these widths; names the field.
    """

    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    groups: int = 32
    dropout: float = 0.1
    position_levels: int = 10
    position_features: int = 32
    image_features: int = 128

    def __post_init__(self) -> None:
        for name in ("channels", "blocks", "groups", "position_features", "image_features"):
            if getattr(self, name) < 1:
                raise InputError(name, "at least 1", getattr(self, name))
        # A checkpoint says itself how large its network is, and is not always to be believed.
        most = {"blocks": 64, "position_levels": 64, "position_features": 4096, "groups": 4096}
        for name, bound in {**most, "channels": 4096, "image_features": 4096}.items():
            if getattr(self, name) > bound:
                raise InputError(name, f"at most {bound}", getattr(self, name))
        if len(self.multipliers) > 16 or max(self.multipliers, default=1) > 64:
            raise InputError("multipliers", "at most 16, each at most 64", self.multipliers)
        if self.position_levels < 0:
            raise InputError("position_levels", "at least 0", self.position_levels)
        if self.channels % 2:
            raise InputError("channels", "an even number", self.channels)
        if not self.multipliers or min(self.multipliers) < 1:
            raise InputError("multipliers", "one or more, each at least 1", self.multipliers)
        if any(width % self.groups for width in (self.channels, *self.widths)):
            expected = f"a divisor of every width {(self.channels, *self.widths)}"
            raise InputError("groups", expected, self.groups)
        if not 0 <= self.dropout < 1:
            raise InputError("dropout", "at least 0 and below 1", self.dropout)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level of the U-Net."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def condition(self) -> int:
        """Width of the condition: E_pos and E_img side by side."""
        return self.position_features + self.image_features


class GroupNorm(nn.GroupNorm):
    """torch's, in float32 on a CPU: channels-last bfloat16 is up to four times slower there."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a bias [N, C] of time and condition in between."""

    def __init__(self, before: int, after: int, config: PaperConfig) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config.groups, before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = GroupNorm(config.groups, after)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + bias[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + self.shortcut(x)


class Attention(nn.Module):
    """Residual self-attention over all pixels, one head of all channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # a view where channels are last
        mixed = attend(*self.qkv(tokens).chunk(3, dim=-1))
        return x + self.out(mixed).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A residual block and the attention after it."""

    def __init__(self, before: int, after: int, config: PaperConfig) -> None:
        super().__init__()
        self.residual = ResidualBlock(before, after, config)
        self.attention = Attention(after, config.groups)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.attention(self.residual(x, bias))


class UNet(nn.Module):
    """The U-Net: images [N, 1, Y, X] and biases [N, B] of its blocks to images [N, 1, Y, X].

    Any size goes: a level has half the pixels, rounded up, and the way up takes the sizes of the
    way down. `bias_widths` are the channels of the residual blocks in the order of the forward
    pass; their sum is B.
    """

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(1, config.channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.downsample, self.upsample = nn.ModuleList(), nn.ModuleList()
        before, skips = config.channels, [config.channels]
        for level, width in enumerate(widths):
            blocks = nn.ModuleList()
            for _ in range(config.blocks):
                blocks.append(Block(before, width, config))
                skips.append(width)
                before = width
            self.down.append(blocks)
            if level < last:
                self.downsample.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList(
            [Block(before, before, config), ResidualBlock(before, before, config)]
        )
        for width in reversed(widths):
            blocks = nn.ModuleList()
            for _ in range(config.blocks + 1):
                blocks.append(Block(before + skips.pop(), width, config))
                before = width
            self.up.append(blocks)
            if len(self.up) <= last:
                self.upsample.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm_out = GroupNorm(config.groups, before)
        self.conv_out = nn.Conv2d(before, 1, 3, padding=1)
        self.bias_widths = [
            block.conv1.out_channels
            for stage in (*self.down, self.middle, *self.up)
            for block in stage.modules()
            if isinstance(block, ResidualBlock)
        ]

    def forward(self, x: Tensor, biases: Tensor) -> Tensor:
        bias = iter(biases.split(self.bias_widths, dim=1))
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for level, blocks in enumerate(self.down):
            for block in blocks.children():
                h = block(h, next(bias))
                skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h)
                skips.append(h)
        for block in self.middle:
            h = block(h, next(bias))
        for level, blocks in enumerate(self.up):
            for block in blocks.children():
                h = block(torch.cat([h, skips.pop()], dim=1), next(bias))
            if level < len(self.upsample):
                h = F.interpolate(h, size=skips[-1].shape[2:], mode="nearest")
                h = self.upsample[level](h)
        return self.conv_out(F.silu(self.norm_out(h)))


class TimeEmbedding(nn.Module):
    """Timesteps [N], 1 to T, to the cosines and sines [N, width] of t - 1 at falling frequencies.

    Source: Ho et al. 2020, appendix B. Counting from zero is the published network's convention.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        exponents = torch.arange(width // 2) / (width // 2)
        frequencies = torch.exp(-math.log(LONGEST_PERIOD) * exponents)
        self.register_buffer("frequencies", frequencies, persistent=False)

    frequencies: Tensor

    def forward(self, t: Tensor) -> Tensor:
        phase = (t[:, None] - 1) * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class PaperDenoiser(nn.Module):
    """The published denoiser: U-Net, E_img and E_pos.

    Intensities are in [-1, 1], timesteps count from 1 (least noise) to T. The unconditional
    prediction of classifier-free guidance is that for a condition of zeros.
    """

    def __init__(self, config: PaperConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PaperConfig()
        self.unet = UNet(config)
        self.image_encoder = ImageEncoder(config.channels, config.image_features)
        self.position_encoder = PositionEncoder(config.position_levels, config.position_features)
        # The last layer of each holds what every residual block makes of the embedding.
        width, biases = EMBEDDING * config.channels, sum(self.unet.bias_widths)
        self.time = nn.Sequential(
            TimeEmbedding(config.channels), *_embedding(config.channels, width, biases)
        )
        self.given = nn.Sequential(*_embedding(config.condition, width, biases))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def condition(self, images: Tensor, positions: Tensor) -> Tensor:
        """The condition [N, C]: E_pos of the positions beside E_img of the images.

        Args:
            images: [N, Y, X] the acquired projection closest to each slice.
            positions: [N] where each slice lies along the axis, in [-1, 1].
        """
        return torch.cat([self.position_encoder(positions), self.image_encoder(images)], dim=1)

    def time_biases(self, t: Tensor) -> Tensor:
        """The part of the biases [N, B] that timesteps t [N], integers from 1, make."""
        return self.time(t)

    def condition_biases(self, condition: Tensor) -> Tensor:
        """The part of the biases [N, B] that conditions [N, C] make."""
        return self.given(condition)

    def biases(self, t: Tensor, condition: Tensor) -> Tensor:
        """The biases [N, B] of all residual blocks, side by side: a sum of both parts."""
        return self.time_biases(t) + self.condition_biases(condition)

    def forward(self, x: Tensor, biases: Tensor) -> Tensor:
        """The noise eps [N, Y, X] in the blended states x [N, Y, X], in the dtype of x."""
        return self.unet(x[:, None], biases)[:, 0].to(x.dtype)


def _embedding(inputs: int, width: int, biases: int) -> list[nn.Module]:
    return [
        nn.Linear(inputs, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, biases),
    ]
