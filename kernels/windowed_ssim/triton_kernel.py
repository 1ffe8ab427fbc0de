"""windowed_ssim in Triton: a program marches along z with a tile of columns.

z comes first: each voxel of the tile sums its four statistics over the window's depth, in
registers; the planes that two steps share come from the L1 cache. No plane is ever written, and no
sum runs, so that nothing drifts. Then the sums are filtered along x and y by two products with a
banded matrix on the tensor cores: a program cannot pass single values between its threads, and a
product of tiles does just that.

Expected on an H100 for 512^3 float32: 8 bytes a voxel from memory, 12 (uniform) or 17 (Gaussian)
from L2 with the halo and 7 or 11 times that from L1; 64 multiply-adds a voxel of the tile and
statistic, times two or three for float32's precision: 0.2 or 0.4 TFLOP in all. One or two
milliseconds; L1 and the products limit it, not memory.

Float32 suffices because a tile's own mean is subtracted on load, after a map in float64; because
the variance of x - y is a statistic of its own, which does not cancel where the volumes agree; and
because sums over a plane are float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import constants, window_taps

BLOCK = 32  # Voxels of a tile along x and y, halo included.
PLANES = 8  # Planes of windows that a program marches through.
# Two warps for each of the four statistics.
OPTIONS = {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": False}


@triton.jit
def _double(value):
    """A float64 of a kernel argument (where interpreted, a Python float)."""
    return tl.full([], value, tl.float64)


@triton.jit
def _load(base, offsets, mask, scale, offset, low, high, MAPPED: tl.constexpr, CLIP: tl.constexpr):
    values = tl.load(base + offsets, mask=mask, other=0)
    if base.dtype.element_ty != tl.float64:
        values = values.to(tl.float32)
    # In float64: the shift is still on, and far from zero float32 has no digits to spare.
    if MAPPED:
        values = values.to(tl.float64) * scale + offset
    if CLIP:  # NaN passes both comparisons.
        values = values.to(tl.float64)
        values = tl.where(values < low, low, values)
        values = tl.where(values > high, high, values)
    return tl.where(mask, values, 0.0)


@triton.jit
def _mean(values, count, INTEGERS: tl.constexpr):
    mean = tl.sum(tl.sum(values, axis=1), axis=0) / count
    # Differences of integers stay integers, whose sums are exact.
    return tl.floor(mean) if INTEGERS else mean


@triton.jit
def _filter(tiles, bands, EXACT: tl.constexpr):
    """Products of tf32, as many as float32's precision takes: two where the taps are exact."""
    if EXACT:
        high = (tiles.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        low = tl.dot(tiles - high, bands, input_precision="tf32")
        return tl.dot(high, bands, low, input_precision="tf32")
    return tl.dot(tiles, bands, input_precision="tf32x3")


@triton.jit
def _in_plane(sx, sy, both, apart, bands, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    """Filters four tiles [y, x] along x and y; tiles [x, y] come back."""
    # A batch of eight, half a tile each: every warp then has one of its own.
    stack = tl.join(tl.join(sx, sy), tl.join(both, apart))
    stack = tl.reshape(tl.permute(stack, (3, 2, 0, 1)), (8, BLOCK // 2, BLOCK))
    stack = tl.reshape(_filter(stack, bands, EXACT), (4, BLOCK, BLOCK))
    stack = tl.reshape(tl.permute(stack, (0, 2, 1)), (8, BLOCK // 2, BLOCK))
    stack = _filter(stack, bands, EXACT)
    stack = tl.permute(tl.reshape(stack, (2, 2, BLOCK, BLOCK)), (2, 3, 0, 1))
    even, odd = tl.split(stack)
    sx, both = tl.split(even)
    sy, apart = tl.split(odd)
    return sx, sy, both, apart


@triton.jit
def _similarity(mx, my, both, apart, ux, uy, c1, c2, norm):
    """SSIM from the means of x, y, x^2 + y^2 and (x - y)^2, after the shifts ux, uy were taken off.

    With 2 cov = var_x + var_y - var(x - y), numerator and denominator differ by squares, which are
    0 for equal volumes: those give exactly 1.
    """
    md = mx - my
    variance = norm * (both - (mx * mx + my * my))
    distance = norm * (apart - md * md)
    variance = tl.where(variance < 0.0, 0.0, variance) + c2
    distance = tl.where(distance < 0.0, 0.0, distance)
    ud = md + (ux - uy)
    ux, uy = mx + ux, my + uy
    luminance = ux * ux + uy * uy + c1
    # Two quotients: a product of the denominators could leave float32's range.
    similarity = (1.0 - ud * ud / luminance) * (1.0 - distance / variance)
    return tl.where(similarity > 1.0, 1.0, similarity)


@triton.jit
def ssim_partials(
    x,
    y,
    partials,
    depth,
    height,
    width,
    x_plane,
    x_row,
    y_plane,
    y_row,
    scale: tl.float64,
    offset: tl.float64,
    low: tl.float64,
    high: tl.float64,
    unit,
    weight,
    c1,
    c2,
    norm,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    DEPTH: tl.constexpr,
    PLANES: tl.constexpr,
    UNIFORM: tl.constexpr,
    MAPPED: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """partials[plane, tile] = float64 sum of the SSIM map over a tile of a plane of windows.

    A program does `PLANES` planes of windows, `DEPTH` voxels deep. `depth`, `height` and `width`
    are the volume's; `unit` is a power of two that brings the values near 1; `weight` makes means
    of the window sums.
    """
    VALID: tl.constexpr = BLOCK - WINDOW + 1
    tiles_y = (height - WINDOW + VALID) // VALID
    tiles_x = (width - WINDOW + VALID) // VALID
    planes = depth - (DEPTH - 1)
    chunks = (planes + (PLANES - 1)) // PLANES
    # Neighbours along z run at the same time, and find each other's planes in the cache.
    program = tl.program_id(0).to(tl.int64)
    tile = program // chunks
    first = program % chunks * PLANES
    top = tile // tiles_x * VALID
    left = tile % tiles_x * VALID

    i = tl.arange(0, BLOCK)
    inside = (top + i < height)[:, None] & (left + i < width)[None, :]
    x += top * x_row + left
    y += top * y_row + left
    x_offsets = i[:, None].to(tl.int64) * x_row + i[None, :]
    y_offsets = i[:, None].to(tl.int64) * y_row + i[None, :]
    windows = (left + i < width - (WINDOW - 1))[:, None] & (top + i < height - (WINDOW - 1))[
        None, :
    ]
    windows = windows & (i < VALID)[:, None] & (i < VALID)[None, :]

    lag = i[:, None] - i[None, :]
    band = tl.zeros([BLOCK, BLOCK], tl.float32)  # [voxels, windows]
    for k in tl.static_range(WINDOW):
        band = tl.where(lag == k, TAPS[k], band)
    bands = tl.broadcast_to(band[None, :, :], (8, BLOCK, BLOCK))

    scale, offset, low, high = _double(scale), _double(offset), _double(low), _double(high)
    # The shift: the mean of the tile, about halfway down.
    middle = tl.minimum(first + (PLANES + DEPTH - 2) // 2, depth - 1)
    sample_x = _load(
        x, x_offsets + middle * x_plane, inside, scale, offset, low, high, MAPPED, CLIP
    )
    sample_y = _load(
        y, y_offsets + middle * y_plane, inside, scale, offset, low, high, MAPPED, CLIP
    )
    voxels = tl.minimum(height - top, BLOCK) * tl.minimum(width - left, BLOCK)
    shift_x = _mean(sample_x, voxels, x.dtype.element_ty.is_int() and not MAPPED)
    shift_y = _mean(sample_y, voxels, y.dtype.element_ty.is_int() and not MAPPED)
    ux = (shift_x * unit).to(tl.float32)
    uy = (shift_y * unit).to(tl.float32)

    for step in range(PLANES):
        # The last program may do its last plane again, and stores the same number again.
        done = tl.minimum(first + step, planes - 1)
        sx = tl.zeros([BLOCK, BLOCK], tl.float32)
        sy = sx
        both = sx
        apart = sx
        # Not unrolled: the loads of all planes at once would take all registers.
        for z in range(DEPTH):
            at_x = x_offsets + (done + z) * x_plane
            at_y = y_offsets + (done + z) * y_plane
            vx = _load(x, at_x, inside, scale, offset, low, high, MAPPED, CLIP)
            vy = _load(y, at_y, inside, scale, offset, low, high, MAPPED, CLIP)
            vx = ((vx - shift_x) * unit).to(tl.float32)
            vy = ((vy - shift_y) * unit).to(tl.float32)
            tap = 1.0
            if DEPTH > 1:
                for k in tl.static_range(WINDOW):
                    tap = tl.where(z == k, TAPS[k], tap)
            sx += tap * vx
            sy += tap * vy
            both += tap * (vx * vx + vy * vy)
            apart += tap * ((vx - vy) * (vx - vy))
        mx, my, both, apart = _in_plane(sx, sy, both, apart, bands, UNIFORM, BLOCK)
        similarity = _similarity(
            mx * weight, my * weight, both * weight, apart * weight, ux, uy, c1, c2, norm
        )
        total = tl.sum(tl.sum(tl.where(windows, similarity, 0.0).to(tl.float64), 1), 0)
        tl.store(partials + done * (tiles_y * tiles_x) + tile, total)


def windowed_ssim_triton(
    reference: Tensor,
    test: Tensor,
    data_range: float,
    window: str,
    ndim: int,
    scale: float = 1.0,
    offset: float = 0.0,
    clip: Sequence[float] | None = None,
) -> Tensor:
    """As `reference.ssim_slices` or `ssim_volume`; float64 [Z] or a scalar.

    No host synchronisation; the same volumes give the same bits.
    """
    x, y = (v if v.stride(2) == 1 else v.contiguous() for v in (reference, test))
    taps = window_taps(window)
    size, valid = len(taps), BLOCK - len(taps) + 1
    depth = size if ndim == 3 else 1
    # A slice alone in its program: its neighbours must not change its shift.
    chunk = PLANES if ndim == 3 else 1
    windows = x.shape[1] - size + 1, x.shape[2] - size + 1
    tiles = math.prod(triton.cdiv(n, valid) for n in windows)
    planes = x.shape[0] - depth + 1
    partials = torch.empty((planes, tiles), dtype=torch.float64, device=x.device)
    # The range becomes a number in [0.5, 1) without a rounding.
    unit = 2.0 ** -math.frexp(data_range)[1]
    low, high = clip or (0.0, 0.0)
    ssim_partials[(tiles * triton.cdiv(planes, chunk),)](
        x,
        y,
        partials,
        *x.shape,
        *x.stride()[:2],
        *y.stride()[:2],
        scale,
        offset,
        low,
        high,
        unit,
        1.0 / size**ndim if window == "uniform" else 1.0,
        *constants(data_range * unit, window, ndim),
        TAPS=(1.0,) * size if window == "uniform" else tuple(taps),
        WINDOW=size,
        DEPTH=depth,
        PLANES=chunk,
        UNIFORM=window == "uniform",
        MAPPED=scale != 1.0 or offset != 0.0,
        CLIP=bool(clip),
        BLOCK=BLOCK,
        **OPTIONS,
    )
    means = partials.sum(1) / math.prod(windows)
    return means if ndim == 2 else means.mean()
