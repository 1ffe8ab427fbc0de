"""What the microscope does to a specimen: blur, haze, shading, stripes, and the camera's noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.simulation.fields import gaussian_blur, smooth_field
from microdiffusion_fast.simulation.raster import Array, Floats

DARK = 200.0  # photons: below it counts are drawn from Poisson's law itself

_SKIP = 2**20
Generators = tuple[np.random.Generator, np.random.Generator, np.random.Generator]


def _non_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(name, "a finite number of at least 0", value)


@dataclass(frozen=True, kw_only=True)
class Optics:
    """The optical path, as a blur and a few slow modulations.

    `psf_sigma` (z, y, x) is the Gaussian point spread in voxels; `halo` the share of light in a
    tail `halo_scale` times wider; `tail` the share in a one-sided axial tail (spherical
    aberration), three `psf_sigma` long; `background` a constant offset (share of full scale) and
    `haze` its slow variation; `shading` the depth of the illumination's fall-off, `attenuation`
    the loss over the whole depth; `flicker` the deviation of the slices' gain; `stripes` the
    depth of the shadows along x of a light sheet; `wobble` the sideways drift of slices in voxels.
    """

    psf_sigma: tuple[float, float, float] = (1.2, 0.8, 0.8)
    halo: float = 0.05
    halo_scale: float = 4.0
    background: float = 0.03
    haze: float = 0.0
    shading: float = 0.0
    attenuation: float = 0.0
    tail: float = 0.0
    flicker: float = 0.0
    stripes: float = 0.0
    wobble: float = 0.0

    def __post_init__(self) -> None:
        if len(self.psf_sigma) != 3:
            raise InputError("psf_sigma", "three numbers (z, y, x)", self.psf_sigma)
        for value in self.psf_sigma:
            _non_negative("psf_sigma", value)
        for name in ("halo_scale", "haze", "flicker", "stripes", "wobble"):
            _non_negative(name, getattr(self, name))
        for name in ("halo", "tail", "background", "shading", "attenuation"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(name, "a number from 0 to below 1", getattr(self, name))

    @classmethod
    def random(cls, rng: np.random.Generator) -> Optics:
        """Draw plausible optics: sharp to soft, isotropic to three times longer along z."""
        lateral = float(np.exp(rng.uniform(math.log(0.35), math.log(1.7))))
        ratio = 1.0 if rng.random() < 0.25 else float(rng.uniform(1.0, 3.0))
        # beyond 4 voxels of axial blur nothing is left for a slab of a few slices to lose
        axial = min(lateral * ratio, 4.0)
        return cls(
            psf_sigma=(axial, lateral, lateral),
            halo=float(rng.uniform(0.0, 0.25)) if rng.random() < 0.7 else 0.0,
            halo_scale=float(rng.uniform(2.5, 6.0)),
            background=float(rng.uniform(0.0, 0.15)),
            haze=float(rng.uniform(0.0, 0.4)),
            shading=float(rng.uniform(0.05, 0.5)) if rng.random() < 0.4 else 0.0,
            attenuation=float(rng.uniform(0.1, 0.6)) if rng.random() < 0.3 else 0.0,
            tail=float(rng.uniform(0.05, 0.35)) if rng.random() < 0.25 else 0.0,
            flicker=float(rng.uniform(0.002, 0.015)) if rng.random() < 0.15 else 0.0,
            stripes=float(rng.uniform(0.005, 0.05)) if rng.random() < 0.25 else 0.0,
            wobble=float(rng.uniform(0.1, 0.8)) if rng.random() < 0.25 else 0.0,
        )

    def blur(self, volume: Array) -> Array:
        """Convolve a volume [Z, Y, X] with the point spread, halo included; light is kept."""
        sharp = gaussian_blur(volume, self.psf_sigma)
        if self.tail:
            late = _trail(sharp, 3 * max(self.psf_sigma[0], 0.5))
            sharp = np.asarray((1 - self.tail) * sharp + self.tail * late, dtype=np.float32)
        if not self.halo:
            return sharp
        wide = gaussian_blur(sharp, [max(s, 0.5) * self.halo_scale for s in self.psf_sigma])
        return np.asarray((1 - self.halo) * sharp + self.halo * wide, dtype=np.float32)

    def modulate(self, volume: Array, rng: np.random.Generator) -> Array:
        """Shade, attenuate, stripe and shift the slices of a volume [Z, Y, X]."""
        shape = (volume.shape[0], volume.shape[1], volume.shape[2])
        if self.shading:
            field = smooth_field(shape, 1.2 * float(np.mean(shape)), rng)
            lit = 1 - self.shading / (1 + np.exp(-2 * field))
            volume = volume * lit.astype(np.float32)
        if self.attenuation:
            depth = np.linspace(0, 1, shape[0], dtype=np.float32)
            if rng.random() < 0.5:
                depth = depth[::-1]
            volume = volume * ((1 - self.attenuation) ** depth)[:, None, None].astype(np.float32)
        if self.flicker:
            gain = 1 + self.flicker * rng.standard_normal(shape[0])
            volume = volume * np.clip(gain, 0.5, 1.5)[:, None, None].astype(np.float32)
        if self.stripes:
            # shadows run along the sheet's path and live for a few slices
            scales = (float(rng.uniform(3, 12)), float(rng.uniform(1.5, 8)), 1.0)
            rows = smooth_field((shape[0], shape[1], 1), scales, rng)
            volume = volume * np.clip(1 + self.stripes * rows, 0.3, 1.7)
        if self.wobble:
            volume = _wobble(volume, self.wobble, rng)
        return np.asarray(volume, dtype=np.float32)

    def apply(self, specimen: Array, rng: np.random.Generator) -> Array:
        """Image a specimen [Z, Y, X] of values from 0 to 1: blur, background, modulation."""
        image = self.blur(specimen)
        if self.background:
            offset = np.full_like(image, self.background)
            if self.haze:
                shape = (image.shape[0], image.shape[1], image.shape[2])
                field = smooth_field(shape, 0.6 * float(np.mean(shape)), rng)
                offset *= np.exp(self.haze * field)
            image = offset + (1 - self.background) * image
        return self.modulate(image, rng)


def _trail(volume: Array, length: float) -> Array:
    """Drag light towards deeper slices, exponentially over `length`; slice 0 goes on above."""
    keep = np.float32(math.exp(-1 / length))
    out = np.empty_like(volume)
    out[0] = volume[0]
    for z in range(1, len(volume)):
        out[z] = keep * out[z - 1] + (1 - keep) * volume[z]
    return out


def _wobble(volume: Array, size: float, rng: np.random.Generator) -> Array:
    """Shift every slice sideways by a slow random walk of deviation `size` voxels."""
    depth = volume.shape[0]
    walk = smooth_field((depth, 2, 1), (float(rng.uniform(3, 10)), 1.0, 1.0), rng)[:, :, 0]
    shift = np.clip(size * walk, -3, 3)
    out = np.empty_like(volume)
    for z in range(depth):
        plane = volume[z]
        for axis in range(2):
            amount = float(shift[z, axis])
            whole = math.floor(amount)
            part = np.float32(amount - whole)
            n = plane.shape[axis]
            index = np.clip(np.arange(n) + whole, 0, n - 1)
            after = np.clip(index + 1, 0, n - 1)
            mixed = (1 - part) * plane.take(index, axis) + part * plane.take(after, axis)
            plane = mixed.astype(np.float32)
        out[z] = plane
    return out


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The camera: Poisson shot noise, Gaussian read noise, offset, saturation and bit depth.

    `photons` is the mean count at intensity 1 (None: no shot noise); `read_noise` a deviation in
    photons; `background` an offset in photons that carries shot noise too and is subtracted from
    the mean again; `bits` quantises to 2^bits levels of [0, 1] and saturates outside (None:
    floating point, nothing clipped).
    """

    photons: float | None = 500.0
    read_noise: float = 0.0
    background: float = 0.0
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.photons is not None and not (math.isfinite(self.photons) and self.photons > 0):
            raise InputError("photons", "a positive number or None", self.photons)
        _non_negative("read_noise", self.read_noise)
        _non_negative("background", self.background)
        if self.bits is not None and not (isinstance(self.bits, int) and 1 <= self.bits <= 16):
            raise InputError("bits", "a whole number from 1 to 16 or None", self.bits)

    @classmethod
    def random(cls, rng: np.random.Generator) -> Noise:
        """Draw plausible camera settings, from nearly clean to photon-starved."""
        photons = float(np.exp(rng.uniform(math.log(80), math.log(20000))))
        return cls(
            photons=photons,
            read_noise=float(rng.uniform(0, 0.15)) * math.sqrt(photons),
            background=float(rng.uniform(0, 0.05)) * photons,
            bits=int(rng.choice([8, 10, 12, 14, 16])) if rng.random() < 0.5 else None,
        )

    def apply(self, images: Floats, rng: np.random.Generator | Generators) -> Array:
        """Record images of any shape in units of full scale; float32, same units.

        Draws follow each other: shot noise of all images, that of dark pixels, read noise of all.
        Three generators, one for each, let images be recorded in parts, see `generators`.
        """
        shot, dark, read = (rng, rng, rng) if isinstance(rng, np.random.Generator) else rng
        out = np.asarray(images, dtype=np.float32)
        scale = self.photons if self.photons is not None else 1.0
        if self.photons is not None:
            rate = self._rate(out)
            out = _poisson(rate, shot, dark)
        else:
            out = out + np.float32(self.background)
        if self.read_noise:
            out = out + np.float32(self.read_noise) * read.standard_normal(out.shape, np.float32)
        out = (out - np.float32(self.background)) / np.float32(scale)
        if self.bits is not None:
            top = np.float32(2**self.bits - 1)
            out = np.rint(np.clip(out, 0, 1) * top) / top
        return np.asarray(out, dtype=np.float32)

    def _rate(self, images: Array) -> Array:
        """Mean counts of images in units of full scale."""
        assert self.photons is not None
        rate = np.maximum(images, 0) * self.photons + self.background
        return np.asarray(rate, dtype=np.float32)

    def generators(self, parts: Callable[[], Iterable[Floats]], size: int, seed: int) -> Generators:
        """Generators to record images in parts with, as if they were recorded at once.

        Args:
            parts: gives the images part by part, in the order in which they will be recorded.
            size: pixels of all of them.
            seed: of the noise.
        """
        shot, after = np.random.default_rng(seed), np.random.default_rng(seed)
        if self.photons is not None:
            for start in range(0, size, _SKIP):  # numbers are drawn to get past them
                after.standard_normal(min(_SKIP, size - start), np.float32)
        dark = copy.deepcopy(after)
        if self.photons is not None and self.read_noise:
            for part in parts():
                rate = self._rate(np.asarray(part, dtype=np.float32))
                after.poisson(rate[rate < DARK])
        return shot, dark, after


def _poisson(rate: Array, shot: np.random.Generator, dark: np.random.Generator) -> Array:
    """Poisson counts; above `DARK` the normal law, indistinguishable and ten times faster."""
    out = rate + np.sqrt(rate) * shot.standard_normal(rate.shape, np.float32)
    few = rate < DARK
    if few.any():
        out[few] = dark.poisson(rate[few])
    return np.asarray(out, dtype=np.float32)
