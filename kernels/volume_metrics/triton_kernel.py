"""volume_metrics for CUDA: a program sums a chunk of a slice, a second kernel adds up the chunks.

Sums in float64, in an order that depends on the size of a slice alone; counts by integer atomics.
`tl.histogram` counts by ballots within a warp: its time does not depend on the data.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import BINS, COLUMNS, Range

# Voxels of a program: ROWS x WIDTH at a time, STEPS times at most. Each of its ROWS threads takes
# WIDTH voxels in one 128-bit load.
WARPS = 8
ROWS = 32 * WARPS
STEPS = 16
QUANTITIES = 10  # In the row of a chunk: six sums and four extremes, still unmapped.
CHUNKS = 1024  # Rows of chunks added at a time.


@triton.jit
def _double(value):
    """A float64 of a kernel argument (where interpreted, a Python float)."""
    return tl.full([], value, tl.float64)


@triton.jit
def _widened(v):
    """float64 of any voxel, by way of float32 where the format is narrower."""
    if v.dtype == tl.bfloat16 or v.dtype == tl.float16:
        return v.to(tl.float32).to(tl.float64)
    return v.to(tl.float64)


@triton.jit
def _mapped(v, scale, offset, low, high, MAP: tl.constexpr, CLIP: tl.constexpr):
    if MAP:
        v = v * scale + offset
    if CLIP:
        # Comparisons with NaN are false: it stays.
        v = tl.where(v < low, low, v)
        v = tl.where(v > high, high, v)
    return v


@triton.jit
def _bins(v, low, step, factor, MAXIMUM: tl.constexpr):
    """numpy.histogram's bins: the quotient can round across an edge, so the edges decide."""
    quotient = (v - low) * factor
    quotient = tl.where(quotient > 0.0, quotient, 0.0)
    quotient = tl.where(quotient < MAXIMUM, quotient, MAXIMUM)
    index = quotient.to(tl.int32)
    index -= (v < index.to(tl.float64) * step + low).to(tl.int32)
    index += (v >= (index + 1).to(tl.float64) * step + low).to(tl.int32)
    return tl.minimum(tl.maximum(index, 0), MAXIMUM)


@triton.jit
def _chunk_kernel(
    x_ptr,
    y_ptr,
    rows_ptr,
    counts_ptr,
    voxels: tl.int64,
    chunks: tl.int64,
    scale: tl.float64,
    offset: tl.float64,
    clip_low: tl.float64,
    clip_high: tl.float64,
    low_x: tl.float64,
    step_x: tl.float64,
    factor_x: tl.float64,
    low_y: tl.float64,
    step_y: tl.float64,
    factor_y: tl.float64,
    MAP: tl.constexpr,
    CLIP: tl.constexpr,
    MOMENTS: tl.constexpr,
    HISTOGRAMS: tl.constexpr,
    BINS: tl.constexpr,
    QUANTITIES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    first = (program % chunks) * (ROWS * WIDTH * STEPS)
    x_ptr += program // chunks * voxels + first
    y_ptr += program // chunks * voxels + first
    left = tl.minimum(voxels - first, ROWS * WIDTH * STEPS).to(tl.int32)
    inside = tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    scale, offset = _double(scale), _double(offset)
    clip_low, clip_high = _double(clip_low), _double(clip_high)

    zero = tl.zeros([ROWS], tl.float64)
    sum_x, sum_y, sum_xx, sum_yy, sum_xy, sse = zero, zero, zero, zero, zero, zero
    min_x, min_y = zero + float("inf"), zero + float("inf")
    max_x, max_y = zero - float("inf"), zero - float("inf")
    counts_x, counts_y = tl.zeros([BINS], tl.int32), tl.zeros([BINS], tl.int32)
    for step in range(STEPS):
        voxel = step * (ROWS * WIDTH) + inside
        valid = voxel < left
        x = _widened(tl.load(x_ptr + voxel, mask=valid, other=0))
        y = _widened(tl.load(y_ptr + voxel, mask=valid, other=0))
        if MOMENTS:
            # The map is monotone, rounding included: it can wait until the extremes are known.
            min_x = tl.minimum(min_x, tl.min(tl.where(valid, x, float("inf")), 1))
            max_x = tl.maximum(max_x, tl.max(tl.where(valid, x, float("-inf")), 1))
            min_y = tl.minimum(min_y, tl.min(tl.where(valid, y, float("inf")), 1))
            max_y = tl.maximum(max_y, tl.max(tl.where(valid, y, float("-inf")), 1))
        x = _mapped(x, scale, offset, clip_low, clip_high, MAP, CLIP)
        y = _mapped(y, scale, offset, clip_low, clip_high, MAP, CLIP)
        if MOMENTS:
            a, b = tl.where(valid, x, 0.0), tl.where(valid, y, 0.0)
            difference = a - b
            # WIDTH voxels of one thread first: no exchange between threads inside the loop.
            sum_x += tl.sum(a, 1)
            sum_y += tl.sum(b, 1)
            sum_xx += tl.sum(a * a, 1)
            sum_yy += tl.sum(b * b, 1)
            sum_xy += tl.sum(a * b, 1)
            sse += tl.sum(difference * difference, 1)
        if HISTOGRAMS:
            flat = tl.reshape(valid, [ROWS * WIDTH])
            index = _bins(x, _double(low_x), _double(step_x), _double(factor_x), BINS - 1)
            counts_x += tl.histogram(tl.reshape(index, [ROWS * WIDTH]), BINS, mask=flat)
            index = _bins(y, _double(low_y), _double(step_y), _double(factor_y), BINS - 1)
            counts_y += tl.histogram(tl.reshape(index, [ROWS * WIDTH]), BINS, mask=flat)

    if MOMENTS:
        rows_ptr += program * QUANTITIES
        tl.store(rows_ptr + 0, tl.sum(sum_x, 0))
        tl.store(rows_ptr + 1, tl.sum(sum_y, 0))
        tl.store(rows_ptr + 2, tl.sum(sum_xx, 0))
        tl.store(rows_ptr + 3, tl.sum(sum_yy, 0))
        tl.store(rows_ptr + 4, tl.sum(sum_xy, 0))
        tl.store(rows_ptr + 5, tl.sum(sse, 0))
        tl.store(rows_ptr + 6, tl.min(min_x, 0))
        tl.store(rows_ptr + 7, tl.max(max_x, 0))
        tl.store(rows_ptr + 8, tl.min(min_y, 0))
        tl.store(rows_ptr + 9, tl.max(max_y, 0))
    if HISTOGRAMS:
        bins = tl.arange(0, BINS)
        tl.atomic_add(counts_ptr + bins, counts_x.to(tl.int64), counts_x > 0, sem="relaxed")
        counts_ptr += BINS
        tl.atomic_add(counts_ptr + bins, counts_y.to(tl.int64), counts_y > 0, sem="relaxed")


@triton.jit
def _column(rows_ptr, chunks, KIND: tl.constexpr, QUANTITIES: tl.constexpr, CHUNKS: tl.constexpr):
    """Sum, minimum or maximum of one quantity over the chunks of a slice."""
    empty: tl.constexpr = 0.0 if KIND == "sum" else float("inf") if KIND == "min" else float("-inf")
    total = tl.full([CHUNKS], empty, tl.float64)
    chunk = tl.arange(0, CHUNKS).to(tl.int64)
    start = 0 * chunks
    while start < chunks:
        value = tl.load(rows_ptr + chunk * QUANTITIES, mask=chunk < chunks, other=empty)
        if KIND == "sum":
            total += value
        elif KIND == "min":
            total = tl.minimum(total, value)
        else:
            total = tl.maximum(total, value)
        chunk += CHUNKS
        start += CHUNKS
    if KIND == "sum":
        return tl.sum(total, 0)
    return tl.min(total, 0) if KIND == "min" else tl.max(total, 0)


@triton.jit
def _slice_kernel(
    rows_ptr,
    table_ptr,
    voxels: tl.int64,
    chunks: tl.int64,
    scale: tl.float64,
    offset: tl.float64,
    clip_low: tl.float64,
    clip_high: tl.float64,
    MAP: tl.constexpr,
    CLIP: tl.constexpr,
    QUANTITIES: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    z = tl.program_id(0).to(tl.int64)
    rows_ptr += z * chunks * QUANTITIES
    table_ptr += z * COLUMNS
    scale, offset = _double(scale), _double(offset)
    clip_low, clip_high = _double(clip_low), _double(clip_high)
    finite = True
    for volume in tl.static_range(2):
        low = _column(rows_ptr + 6 + 2 * volume, chunks, "min", QUANTITIES, CHUNKS)
        high = _column(rows_ptr + 7 + 2 * volume, chunks, "max", QUANTITIES, CHUNKS)
        finite = finite & (low > float("-inf")) & (high < float("inf"))
        low = _mapped(low, scale, offset, clip_low, clip_high, MAP, CLIP)
        high = _mapped(high, scale, offset, clip_low, clip_high, MAP, CLIP)
        # A negative scale exchanges them.
        tl.store(table_ptr + 7 + 2 * volume, tl.minimum(low, high))
        tl.store(table_ptr + 8 + 2 * volume, tl.maximum(low, high))
    tl.store(table_ptr, _double(voxels))
    for column in tl.static_range(6):
        total = _column(rows_ptr + column, chunks, "sum", QUANTITIES, CHUNKS)
        # Clipping would hide an infinite voxel.
        tl.store(table_ptr + 1 + column, tl.where(finite, total, float("nan")))


@triton.jit
def _overlap_kernel(
    x_ptr,
    y_ptr,
    counts_ptr,
    voxels: tl.int64,
    chunks: tl.int64,
    threshold_x: tl.float64,
    threshold_y: tl.float64,
    scale: tl.float64,
    offset: tl.float64,
    clip_low: tl.float64,
    clip_high: tl.float64,
    MAP: tl.constexpr,
    CLIP: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    z = program // chunks
    first = (program % chunks) * (ROWS * WIDTH * STEPS)
    x_ptr += z * voxels + first
    y_ptr += z * voxels + first
    left = tl.minimum(voxels - first, ROWS * WIDTH * STEPS).to(tl.int32)
    inside = tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    scale, offset = _double(scale), _double(offset)
    clip_low, clip_high = _double(clip_low), _double(clip_high)
    threshold_x, threshold_y = _double(threshold_x), _double(threshold_y)

    above_x, above_y = tl.zeros([ROWS], tl.int32), tl.zeros([ROWS], tl.int32)
    above_both = tl.zeros([ROWS], tl.int32)
    for step in range(STEPS):
        voxel = step * (ROWS * WIDTH) + inside
        valid = voxel < left
        x = _widened(tl.load(x_ptr + voxel, mask=valid, other=0))
        y = _widened(tl.load(y_ptr + voxel, mask=valid, other=0))
        x = _mapped(x, scale, offset, clip_low, clip_high, MAP, CLIP)
        y = _mapped(y, scale, offset, clip_low, clip_high, MAP, CLIP)
        in_x, in_y = (x > threshold_x) & valid, (y > threshold_y) & valid
        above_x += tl.sum(in_x.to(tl.int32), 1)
        above_y += tl.sum(in_y.to(tl.int32), 1)
        above_both += tl.sum((in_x & in_y).to(tl.int32), 1)

    counts_ptr += z * 3
    tl.atomic_add(counts_ptr + 0, tl.sum(above_x, 0).to(tl.int64), sem="relaxed")
    tl.atomic_add(counts_ptr + 1, tl.sum(above_y, 0).to(tl.int64), sem="relaxed")
    tl.atomic_add(counts_ptr + 2, tl.sum(above_both, 0).to(tl.int64), sem="relaxed")


def _blocks(x: Tensor, y: Tensor) -> tuple[int, int, dict[str, int]]:
    """Voxels of a slice, the chunks that it is cut into, and the constants of their kernel."""
    voxels = x[0].numel()
    width = 16 // min(x.itemsize, y.itemsize)
    steps = min(STEPS, triton.next_power_of_2(triton.cdiv(voxels, ROWS * width)))
    chunks = triton.cdiv(voxels, ROWS * width * steps)
    return voxels, chunks, {"ROWS": ROWS, "WIDTH": width, "STEPS": steps}


def _map(
    scale: float, offset: float, clip: Range | None
) -> tuple[tuple[float, float, float, float], dict[str, bool]]:
    """The four numbers of the map, and which of them the kernel needs."""
    low, high = clip or (0.0, 0.0)
    needed = {"MAP": scale != 1.0 or offset != 0.0, "CLIP": clip is not None}
    return (scale, offset, low, high), needed


def volume_metrics_triton(
    reference: Tensor,
    test: Tensor,
    scale: float,
    offset: float,
    clip: Range | None,
    bins: list[tuple[float, float, float]] | None,
    moments: bool,
) -> tuple[Tensor, Tensor]:
    """Rows of sums [Z, 11] (none without `moments`) and histograms [2, 256]; see `operators`.

    Args:
        reference: Volume x [Z, Y, X]: uint8, int16, uint16, float16, bfloat16, float32 or float64.
        test: Volume y of the same shape.
        scale: See `evaluate_sums`.
        offset: See `evaluate_sums`.
        clip: See `evaluate_sums`.
        bins: Lower edge, bin width and bins per unit of both histograms, or None.
        moments: Whether to sum at all.
    """
    x, y = reference.contiguous(), test.contiguous()
    slices = x.shape[0]
    voxels, chunks, blocks = _blocks(x, y)
    rows = slices if moments else 0
    partial = x.new_empty((rows * chunks, QUANTITIES), dtype=torch.float64)
    table = x.new_empty((rows, len(COLUMNS)), dtype=torch.float64)
    counts = x.new_zeros((2, BINS), dtype=torch.int64)
    numbers, needed = _map(scale, offset, clip)
    spacing = [number for one in bins or [(0.0, 0.0, 0.0)] * 2 for number in one]
    options: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}
    _chunk_kernel[(slices * chunks,)](
        x,
        y,
        partial,
        counts,
        voxels,
        chunks,
        *numbers,
        *spacing,
        MOMENTS=moments,
        HISTOGRAMS=bins is not None,
        BINS=BINS,
        QUANTITIES=QUANTITIES,
        **blocks,
        **needed,
        **options,
    )
    if moments:
        _slice_kernel[(slices,)](
            partial,
            table,
            voxels,
            chunks,
            *numbers,
            QUANTITIES=QUANTITIES,
            COLUMNS=len(COLUMNS),
            CHUNKS=CHUNKS,
            **needed,
            **options,
        )
    return table, counts


def overlap_counts_triton(
    reference: Tensor,
    test: Tensor,
    threshold_x: float,
    threshold_y: float,
    scale: float,
    offset: float,
    clip: Range | None,
) -> Tensor:
    """Voxels above the thresholds in x, in y and in both, int64 [Z, 3]; see `overlap_counts`."""
    x, y = reference.contiguous(), test.contiguous()
    slices = x.shape[0]
    voxels, chunks, blocks = _blocks(x, y)
    counts = x.new_zeros((slices, 3), dtype=torch.int64)
    numbers, needed = _map(scale, offset, clip)
    _overlap_kernel[(slices * chunks,)](
        x,
        y,
        counts,
        voxels,
        chunks,
        threshold_x,
        threshold_y,
        *numbers,
        **blocks,
        **needed,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return counts
