"""The shipped local denoiser: a slab encoder and a slice head, no statistics over space.

`SlabEncoder` sees the projections around a window once per reconstruction, whatever the number of
diffusion steps. `SliceHead` turns its features into one slice, given the blended state, the prior
and the position of the slice in the window. Every normalisation is per pixel over channels, so the
receptive field is finite (`halo`) and a tile with that halo equals the whole volume.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .kernels.constants import constant
from .tensor_files import check_fit, read_tensors, write_tensors

CONTEXT = 2  # projections seen on either side of the window
_WIDEST = 1024  # channels or blocks; the shipped network has 128
ALIGN = 4  # the encoder halves the image twice
FORMAT = "microdiffusion_fast.denoiser/1"
SHIPPED = Path(__file__).parent / "weights" / "prior.safetensors"
NOISY = SHIPPED.with_name("noisy.safetensors")  # trained to remove the noise of projections, too


@dataclass(frozen=True)
class DenoiserConfig:
    """Widths of the network; stored in the checkpoint, so a file describes itself.

    Raises:
        InputError: there is no network of these widths; names the field.
    """

    encoder_widths: tuple[int, int, int] = (64, 96, 128)
    quarter_blocks: int = 3
    head_width: int = 48
    head_blocks: int = 4
    embedding: int = 64

    @property
    def halo(self) -> int:
        """Receptive radius in pixels, rounded up to a multiple of ALIGN; a test measures it."""
        radius = 21 + 8 * self.quarter_blocks + 2 * self.head_blocks
        return radius + -radius % ALIGN

    def __post_init__(self) -> None:
        expected = f"integers from 1 to {_WIDEST}"
        for name in ("encoder_widths", "head_width", "head_blocks", "embedding"):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if type(number) is not int or not 1 <= number <= _WIDEST:
                    raise InputError(name, expected, value)


class Geometry(NamedTuple):
    """What the network is told about the acquisition, lengths in slices of the volume.

    `axial_blur` is the sigma by which the volume itself is softer along z than across, and
    `spread` the width of the axial weights relative to the plain mean of as many slices.
    """

    step_length: int
    stride: int
    axial_blur: float = 0.0
    spread: float = 1.0


class PixelNorm(nn.Module):
    """LayerNorm over channels at each pixel of a channels-last [N, C, Y, X] tensor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), (self.channels,)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Residual block: pixel norm, scale and shift from the embedding, two 3x3 convolutions."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = PixelNorm(channels)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(_bias(self.conv2))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        return x + self.conv2(F.silu(self.conv1(h)))


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


class Embedding(nn.Module):
    """A few numbers, as Fourier features, to one vector per image."""

    def __init__(self, inputs: int, width: int, octaves: int = 4) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(octaves), False)
        self.layers = nn.Sequential(
            nn.Linear(inputs * (2 * octaves + 1), width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )

    frequencies: Tensor

    def forward(self, values: Tensor) -> Tensor:
        phase = (values[:, :, None] * self.frequencies).flatten(1)
        return self.layers(torch.cat([values, phase.sin(), phase.cos()], dim=1))


def _geometry_features(geometry: Geometry) -> tuple[float, ...]:
    return (
        math.log2(geometry.step_length) / 4,
        math.log2(geometry.stride / geometry.step_length) / 2,
        geometry.axial_blur / 4,
        geometry.spread - 1,
    )


class SlabEncoder(nn.Module):
    """Projections around each window, [K, 2 * CONTEXT + 1, Y, X], to features [K, C, Y, X]."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        c0, c1, c2 = config.encoder_widths
        e = config.embedding
        self.embed = Embedding(4, e)
        self.conv_in = nn.Conv2d(2 * CONTEXT + 1, c0, 3, padding=1)
        self.full_down = Block(c0, e)
        self.down1 = nn.Conv2d(c0, c1, 2, stride=2)
        self.half_down = nn.ModuleList([Block(c1, e), Block(c1, e)])
        self.down2 = nn.Conv2d(c1, c2, 2, stride=2)
        self.quarter = nn.ModuleList([Block(c2, e) for _ in range(config.quarter_blocks)])
        self.up2 = nn.ConvTranspose2d(c2, c1, 2, stride=2)
        self.half_up = Block(c1, e)
        self.up1 = nn.ConvTranspose2d(c1, c0, 2, stride=2)
        self.full_up = Block(c0, e)

    def forward(self, windows: Tensor, geometry: Geometry) -> Tensor:
        values = constant(_geometry_features(geometry), windows.dtype, windows.device)[None]
        embedding = self.embed(values)
        x0 = self.full_down(self.conv_in(windows), embedding)
        x1 = self.down1(x0)
        for block in self.half_down:
            x1 = block(x1, embedding)
        x2 = self.down2(x1)
        for block in self.quarter:
            x2 = block(x2, embedding)
        x1 = self.half_up(x1 + self.up2(x2), embedding)
        return self.full_up(x0 + self.up1(x1), embedding)


class SliceHead(nn.Module):
    """Features of the window, blended state and prior to the clean slice, added to `base`."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width, e = config.head_width, config.embedding
        self.embed = Embedding(9, e)
        self.features = nn.Conv2d(config.encoder_widths[0], width, 1)
        self.modulation = nn.Linear(e, 2 * width)
        self.slices = nn.Conv2d(7, width, 3, padding=1)
        self.blocks = nn.ModuleList([Block(width, e) for _ in range(config.head_blocks)])
        self.norm = PixelNorm(width)
        self.conv_out = nn.Conv2d(width, 1, 3, padding=1)
        self.conv_spread = nn.Conv2d(width, 1, 3, padding=1)
        for layer, start in ((self.conv_out, 0.0), (self.conv_spread, -3.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(_bias(layer), start)

    def forward(
        self, features: Tensor, state: Tensor, prior: Tensor, base: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        embedding = self.embed(values)
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.features(features), 1 + scale)
        h = h + self.slices(torch.cat([state, prior, base], dim=1))
        for block in self.blocks:
            h = block(h, embedding)
        h = F.silu(self.norm(h))
        # detached: how sure it is must not move what it says
        return base + self.conv_out(h), self.conv_spread(h.detach()).float().clamp(-9, -0.7)


class Denoiser(nn.Module):
    """The local denoiser: `encode` once per stack, then `denoise` slices at any noise level.

    Intensities are such that the projections span about [-1, 1].
    """

    def __init__(self, config: DenoiserConfig | None = None) -> None:
        super().__init__()
        self.config = config or DenoiserConfig()
        self.encoder = SlabEncoder(self.config)
        self.head = SliceHead(self.config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def feature_bytes(self, pixels: int) -> int:
        """Of the features of one window of so many pixels, float32: the largest arrays made."""
        return 4 * self.config.encoder_widths[0] * pixels

    def encode(self, projections: Tensor, geometry: Geometry, *, batch: int = 4) -> Tensor:
        """Features of every window, [K, C, Y, X], from the projections [K, Y, X].

        The stack's ends repeat their last projection; sizes that are no multiple of ALIGN are
        padded by repetition and cropped again.
        """
        count, height, width = projections.shape
        offsets = torch.arange(-CONTEXT, CONTEXT + 1)
        index = (torch.arange(count)[:, None] + offsets).clamp(0, count - 1)
        padded = F.pad(
            projections[None], (0, -width % ALIGN, 0, -height % ALIGN), mode="replicate"
        )[0]
        parts = [
            self.encoder(_channels_last(padded[rows]), geometry)[:, :, :height, :width]
            for rows in index.split(batch)
        ]
        return torch.cat(parts)

    def denoise(
        self,
        features: Tensor,
        state: Tensor,
        prior: Tensor,
        base: Tensor,
        position: Tensor,
        geometry: Geometry,
        level: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Clean slices [N, Y, X], the posterior mean given the blended state, and its doubt: the
        logarithm of the standard deviation of their error once the volume is consistent.

        Args:
            features: [N, C, Y, X] of the window nearest to each slice.
            state: [N, 3, Y, X] blended state of the slice before, the slice and the slice after.
            prior: [N, 3, Y, X] the prior, likewise.
            base: [N, Y, X] linear interpolation, to which the network adds.
            position: [N] offset of each slice from the centre of its window, in slices.
            geometry: the acquisition.
            level: [N, 3] signal, noise and gamma of the blended state, which is
                `(1 - gamma) * (signal * x0 + noise * eps) + gamma * prior`.

        Source: Kendall and Gal 2017 for the learnt standard deviation.
        """
        fixed = constant(_geometry_features(geometry), position.dtype, position.device)
        fixed = fixed.expand(len(position), -1)
        place = torch.stack([position / geometry.stride, position / 8], dim=1)
        values = torch.cat([place, fixed, level], dim=1)
        mean, spread = self.head(_channels_last(features), state, prior, base[:, None], values)
        return mean[:, 0], spread[:, 0]


def grown(denoiser: Denoiser, config: DenoiserConfig) -> Denoiser:
    """The same function as a network of more blocks, where training can go on.

    Raises:
        InputError: `config` has fewer blocks or other widths.
    """
    larger = Denoiser(config)  # its new blocks begin as the identity
    own, taken = larger.state_dict(), denoiser.state_dict()
    if any(name not in own or own[name].shape != taken[name].shape for name in taken):
        raise InputError("start_from", f"a network that {config} extends", denoiser.config)
    larger.load_state_dict(own | taken)
    return larger


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def save_denoiser(path: Path, denoiser: Denoiser, card: dict[str, str] | None = None) -> None:
    """Write weights, configuration and card to one safetensors file, whole or not at all."""
    metadata = {"format": FORMAT, "config": json.dumps(asdict(denoiser.config)), **(card or {})}
    write_tensors(path, denoiser.state_dict(), metadata)


def load_for(path: Path | None = None, *, noisy: bool) -> Denoiser:
    """The checkpoint at `path`; None is the one that ships for noisy or for quiet projections.

    Raises:
        InputError: as `load_denoiser`.
    """
    return load_denoiser(NOISY if path is None and noisy else path)


def load_denoiser(path: Path | None = None, *, argument: str = "denoiser") -> Denoiser:
    """Load a checkpoint; None is the one that ships with the package.

    Raises:
        InputError: the file is missing, not safetensors, or of another network; names `argument`.
    """
    path = SHIPPED if path is None else Path(path)
    if not path.is_file():
        raise InputError(argument, "an existing .safetensors file", str(path))
    tensors, metadata = read_tensors(path, argument, "a safetensors checkpoint")
    if metadata.get("format") != FORMAT:
        raise InputError(argument, f"a checkpoint of format {FORMAT}", metadata.get("format"))
    try:
        values = json.loads(metadata["config"])
        values["encoder_widths"] = tuple(values["encoder_widths"])
        config = DenoiserConfig(**values)
        check_fit(lambda: Denoiser(config), tensors)
        denoiser = Denoiser(config)
        denoiser.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(argument, "the tensors its configuration asks for", reason) from None
    return denoiser.eval()
