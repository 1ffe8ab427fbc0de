"""Training pairs: random windows of known volumes, seen as a stack would see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import CONTEXT, Geometry

EDGE_SHARE = 0.25  # windows drawn at a stack's end, where context repeats the last projection
ASSUMED_BLUR = 1.5  # slices, stated where nobody knows: microscopes are softer along z than across


def stated_blur(axial_blur: float | None) -> float:
    """The axial blur that the network is told, in slices: what is known, or what is usual."""
    return ASSUMED_BLUR if axial_blur is None else float(axial_blur)


@dataclass(frozen=True)
class Source:
    """A volume to learn from.

    Attributes:
        volume: [Z, Y, X], in units where the projections span about [0, 1].
        depth_axes: axes that may play the depth.
        noise: standard deviation of white noise to add to the mock projections.
    """

    volume: Tensor
    depth_axes: tuple[int, ...]
    noise: float = 0.0


@dataclass(frozen=True)
class Acquisition:
    """One way to record a stack: geometry, axial weights [s] and axial blur.

    `stated_blur` is what the network is told where that is not the truth; None tells the truth.
    """

    step_length: int
    stride: int
    weights: Tensor
    axial_blur: float = 0.0
    stated_blur: float | None = None

    @property
    def geometry(self) -> Geometry:
        blur = self.axial_blur if self.stated_blur is None else self.stated_blur
        return Geometry(self.step_length, self.stride, blur, axial_spread(self.weights))

    @classmethod
    def uniform(cls, step_length: int, stride: int | None = None, blur: float = 0.0) -> Acquisition:
        weights = torch.full((step_length,), 1.0 / step_length)
        return cls(step_length, stride or step_length, weights, blur)

    @classmethod
    def random(cls, rng: np.random.Generator, *, unstated: float = 0.5) -> Acquisition:
        """Draw one of the acquisitions that one checkpoint serves: step lengths 2 to 12, and now
        and then their double, at which adaptation is checked. The share `unstated` of them states
        the assumed blur whatever it is."""
        s = int(rng.choice(np.arange(2, 13), p=_STEP_SHARES))
        s *= 2 if s > 6 and rng.random() < 0.3 else 1
        stride = s if rng.random() < 0.8 else int(rng.integers(max(1, s // 2), s + 4))
        blur = 0.0 if rng.random() < 0.2 else float(rng.uniform(*_BLURS[int(rng.integers(3))]))
        drawn = cls.uniform(s, stride, blur)
        if rng.random() < unstated:
            # most users state none: the network has to see it in the projections
            drawn = replace(drawn, stated_blur=ASSUMED_BLUR)
        elif rng.random() < 0.5:
            # nobody knows the blur of a microscope exactly: half of the others are beliefs
            true = blur * math.exp(0.35 * rng.normal()) if blur else abs(0.4 * rng.normal())
            drawn = replace(drawn, axial_blur=min(true, 5.0), stated_blur=blur)
        if rng.random() < 0.85:
            return drawn
        taps = torch.arange(s) - (s - 1) / 2
        weights = torch.exp(-0.5 * (taps / (s * float(rng.uniform(0.2, 0.6)))) ** 2)
        return replace(drawn, weights=weights / weights.sum())


_BLURS = ((0.5, 2.5), (0.5, 2.5), (0.3, 4.0))  # sigmas in slices; most stacks lie in the first
_LOG_ZOOMS = (math.log(0.7), math.log(1.7))
_STEP_SHARES = np.array([1, 1, 1.5, 2, 4, 2, 2, 1, 1.5, 1, 2]) / 19.0


def axial_spread(weights: Tensor) -> float:
    """Width of the axial weights relative to the plain mean of as many slices (1 for uniform)."""
    w = weights.double()
    taps = torch.arange(len(w), dtype=torch.float64)
    centre = (w * taps).sum()
    variance = float((w * (taps - centre) ** 2).sum())
    return math.sqrt(variance / ((len(w) ** 2 - 1) / 12))


@dataclass(frozen=True)
class Scene:
    """A source seen along one of its depth axes, magnified.

    Attributes:
        volume: [Z, Y, X], the depth first.
        zoom: pixels of the scene per voxel of the volume.
    """

    volume: Tensor
    zoom: float = 1.0

    @classmethod
    def draw(cls, source: Source, rng: np.random.Generator, *, vary: bool) -> Scene:
        """One of the depth axes, the others exchanged half of the time; magnified if `vary`."""
        axis = source.depth_axes[int(rng.integers(len(source.depth_axes)))]
        volume = source.volume.movedim(axis, 0)
        if rng.random() < 0.5:
            volume = volume.transpose(1, 2)
        zoom = math.exp(rng.uniform(*_LOG_ZOOMS)) if vary and rng.random() < 0.6 else 1.0
        return cls(volume, zoom)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Pixels of the whole scene."""
        depth, height, width = (int(n * self.zoom) for n in self.volume.shape)
        return depth, height, width

    def block(self, *ranges: tuple[int, int]) -> Tensor:
        """The pixels of three index ranges (z, y, x), float32; the ends are repeated."""
        volume = self.volume
        for axis, (start, stop) in enumerate(ranges):
            last = volume.shape[axis] - 1
            if self.zoom == 1.0:
                index = torch.arange(start, stop).clamp(0, last)
                volume = volume.index_select(axis, index)
                continue
            place = ((torch.arange(start, stop) + 0.5) / self.zoom - 0.5).clamp(0, last)
            below = place.floor().clamp(max=last - 1)
            fraction = (place - below).view([-1 if a == axis else 1 for a in range(3)])
            index = below.long()
            low, high = (volume.index_select(axis, i).float() for i in (index, index + 1))
            volume = torch.lerp(low, high, fraction)
        return volume.float()


def changed(block: Tensor, sources: Sequence[Source], rng: np.random.Generator) -> Tensor:
    """A block as another specimen might show it: a second structure in it, another contrast."""
    if rng.random() < 0.35:
        scene = Scene.draw(sources[int(rng.integers(len(sources)))], rng, vary=True)
        starts = [
            int(rng.integers(max(1, n - m + 1)))
            for n, m in zip(scene.shape, block.shape, strict=True)
        ]
        other = scene.block(*((a, a + m) for a, m in zip(starts, block.shape, strict=True)))
        other = other * float(rng.uniform(0.2, 1.0))
        block = torch.maximum(block, other) if rng.random() < 0.5 else block + other
    if rng.random() < 0.6:
        top = max(float(block.max()), 1e-3)
        block = top * (block.clamp(min=0) / top) ** math.exp(0.35 * rng.normal())
    return block


def _limited(block: Tensor, rng: np.random.Generator) -> Tensor:
    """A block whose brightest voxels are white, as cameras and 8-bit files have them."""
    share = math.exp(rng.uniform(math.log(2e-4), math.log(1e-2)))
    rank = max(1, math.ceil((1 - share) * block.numel()))
    return block.clamp(max=float(block.flatten().kthvalue(rank).values))


@dataclass(frozen=True)
class Batch:
    """Windows with their context and the true slices around them.

    Attributes:
        windows: [B, 2 * CONTEXT + 1, Y, X] projections.
        slices: [B, S + 2, Y, X] the S slices nearest to the window, and one beyond on either side.
        positions: [B, S + 2] offset of each from the window's centre, in slices.
    """

    windows: Tensor
    slices: Tensor
    positions: Tensor


def blur_depth(volume: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [Z, ...] along the first axis, ends repeated."""
    if sigma <= 0.1:
        return volume
    radius = math.ceil(3 * sigma)
    taps = torch.arange(-radius, radius + 1, dtype=volume.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    flat = volume.reshape(1, 1, volume.shape[0], -1)
    padded = F.pad(flat, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None, :, None]).reshape(volume.shape)


def draw_batch(
    sources: Sequence[Source],
    acquisition: Acquisition,
    rng: np.random.Generator,
    *,
    count: int,
    size: int,
    vary: bool = False,
) -> Batch:
    """Draw `count` random windows of `size` x `size` pixels, mirrored, turned and scaled.

    `vary` also magnifies, mixes and bends the contrast of what is drawn: a network that sees the
    same simulated volumes again and again learns the simulator (docs/defaults.md).
    """
    drawn = [_draw(sources, acquisition, rng, size, vary) for _ in range(count)]
    windows, slices, positions = zip(*drawn, strict=True)
    return Batch(torch.stack(windows), torch.stack(slices), torch.stack(positions))


def _draw(
    sources: Sequence[Source],
    acquisition: Acquisition,
    rng: np.random.Generator,
    size: int,
    vary: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    s, stride = acquisition.step_length, acquisition.stride
    source = sources[int(rng.integers(len(sources)))]
    scene = Scene.draw(source, rng, vary=vary)
    depth, height, width = scene.shape
    fitting = (depth - s) // stride  # index of the last window that fits after the first
    slack = depth - s - fitting * stride
    offset = int(rng.integers(slack + 1))
    if rng.random() < EDGE_SHARE or fitting <= 2 * CONTEXT:
        centre = int(rng.choice([0, 1, fitting - 1, fitting])) if fitting > 0 else 0
    else:
        centre = int(rng.integers(CONTEXT, fitting - CONTEXT + 1))
    first, last = max(0, centre - CONTEXT), min(fitting, centre + CONTEXT)
    y = int(rng.integers(max(1, height - size + 1)))
    x = int(rng.integers(max(1, width - size + 1)))

    # the slices to predict reach beyond the window where there are gaps or the weights are skewed
    weights = acquisition.weights.double()
    centroid = float((weights * torch.arange(s, dtype=torch.float64)).sum())
    low = math.ceil(centroid - stride / 2 - 1e-9)  # from the first slice of the window
    margin = math.ceil(3 * acquisition.axial_blur)
    start = offset + first * stride - margin - max(0, 1 - low)
    stop = offset + last * stride + s + margin + max(0, low + stride + 1 - s)
    block = scene.block((start, stop), (y, y + size), (x, x + size))
    if vary:
        block = changed(block, sources, rng)
    block = blur_depth(block, acquisition.axial_blur)
    if vary and rng.random() < 0.5:
        block = _limited(block, rng)

    def place(window: int) -> int:
        return offset + window * stride - start

    def project(window: int) -> Tensor:
        low = place(min(max(window, first), last))
        return torch.tensordot(acquisition.weights, block[low : low + s], 1)

    windows = torch.stack([project(k) for k in range(centre - CONTEXT, centre + CONTEXT + 1)])
    chosen = torch.arange(low - 1, low + stride + 1)
    slices = block[place(centre) + chosen]
    positions = (chosen - centroid).float()

    gain, shift = math.exp(0.25 * rng.normal()), 0.05 * rng.normal()
    windows, slices = windows * gain + shift, slices * gain + shift
    if source.noise:
        windows = windows + (gain * source.noise) * _noise(windows, rng, vary=vary)
    if rng.random() < 0.5:
        windows, slices = windows.flip(2), slices.flip(2)
    if rng.random() < 0.5:
        windows, slices = windows.flip(1), slices.flip(1)
    # mirrored along z, skewed weights would be those of another acquisition
    symmetric = torch.allclose(weights, weights.flip(0), rtol=0, atol=1e-6)
    if rng.random() < 0.5 and symmetric:
        windows, slices, positions = windows.flip(0), slices.flip(0), -positions.flip(0)
    return windows, slices, positions


def _noise(windows: Tensor, rng: np.random.Generator, *, vary: bool) -> Tensor:
    """White noise of about unit deviation, [K, Y, X]; if `vary`, a camera's: that of light grows
    with the light, and a resampled or denoised image carries a smooth rest of it."""
    noise = torch.from_numpy(rng.standard_normal(windows.shape, dtype=np.float32))
    if not vary:
        return noise
    shot = float(rng.uniform())
    noise = noise * (1 - shot + shot * 2 * windows.clamp(min=0)).sqrt()
    if rng.random() < 0.3:
        smooth = float(rng.uniform(0.3, 0.8))
        noise = blur_depth(noise.movedim(2, 0), smooth).movedim(0, 2)
        noise = blur_depth(noise.movedim(1, 0), smooth).movedim(0, 1)
    return noise
