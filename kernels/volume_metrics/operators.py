"""The operators behind the functions of this kernel, and what runs them on each device.

Lists of floats stand for ranges, empty for None: operator schemas have no pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _backend
from . import reference as _reference
from .reference import BINS, COLUMNS, Range

_NATIVE_DTYPES = {
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
}
_TRITON_DTYPES = {*_NATIVE_DTYPES, torch.float16}


def _sums_reference(
    reference: Tensor,
    test: Tensor,
    scale: float,
    offset: float,
    clip: Sequence[float],
    ranges: Sequence[float],
    moments: bool = True,
) -> tuple[Tensor, Tensor]:
    """Rows of sums float64 [Z, 11], histograms int64 [2, 256] over ranges (low, high) of x and y.

    Without ranges the histograms are zero; without `moments` the table has no rows, which makes the
    second read cheaper, where the first one had to find the ranges.
    """
    table = reference.new_empty((0, len(COLUMNS)), dtype=torch.float64)
    counts = reference.new_zeros((2, BINS), dtype=torch.int64)
    if moments:
        table = _reference.slice_sums(reference, test, scale, offset, _pair(clip))
    if ranges:
        limits = (ranges[0], ranges[1]), (ranges[2], ranges[3])
        counts = _reference.histograms(reference, test, scale, offset, _pair(clip), limits)
    return table, counts


def _overlaps_reference(
    reference: Tensor,
    test: Tensor,
    threshold_x: float,
    threshold_y: float,
    scale: float,
    offset: float,
    clip: Sequence[float],
) -> Tensor:
    """Voxels above the thresholds in x, in y and in both, int64 [Z, 3]."""
    return _reference.overlap_counts(
        reference, test, threshold_x, threshold_y, scale, offset, _pair(clip)
    )


def _joint_reference(
    reference: Tensor,
    test: Tensor,
    scale: float,
    offset: float,
    clip: Sequence[float],
    ranges: Sequence[float],
) -> Tensor:
    """Voxels in every pair of half bins, int64 [512, 512]."""
    limits = (ranges[0], ranges[1]), (ranges[2], ranges[3])
    return _reference.joint_counts(reference, test, scale, offset, _pair(clip), limits)


def _pair(limits: Sequence[float]) -> Range | None:
    return (limits[0], limits[1]) if limits else None


def _bins(ranges: Sequence[float]) -> list[tuple[float, float, float]] | None:
    """Lower edge, bin width and bins per unit of both histograms."""
    pairs = zip(ranges[::2], ranges[1::2], strict=True)
    limits = [_reference.widened(low, high) for low, high in pairs]
    return [(low, (high - low) / BINS, BINS / (high - low)) for low, high in limits] or None


sums = torch.library.custom_op(
    "microdiffusion_fast::volume_metrics", _sums_reference, mutates_args=()
)
overlaps = torch.library.custom_op(
    "microdiffusion_fast::overlap_counts", _overlaps_reference, mutates_args=()
)

# For slabs from a disk. A volume on a GPU is cheap to read twice: the reference serves there.
joint = torch.library.custom_op(
    "microdiffusion_fast::joint_counts", _joint_reference, mutates_args=()
)


@sums.register_fake
def _fake_sums(
    reference: Tensor,
    test: Tensor,
    scale: float,
    offset: float,
    clip: Sequence[float],
    ranges: Sequence[float],
    moments: bool = True,
) -> tuple[Tensor, Tensor]:
    rows = reference.shape[0] if moments else 0
    table = reference.new_empty((rows, len(COLUMNS)), dtype=torch.float64)
    return table, reference.new_empty((2, BINS), dtype=torch.int64)


@overlaps.register_fake
def _fake_overlaps(reference: Tensor, *_: Any) -> Tensor:
    return reference.new_empty((reference.shape[0], 3), dtype=torch.int64)


@joint.register_fake
def _fake_joint(reference: Tensor, *_: Any) -> Tensor:
    return reference.new_empty((2 * BINS, 2 * BINS), dtype=torch.int64)


if _backend.native is not None:
    _native = _backend.native

    def _readable(*volumes: Tensor) -> list[Tensor]:
        # The native module takes no tensor that requires a gradient.
        return [volume.detach().contiguous() for volume in volumes]

    @sums.register_kernel("cpu")
    def _sums_native(
        reference: Tensor,
        test: Tensor,
        scale: float,
        offset: float,
        clip: Sequence[float],
        ranges: Sequence[float],
        moments: bool = True,
    ) -> tuple[Tensor, Tensor]:
        if not {reference.dtype, test.dtype} <= _NATIVE_DTYPES:
            return _sums_reference(reference, test, scale, offset, clip, ranges, moments)
        rows = reference.shape[0] if moments else 0
        table = torch.empty((rows, len(COLUMNS)), dtype=torch.float64)
        counts = torch.zeros((2, BINS), dtype=torch.int64)
        _native.volume_metrics(
            *_readable(reference, test),
            scale,
            offset,
            _pair(clip),
            _bins(ranges),
            table if moments else None,
            counts,
            torch.get_num_threads(),
        )
        return table, counts

    @overlaps.register_kernel("cpu")
    def _overlaps_native(reference: Tensor, test: Tensor, *numbers: Any) -> Tensor:
        if not {reference.dtype, test.dtype} <= _NATIVE_DTYPES:
            return _overlaps_reference(reference, test, *numbers)
        counts = torch.zeros((reference.shape[0], 3), dtype=torch.int64)
        *thresholds_and_map, clip = numbers
        _native.overlap_counts(
            *_readable(reference, test),
            *thresholds_and_map,
            _pair(clip),
            counts,
            torch.get_num_threads(),
        )
        return counts

    @joint.register_kernel("cpu")
    def _joint_native(
        reference: Tensor,
        test: Tensor,
        scale: float,
        offset: float,
        clip: Sequence[float],
        ranges: Sequence[float],
    ) -> Tensor:
        if not {reference.dtype, test.dtype} <= _NATIVE_DTYPES:
            return _joint_reference(reference, test, scale, offset, clip, ranges)
        counts = torch.zeros((2 * BINS, 2 * BINS), dtype=torch.int64)
        centres = [_reference.bin_centres(*ranges[i : i + 2]) for i in (0, 2)]
        _native.joint_counts(
            *_readable(reference, test),
            scale,
            offset,
            _pair(clip),
            _bins(ranges),
            torch.stack(centres),
            counts,
            torch.get_num_threads(),
        )
        return counts


if _backend.triton_missing is None:

    @sums.register_kernel("cuda")
    def _sums_triton(
        reference: Tensor,
        test: Tensor,
        scale: float,
        offset: float,
        clip: Sequence[float],
        ranges: Sequence[float],
        moments: bool = True,
    ) -> tuple[Tensor, Tensor]:
        if not {reference.dtype, test.dtype} <= _TRITON_DTYPES:
            return _sums_reference(reference, test, scale, offset, clip, ranges, moments)
        from .triton_kernel import volume_metrics_triton

        with torch.cuda.device(reference.device):
            return volume_metrics_triton(
                reference, test, scale, offset, _pair(clip), _bins(ranges), moments
            )

    @overlaps.register_kernel("cuda")
    def _overlaps_triton(reference: Tensor, test: Tensor, *numbers: Any) -> Tensor:
        if not {reference.dtype, test.dtype} <= _TRITON_DTYPES:
            return _overlaps_reference(reference, test, *numbers)
        from .triton_kernel import overlap_counts_triton

        threshold_x, threshold_y, scale, offset, clip = numbers
        with torch.cuda.device(reference.device):
            return overlap_counts_triton(
                reference, test, threshold_x, threshold_y, scale, offset, _pair(clip)
            )
