"""The denoiser on one tile: what `StackDenoiser` predicts for a whole stack, for a block of it."""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from .allocator import give_back
from .denoiser import ALIGN, CONTEXT, Denoiser, Geometry
from .forward_model import AxialProjection
from .inference import directions
from .kernels.constants import constant
from .schedule import NoiseLevel
from .tiling import Reach, Tile
from .tiling_windows import Span, Windows
from .training_data import axial_spread


def windows_of(operator: AxialProjection) -> Windows:
    """Where the projections of an operator lie, for the tile plan."""
    return Windows(
        operator.depth,
        operator.count,
        operator.step_length,
        operator.stride,
        operator.start,
        float(operator.centres[0]),
    )


def reach_of(denoiser: Denoiser, steps: int) -> Reach:
    """How far the denoiser sees in a chain of `steps`."""
    head = 2 + 2 * denoiser.config.head_blocks  # its 3x3 convolutions
    return Reach(denoiser.config.halo, head, CONTEXT, ALIGN, steps)


class TileDenoiser:
    """A denoiser bound to one tile: encodes a window when its slices come up.

    Nothing but the states, the projections and the features of one window is in memory, so a tile
    may be as wide as one window allows. It differs from `StackDenoiser` in nothing but rounding.

    Args:
        denoiser: the network.
        images: [k, y, x] projections of `tile.read`, spanning about [-1, 1].
        tile: the block.
        operator: the acquisition of the whole stack.
        axial_blur: what to tell the network, in slices.
        batch: slices per forward pass.
        guided: also give the unconditional prediction, without the features of the projections.
        keep: keep the features of every window, for chains of more than one step.
        stated: also have the deviation that the network states.

    Attributes:
        deviation: [z, y, x] of `tile.state`, the standard deviation that the network states for
            its last conditional prediction, in network units; None where it is not asked for.
    """

    deviation: Tensor | None = None

    def __init__(
        self,
        denoiser: Denoiser,
        images: Tensor,
        tile: Tile,
        operator: AxialProjection,
        *,
        axial_blur: float,
        batch: int,
        guided: bool,
        keep: bool,
        stated: bool = False,
    ) -> None:
        spread = axial_spread(operator.weights)
        self.geometry = Geometry(operator.step_length, operator.stride, axial_blur, spread)
        self.denoiser, self.images, self.tile = denoiser.eval(), images, tile
        self.batch, self.guided, self.keep, self.stated = batch, guided, keep, stated
        self.windows = windows_of(operator)
        self.directions = directions(operator)
        self.kept: dict[tuple[int, int], Tensor] = {}
        slices = torch.arange(*tile.state.z, dtype=torch.float64)
        near = self.windows.nearest(tile.state.z)
        offsets = slices[:, None] - operator.centres[None, slice(*near)]
        nearest = offsets.abs().argmin(dim=1, keepdim=True)
        self.window = (nearest[:, 0] + near.start).tolist()
        self.position = offsets.gather(1, nearest)[:, 0].to(images)

    @torch.no_grad()
    def __call__(
        self, x: Tensor, level: NoiseLevel, slices: Span
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Posterior mean given the blended state x, in network units; a pair if guided.

        Args:
            x: the states [z, y, x] of `tile.state`.
            level: what they are made of.
            slices: of the volume, which to predict; the others are zero.
        """
        top, inside = self.tile.state.z.start, self.windows.inside
        clean = torch.zeros_like(x)
        blind = torch.zeros_like(x) if self.guided else None
        self.deviation = torch.zeros_like(x) if self.stated else None
        known = range(max(slices.start, inside.start), min(slices.stop, inside.stop))
        for window, members in groupby(known, key=lambda z: self.window[z - top]):
            for index in torch.tensor(list(members)).split(self.batch):
                for direction in self.directions:
                    features = self._features(window, direction)
                    mean, doubt = self._head(x, level, index, direction, features)
                    clean[index - top] += mean
                    if self.deviation is not None:
                        self.deviation[index - top] += doubt.exp()
                    if blind is not None:
                        nothing = torch.zeros_like(features)
                        blind[index - top] += self._head(x, level, index, direction, nothing)[0]
        for volume in (clean, blind, self.deviation):
            if volume is None:
                continue
            volume /= len(self.directions)
            # beyond the outer windows nothing was measured: the last slice is repeated
            volume[: max(inside.start - top, 0)] = volume[max(inside.start - top, 0)]
            volume[inside.stop - top :] = volume[min(inside.stop - top, len(volume)) - 1]
        return clean if blind is None else (clean, blind)

    def interpolate(self, slices: Span) -> Tensor:
        """Linear interpolation between the projections, [n, y, x], as the operator has it."""
        windows, read = self.windows, self.tile.read
        position = (torch.arange(*slices, dtype=torch.float64) - windows.first) / windows.stride
        position = position.clamp(0.0, windows.count - 1.0)
        below = position.floor().clamp(max=max(windows.count - 2.0, 0.0))
        above = (below + 1.0).clamp(max=windows.count - 1.0)
        low, high = ((k.long() - read.z.start).to(self.images.device) for k in (below, above))
        inner = self.images[:, self._rows, self._columns]
        return torch.lerp(inner[low], inner[high], (position - below).to(inner)[:, None, None])

    @property
    def _rows(self) -> slice:
        return self.tile.state.y.within(self.tile.read.y)

    @property
    def _columns(self) -> slice:
        return self.tile.state.x.within(self.tile.read.x)

    def _head(
        self, x: Tensor, level: NoiseLevel, index: Tensor, direction: int, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        top, last = self.tile.state.z.start, self.windows.depth - 1
        around = Span(max(int(index[0]) - 1, 0), min(int(index[-1]) + 1, last) + 1)
        near = [(index + d * direction).clamp(0, last) for d in (-1, 0, 1)]
        slices = torch.stack(near, dim=1)
        base = self.interpolate(around)[slices - around.start]
        return self.denoiser.denoise(
            features.expand(len(index), -1, -1, -1),
            x[slices - top],
            base,
            base[:, 1],
            direction * self.position[index - top],
            self.geometry,
            constant(tuple(level), x.dtype, x.device).expand(len(index), 3),
        )

    def _features(self, window: int, direction: int) -> Tensor:
        """Features of one window, [1, C, y, x], as acquired (+1) or upside down (-1)."""
        if (window, direction) not in self.kept:
            if direction == self.directions[0]:  # the first that is asked for
                give_back()
            if not self.keep:
                self.kept = {key: value for key, value in self.kept.items() if key[0] == window}
            self.kept[window, direction] = self._encode(window, direction)
        return self.kept[window, direction]

    def _encode(self, window: int, direction: int) -> Tensor:
        offsets = direction * torch.arange(-CONTEXT, CONTEXT + 1)
        index = (window + offsets).clamp(0, self.windows.count - 1) - self.tile.read.z.start
        # the tile ends at a multiple of ALIGN, or where the image does, which `encode` pads so
        height, width = self.images.shape[1:]
        padding = (0, -width % ALIGN, 0, -height % ALIGN)
        image = F.pad(self.images[index][None], padding, mode="replicate")
        image = image.contiguous(memory_format=torch.channels_last)
        features = self.denoiser.encoder(image, self.geometry)[..., self._rows, self._columns]
        return features.contiguous(memory_format=torch.channels_last).clone()
