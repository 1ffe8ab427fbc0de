"""blended_step in Triton: every volume passes through memory once.

A program advances a stretch of columns (y, x) through the slices of one window, or through one
slice that no window covers. Up to `_KEPT` slices it keeps x and x0 in registers between the
projection and the update (20.67 bytes a voxel for windows of 6); longer windows read x, cond and
uncond a second time, mostly from the L2 cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..axial_projection.reference import gram_band
from ..constants import constant
from ..counter_noise.triton_kernel import counter_noise_triton, quad_normals, voxel_normals
from .reference import COLUMNS, blended_step_reference

_COLUMNS = tl.constexpr(len(COLUMNS))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK = 1024
# Columns of a slice that are divided into rows, in 32 bits.
_MOST_COLUMNS = 1 << 31
# Slices whose x and x0 stay in registers: 2 x 8 x 4 floats a thread.
_KEPT = 8


@triton.jit
def _predict(volumes, i_slice, plane, i_column, row, BLOCK: tl.constexpr):
    """x and x0 of a block: guidance, prediction to x0, limits. A NaN stays one."""
    p_x, _, p_cond, p_uncond, _, _ = volumes
    p, q, w, low, high = row
    o_column = i_column + tl.arange(0, BLOCK)
    mask = o_column < plane
    o = i_slice * plane + o_column
    state = tl.load(p_x + o, mask=mask).to(tl.float32)
    prediction = tl.load(p_cond + o, mask=mask).to(tl.float32)
    if p_uncond is not None:
        uncond = tl.load(p_uncond + o, mask=mask).to(tl.float32)
        prediction = (1.0 + w) * prediction - w * uncond
    x0 = p * prediction + q * state
    x0 = tl.maximum(x0, low, propagate_nan=tl.PropagateNan.ALL)
    return state, tl.minimum(x0, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _draw(key, i_slice, i_column, DRAW: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The normals of columns i_column .. i_column + BLOCK of a slice."""
    seed, stream, word, first, width, row_stride, plane_stride = key
    first += i_slice * plane_stride
    if DRAW == "quads":
        i_column += 4 * tl.arange(0, BLOCK // 4)
    else:
        i_column += tl.arange(0, BLOCK)
    if ROWS:
        # A slice has fewer than 2^31 columns: divided in 32 bits.
        i_row = i_column.to(tl.int32) // width
        voxel = first + i_row.to(tl.int64) * row_stride + (i_column - i_row * width)
    else:
        voxel = first + i_column
    if DRAW == "quads":
        return tl.reshape(quad_normals(voxel // 4, seed, word, stream), [BLOCK])
    else:
        return voxel_normals(voxel, seed, word, stream)


@triton.jit
def _advance(
    volumes,
    i_slice,
    plane,
    i_column,
    row,
    key,
    state,
    x0,
    DRAW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The update and the blend with the prior, stored."""
    p_x, p_prior, _, _, p_noise, p_history = volumes
    a, b, c, d, gamma = row
    o_column = i_column + tl.arange(0, BLOCK)
    mask = o_column < plane
    o = i_slice * plane + o_column
    previous = a * x0 + b * state
    if p_history is not None:
        previous += c * tl.load(p_history + o, mask=mask).to(tl.float32)
        tl.store(p_history + o, x0, mask=mask)
    if p_noise is not None:
        previous += d * tl.load(p_noise + o, mask=mask).to(tl.float32)
    elif DRAW != "no":
        previous += d * _draw(key, i_slice, i_column, DRAW, ROWS, BLOCK)
    prior = tl.load(p_prior + o, mask=mask).to(tl.float32)
    tl.store(p_x + o, (1.0 - gamma) * previous + gamma * prior, mask=mask)


@triton.jit
def _window(
    volumes,
    p_projections,
    p_weights,
    i_window,
    i_slice,  # its first
    plane,
    i_column,
    predict,
    trust,
    update,
    key,
    SLICES: tl.constexpr,
    KEEP: tl.constexpr,
    DRAW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One window: predict, x0 += trust * A^+ (projections - A x0), advance."""
    mean = tl.zeros([BLOCK], dtype=tl.float32)
    states = ()
    cleans = ()
    if KEEP:
        for i in tl.static_range(SLICES):
            state, x0 = _predict(volumes, i_slice + i, plane, i_column, predict, BLOCK)
            mean += tl.load(p_weights + i) * x0
            states += (state,)  # type: ignore[assignment]
            cleans += (x0,)  # type: ignore[assignment]
    else:
        for i in range(SLICES):
            _, x0 = _predict(volumes, i_slice + i, plane, i_column, predict, BLOCK)
            mean += tl.load(p_weights + i) * x0
    o_column = i_column + tl.arange(0, BLOCK)
    target = tl.load(p_projections + i_window * plane + o_column, mask=o_column < plane)
    change = tl.div_rn(target.to(tl.float32) - mean, tl.load(p_weights + SLICES))
    if KEEP:
        for i in tl.static_range(SLICES):
            x0 = cleans[i] + trust * (tl.load(p_weights + i) * change)
            _advance(
                volumes, i_slice + i, plane, i_column, update, key, states[i], x0, DRAW, ROWS, BLOCK
            )
    else:
        for i in range(SLICES):
            state, x0 = _predict(volumes, i_slice + i, plane, i_column, predict, BLOCK)
            x0 += trust * (tl.load(p_weights + i) * change)
            _advance(
                volumes, i_slice + i, plane, i_column, update, key, state, x0, DRAW, ROWS, BLOCK
            )


@triton.jit(do_not_specialize=["seed", "stream"])
def _blended_step_kernel(
    p_x,
    p_prior,
    p_cond,
    p_uncond,
    p_noise,
    p_history,
    p_projections,
    p_weights,  # of a window, then the sum of their squares
    p_table,
    p_step,
    p_words,  # seed, stream and first in place of those below, or None
    plane,  # columns of a slice
    blocks,  # of columns in a slice
    windows,
    stride,
    start,
    seed,
    stream,
    first,  # voxel index, in its volume, of the block's first voxel
    width,
    row_stride,
    plane_stride,
    SLICES: tl.constexpr,  # of a window; 0 without consistency
    KEEP: tl.constexpr,
    DRAW: tl.constexpr,  # "no", "quads" of four voxels, or "voxels" where quads do not line up
    ROWS: tl.constexpr,  # the volume's rows are longer than the block's
    BLOCK: tl.constexpr,
):
    volumes = (p_x, p_prior, p_cond, p_uncond, p_noise, p_history)
    # The row's coefficients in the order of COLUMNS.
    p_row = p_table + tl.load(p_step) * _COLUMNS
    predict = (
        tl.load(p_row).to(tl.float32),
        tl.load(p_row + 1).to(tl.float32),
        tl.load(p_row + 2).to(tl.float32),
        tl.load(p_row + 3).to(tl.float32),
        tl.load(p_row + 4).to(tl.float32),
    )
    trust = tl.load(p_row + 5).to(tl.float32)
    update = (
        tl.load(p_row + 6).to(tl.float32),
        tl.load(p_row + 7).to(tl.float32),
        tl.load(p_row + 8).to(tl.float32),
        tl.load(p_row + 9).to(tl.float32),
        tl.load(p_row + 10).to(tl.float32),
    )
    word = tl.load(p_row + 11).to(tl.int64)
    if p_words is not None:
        seed = tl.load(p_words)
        stream = tl.load(p_words + 1)
        first = tl.load(p_words + 2)
    key = (seed, stream, word, first, width, row_stride, plane_stride)

    i_program = tl.program_id(0).to(tl.int64)
    i_slab = i_program // blocks
    i_column = (i_program - i_slab * blocks) * BLOCK
    if SLICES == 0:
        state, x0 = _predict(volumes, i_slab, plane, i_column, predict, BLOCK)
        _advance(volumes, i_slab, plane, i_column, update, key, state, x0, DRAW, ROWS, BLOCK)
    else:
        if i_slab < windows:
            i_slice = start + i_slab * stride
            _window(
                volumes, p_projections, p_weights, i_slab, i_slice, plane, i_column,
                predict, trust, update, key, SLICES, KEEP, DRAW, ROWS, BLOCK,
            )  # fmt: skip
        else:
            # The slices before, between and after the windows, in their order.
            i_slice = i_slab - windows
            i_between = i_slice - start
            gap = tl.maximum(stride - SLICES, 1)
            if i_between >= (windows - 1) * (stride - SLICES):
                i_slice += windows * SLICES
            elif i_between >= 0:
                i_slice = start + i_between // gap * stride + SLICES + i_between % gap
            state, x0 = _predict(volumes, i_slice, plane, i_column, predict, BLOCK)
            _advance(volumes, i_slice, plane, i_column, update, key, state, x0, DRAW, ROWS, BLOCK)


def blended_step_triton(
    x: Tensor,
    prior: Tensor,
    cond: Tensor,
    table: Tensor,
    step: Tensor,
    uncond: Tensor | None,
    noise: Tensor | None,
    key: Sequence[int],
    words: Tensor | None,
    history: Tensor | None,
    projections: Tensor | None,
    weights: Sequence[float],
    stride: int,
    start: int,
) -> None:
    """Advances `x` [Z, Y, X] in place as `blended_step_reference` does.

    Arguments as in the op. What the kernel does not take, float64 and state or history that is not
    contiguous and overlapping windows, goes to the reference, drawn noise from the device included.
    """
    count = 0 if projections is None else len(projections)
    slices = len(weights) if count else 0
    tensors = (x, prior, cond, uncond, noise, history, projections)
    known = all(v is None or v.dtype in _DTYPES for v in tensors)
    in_place = x.is_contiguous() and (history is None or history.is_contiguous())
    if not known or not in_place or (count > 1 and stride < slices):
        noise = _drawn(x, table, step, key, words) if key else noise
        blended_step_reference(
            x, prior, cond, table, step, uncond=uncond, noise=noise, history=history,
            projections=projections, weights=weights, stride=stride, start=start,
        )  # fmt: skip
        return
    depth, height, width = x.shape
    plane = height * width
    volume_height, volume_width = key[6:8] if key else (height, width)
    rows = width != volume_width
    if key and rows and plane >= _MOST_COLUMNS:
        noise, key, rows = _drawn(x, table, step, key, words), [], False
    flat = not count and not rows and height == volume_height
    if flat:  # one long slice: its vectors line up whatever the shape
        depth, plane = 1, x.numel()
    first = (key[2] * volume_height + key[3]) * volume_width + key[4] if key else 0
    # Groups of four voxels have to start with every row, or slice, of the block.
    starts = [first] if flat else [first, volume_height * volume_width]
    starts += [width, volume_width] if rows else []
    by_quad = all(n % 4 == 0 for n in starts)
    block = _BLOCK // 2 if count else _BLOCK
    blocks = triton.cdiv(plane, block)
    slabs = depth - count * slices + count
    volumes = (prior, cond, uncond, noise, history, projections)
    arrays = [None if v is None else v.contiguous() for v in volumes]
    seed, stream = key[:2] if key else (0, 0)
    _blended_step_kernel[(blocks * slabs,)](
        x, *arrays, _weights(weights, x.device) if count else None,
        table.contiguous(), step, words if key else None,
        plane, blocks, count, stride if count > 1 else slices, start,
        seed, stream, first, width, volume_width, volume_height * volume_width,
        SLICES=slices,
        KEEP=slices <= _KEPT,
        DRAW="no" if not key else "quads" if by_quad else "voxels",
        ROWS=rows,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=False,
    )  # fmt: skip


def _drawn(
    x: Tensor, table: Tensor, step: Tensor, key: Sequence[int], words: Tensor | None
) -> Tensor:
    """The noise of `key` as a volume; its step word, and its words, stay on the device."""
    seed, stream, *place = key
    noise = torch.empty_like(x, dtype=torch.float32, memory_format=torch.contiguous_format)
    word = table.index_select(0, step.reshape(1))[0, -1].to(torch.int64)
    counter_noise_triton(
        noise, seed=seed, step=word, stream=stream, offset=place[:3], volume_shape=place[3:],
        words=words,
    )  # fmt: skip
    return noise


def _weights(weights: Sequence[float], device: torch.device) -> Tensor:
    """The weights and the sum of their squares."""
    values = (*weights, gram_band(weights, len(weights))[0])
    return constant(values, torch.float32, device)
