"""The measured projections and their geometry, validated once for everything that follows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io_common import VoxelSize, checked_voxel_size
from microdiffusion_fast.projection_checks import (
    STEP_LENGTH,
    as_images,
    check_depth,
    check_images,
    checked_integer,
    checked_weights,
)

if TYPE_CHECKING:
    from microdiffusion_fast.forward_model import AxialProjection
    from microdiffusion_fast.io_common import Image


@dataclass(frozen=True, eq=False)
class Projections:
    """A stack of axial projections [K, Y, X] and the geometry that made them.

    Image k is the weighted mean of the slices [start + k*stride, start + k*stride + step_length).

    Attributes:
        images: float32 [K, Y, X], in the intensity units of the input.
        step_length: s, the number of slices in one projection, at least 2.
        stride: slices between the starts of two windows; default `step_length` (disjoint windows).
        start: the first slice of the first window.
        weights: axial weights [s], non-negative, summing to 1; None means uniform.
        depth: Z, the number of slices of the volume; default the end of the last window. Exactly K
            windows must fit in it.
        voxel_size: (z, y, x) of the *volume's* voxels in micrometres, not the spacing of the
            projections; None if unknown.
        dtype: name of the dtype that the images had before they became float32.
        source: where they came from.

    Raises:
        InputError: naming the argument, for images or a geometry that cannot be reconstructed.
    """

    images: Tensor
    step_length: int
    stride: int = None  # type: ignore[assignment]  # resolved below, an int ever after
    start: int = 0
    weights: tuple[float, ...] | None = None
    depth: int = None  # type: ignore[assignment]  # resolved below, an int ever after
    voxel_size: VoxelSize | None = None
    dtype: str = "float32"
    source: str | None = None

    def __post_init__(self) -> None:
        check_images(self.images)
        step_length = checked_integer("step_length", self.step_length, 2, STEP_LENGTH)
        stride = step_length if self.stride is None else checked_integer("stride", self.stride, 1)
        start = checked_integer("start", self.start, 0)
        count = int(self.images.shape[0])
        need = start + (count - 1) * stride + step_length
        depth = need if self.depth is None else checked_integer("depth", self.depth, 1)
        check_depth(depth, count, step_length, stride, start)
        checked = {
            "step_length": step_length,
            "stride": stride,
            "start": start,
            "weights": checked_weights(self.weights, step_length),
            "depth": depth,
            "voxel_size": checked_voxel_size(self.voxel_size),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_any(
        cls,
        projections: Any,
        *,
        step_length: int | None = None,
        stride: int | None = None,
        weights: Sequence[float] | NDArray[Any] | Tensor | None = None,
        start: int | None = None,
        depth: int | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> Projections:
        """Make projections from an array, tensor, DLPack object, path, Zarr array or Projections.

        What is None is taken from the file, where it was written by `save`, or from the given
        Projections; explicit arguments win. A geometry belongs together: with a `step_length` other
        than the stored one, the stored stride, weights, start and depth are not used. A file from
        elsewhere has no geometry, and the z spacing it states is taken for the spacing of the
        projections: the volume's voxel is spacing / stride long.

        Args:
            projections: images [K, Y, X], real, finite, not constant, K >= 2; copied, and converted
                to float32.
            step_length: slices in one projection; required where none is stored.
            stride: slices between window starts.
            weights: axial weights [step_length].
            start: first slice of the first window; default 0.
            depth: number of slices of the volume.
            voxel_size: (z, y, x) of the volume's voxels in micrometres.

        Raises:
            InputError: naming the argument, what was expected and what came.

        Examples:
            >>> images = np.random.default_rng(0).random((4, 16, 16))
            >>> stack = Projections.from_any(images, step_length=6)
            >>> stack.depth, stack.stride
            (24, 6)
        """
        given = {
            "step_length": step_length,
            "stride": stride,
            "weights": weights,
            "start": start,
            "depth": depth,
        }
        size = checked_voxel_size(voxel_size)
        if isinstance(projections, Projections):
            stored: dict[str, Any] = {name: getattr(projections, name) for name in given}
            geometry = _merge(given, stored)
            return replace(projections, **geometry, voxel_size=size or projections.voxel_size)
        stored, source, spacing, dtype = {}, None, None, None
        if isinstance(projections, (str, os.PathLike)):
            from microdiffusion_fast.io import read_volume

            image = read_volume(projections)
            source = str(image.source)
            stored, stored_size, dtype = _stored(image)
            size = size or stored_size
            spacing = image.voxel_size if size is None else None
            projections = image.data
        geometry = _merge(given, stored)
        if geometry["step_length"] is None:
            where = f"none given and none stored in {source}" if source else "None"
            raise InputError(
                "step_length", "the number of slices in one projection (--step-length N)", where
            )
        images, name = as_images(projections)
        made = cls(images, **geometry, voxel_size=size, dtype=dtype or name, source=source)
        if spacing is None:
            return made
        return replace(made, voxel_size=(spacing[0] / made.stride, spacing[1], spacing[2]))

    @property
    def operator(self) -> AxialProjection:
        """The projection operator A that takes a volume [Z, Y, X] to these images [K, Y, X]."""
        from microdiffusion_fast.forward_model import AxialProjection

        return AxialProjection(
            self.depth,
            self.step_length,
            stride=self.stride,
            weights=self.weights,
            start=self.start,
            count=int(self.images.shape[0]),
        )

    def intensity_range(self, low: float = 0.1, high: float = 99.9) -> tuple[float, float]:
        """Return the percentiles `low` and `high` of the images, the second always above the first.

        Where the two coincide (a few bright pixels on a flat background) the minimum and maximum
        are returned.

        Raises:
            InputError: unless 0 <= low < high <= 100.
        """
        if not 0 <= low < high <= 100:
            raise InputError("low, high", "percentiles with 0 <= low < high <= 100", (low, high))
        return percentile_range(self.images.detach().cpu().numpy(), low, high)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        provenance: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write images and geometry in the format of the suffix; `from_any(path)` reads both.

        The z spacing of the file is that of the projections, stride * voxel z; the voxel size of
        the volume goes with the geometry into the metadata, and `provenance`, JSON values on where
        the images came from.

        Raises:
            InputError: where the output exists (without `overwrite`) or cannot be written.
        """
        from microdiffusion_fast.io import write_volume

        data = self.images.detach().cpu().numpy()
        metadata = self.metadata | ({"provenance": dict(provenance)} if provenance else {})
        return write_volume(
            path, data, voxel_size=self.spacing, overwrite=overwrite, metadata=metadata
        )

    @property
    def spacing(self) -> VoxelSize | None:
        """(z, y, x) from one projection, or pixel, to the next, in micrometres."""
        if self.voxel_size is None:
            return None
        z, y, x = self.voxel_size
        return self.stride * z, y, x

    @property
    def metadata(self) -> dict[str, Any]:
        """The geometry, as it goes with the images into a file."""
        return {
            "kind": "projections",
            "step_length": self.step_length,
            "stride": self.stride,
            "weights": self.weights,
            "start": self.start,
            "depth": self.depth,
            "voxel_size": self.voxel_size,
            "dtype": self.dtype,
        }


def percentile_range(
    values: np.ndarray, low: float = 0.1, high: float = 99.9
) -> tuple[float, float]:
    """The percentiles `low` and `high`; minimum and maximum where the two coincide."""
    bottom, top = (float(value) for value in np.percentile(values, (low, high)))
    if not top > bottom:  # a few bright pixels on a flat background
        bottom, top = float(values.min()), float(values.max())
    return bottom, top


def _merge(given: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    if given["step_length"] not in (None, stored.get("step_length")):
        stored = {}
    merged = {name: stored.get(name) if value is None else value for name, value in given.items()}
    merged["start"] = 0 if merged["start"] is None else merged["start"]
    return merged


def _stored(image: Image) -> tuple[dict[str, Any], VoxelSize | None, str | None]:
    """Return the geometry, voxel size of the volume and dtype that `save` left in a file."""
    extra = image.extra
    if extra.get("kind") != "projections":
        return {}, None, None
    size = extra.get("voxel_size")
    dtype = extra.get("dtype")
    return extra, checked_voxel_size(size, "path"), dtype if isinstance(dtype, str) else None
