"""What the metrics compare: two checked volumes and the map that both go through in the kernels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.kernels.volume_metrics import (
    VolumeSums,
    evaluate_sums,
    joint_counts,
    overlap_counts,
)
from microdiffusion_fast.kernels.windowed_ssim import windowed_ssim

Array = NDArray[np.generic] | Tensor
Range = tuple[float, float]

# What every kernel reads; others are copied to the narrowest of these that holds them exactly.
_READ = {torch.uint8, torch.uint16, torch.bfloat16, torch.float32, torch.float64}
_COPIED = {
    torch.bool: torch.uint8,
    torch.int8: torch.float32,
    torch.int16: torch.float32,
    torch.float16: torch.float32,
}


@dataclass(frozen=True)
class Pair:
    """Reference x and test y [Z, Y, X] of one shape, compared as `clip(v*scale + offset)`.

    The kernels map while they read: there is no mapped copy. Values that are not finite are found
    by the sums, and counted only then.
    """

    x: Tensor
    y: Tensor
    names: tuple[str, str] = ("reference", "test")
    is_image: bool = False
    scale: float = 1.0
    offset: float = 0.0
    clip: Range | None = None

    @classmethod
    def of(
        cls, reference: Array, test: Array, *, names: tuple[str, str] = ("reference", "test")
    ) -> Pair:
        """The two volumes, or images [Y, X], on the device where they lie.

        Raises:
            InputError: if shapes or devices differ, or see `as_volume`.
        """
        x, y = as_volume(names[0], reference), as_volume(names[1], test)
        if x.shape != y.shape or reference.ndim != test.ndim:
            expected = f"shape {list(reference.shape)}, like the reference"
            raise InputError(names[1], expected, f"shape {list(test.shape)}")
        if x.device != y.device:
            expected = f"a tensor on {x.device}, like the reference"
            raise InputError(names[1], expected, str(y.device))
        return cls(x, y, names, is_image=reference.ndim == 2)

    @property
    def shape(self) -> list[int]:
        """Shape of each as it was given."""
        return list(self.x.shape[1:] if self.is_image else self.x.shape)

    def mapped(self, scale: float, offset: float, clip: Range) -> Pair:
        """The same volumes through another map."""
        return replace(self, scale=scale, offset=offset, clip=clip)

    def sums(
        self, *, histograms: bool = False, ranges: tuple[Range, Range] | None = None
    ) -> VolumeSums:
        """`evaluate_sums` of the mapped volumes.

        Raises:
            InputError: if values are not finite.
        """
        try:
            return evaluate_sums(
                self.x,
                self.y,
                scale=self.scale,
                offset=self.offset,
                clip=self.clip,
                ranges=ranges,
                histograms=histograms,
            )
        except ValueError:
            for name, volume in zip(self.names, (self.x, self.y), strict=True):
                check_finite(name, volume)
            raise

    def check_finite(self) -> None:
        """Raise an InputError if values are not finite."""
        if self.x.is_floating_point() or self.y.is_floating_point():
            self.sums()

    def overlaps(self, thresholds: tuple[float, float]) -> Tensor:
        """`overlap_counts` of the mapped volumes, int64 [Z, 3]."""
        return overlap_counts(
            self.x, self.y, thresholds, scale=self.scale, offset=self.offset, clip=self.clip
        )

    def joint(self, ranges: tuple[Range, Range]) -> Tensor:
        """`joint_counts` of the mapped volumes, int64 [512, 512]."""
        return joint_counts(
            self.x, self.y, ranges, scale=self.scale, offset=self.offset, clip=self.clip
        )

    def windowed_ssim(
        self, *, data_range: float, window: Literal["uniform", "gaussian"], ndim: Literal[2, 3]
    ) -> Tensor:
        """`windowed_ssim` of the mapped volumes, float64 [Z] or a scalar."""
        return windowed_ssim(
            self.x,
            self.y,
            data_range=data_range,
            window=window,
            ndim=ndim,
            scale=self.scale,
            offset=self.offset,
            clip=self.clip,
        )


def as_volume(name: str, data: Array) -> Tensor:
    """A non-empty [Z, Y, X] tensor of real numbers on the device of `data`, which it shares where
    it can; an image becomes one slice.

    Raises:
        InputError: if `data` is something else.
    """
    if isinstance(data, Tensor):
        tensor = data.detach()
    else:
        array = np.asarray(data)
        if array.dtype.kind not in "buif":
            raise InputError(name, "real numbers", f"dtype {array.dtype}")
        # torch knows neither foreign byte orders nor float128.
        kind = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
        array = np.ascontiguousarray(array, dtype=kind)
        with warnings.catch_warnings():
            # About read-only memory, which nobody here writes to.
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch.from_numpy(array)
    if tensor.is_complex():
        raise InputError(name, "real numbers", str(tensor.dtype))
    if tensor.ndim not in (2, 3) or tensor.numel() == 0:
        expected = "a volume [Z, Y, X] or an image [Y, X], not empty"
        raise InputError(name, expected, f"shape {list(tensor.shape)}")
    if tensor.dtype not in _READ:
        tensor = tensor.to(_COPIED.get(tensor.dtype, torch.float64))
    # Once, not once a kernel.
    return (tensor if tensor.ndim == 3 else tensor[None]).contiguous()


def check_finite(name: str, volume: Tensor) -> None:
    """Raise an InputError that counts the NaN and infinite voxels, if there are any."""
    if volume.is_floating_point():
        bad = sum(int((~torch.isfinite(part)).sum()) for part in volume)
        if bad:
            raise InputError(name, "finite values", f"{bad} NaN or infinite voxels")


def percentiles(volume: Tensor, percents: tuple[float, float]) -> Range:
    """Percentiles of a volume, equal to those of `numpy.percentile`.

    Those of 8-bit and 16-bit integers come from counts; others from a sorted copy on the host.

    Raises:
        InputError: if values are not finite.
    """
    if volume.dtype not in (torch.uint8, torch.uint16):
        check_finite("reference", volume)
        # numpy has no bfloat16; float32 holds it exactly
        host = volume.float() if volume.dtype == torch.bfloat16 else volume
        low, high = np.percentile(host.cpu().numpy(), percents).tolist()
        return low, high
    counts = np.zeros(256**volume.itemsize, dtype=np.int64)
    for part in volume.cpu().numpy():
        counts += np.bincount(part.ravel(), minlength=counts.size)
    below = counts.cumsum()
    # numpy's "linear" method.
    place = (volume.numel() - 1) * (np.asarray(percents) / 100.0)
    rank = np.floor(place).astype(np.int64)
    value = below.searchsorted(rank, side="right")
    following = below.searchsorted(np.minimum(rank + 1, volume.numel() - 1), side="right")
    low, high = (value + (following - value) * (place - rank)).tolist()
    return low, high
