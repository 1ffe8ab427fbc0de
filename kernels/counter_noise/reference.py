"""counter_noise in plain torch: what every backend of the kernel has to reproduce.

Contract, shared by all backends:

- key = the 64-bit seed as (low word, high word);
- counter = (low, high word of (voxel index // 4), step, stream), the voxel index being the flat
  C-order index of the voxel in the whole volume;
- the four output words w0..w3 give the normals of the four voxels 4i, 4i+1, 4i+2, 4i+3: (w0, w1)
  the first two, (w2, w3) the last two;
- a word w is the uniform u = (w + 0.5) / 2^32, which lies in [2^-33, 1 - 2^-33]: its logarithm is
  finite in float32 too (where it may round to 1, never to 0). No normal exceeds 6.77.

The integers agree bit for bit between backends. The normals are computed in float64 and rounded
once to float32: those of the native backend differ by at most one float32 unit in the last place,
in the rare case that the float64 results lie on two sides of a rounding boundary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# Counters a pass: few enough that the int64 temporaries (512 KiB each) stay in a cache; measured on
# 128^3 voxels and one thread, 2^13 took 1.8 times and 2^17 1.3 times as long.
_CHUNK = 1 << 16


def _multiply(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The high and low 32-bit words of the 64-bit product.

    In 16-bit halves of `a`, because the product itself overflows a signed 64-bit integer.
    """
    low = (a & 0xFFFF) * multiplier
    high = (a >> 16) * multiplier + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of many counters: four output words each.

    Args:
        counter: four int64 tensors of words in [0, 2^32), of shapes that broadcast.
        key: two words in [0, 2^32).

    Returns:
        Four int64 tensors of words in [0, 2^32).

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
        section 3.3.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def box_muller(word0: Tensor, word1: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals (float64) from two words in [0, 2^32).

    Source: Box and Muller, "A note on the generation of random normal deviates", 1958, eq. 1.
    """
    u = (word0.double() + 0.5) * 2.0**-32
    angle = (word1.double() + 0.5) * (2.0 * math.pi * 2.0**-32)
    radius = torch.sqrt(-2.0 * torch.log(u))
    return radius * torch.cos(angle), radius * torch.sin(angle)


def _normals(quad: Tensor, *, seed: int, step: int, stream: int) -> Tensor:
    """The normals of voxels 4*quad .. 4*quad + 3; [...] int64 -> [..., 4] float64."""
    steps, streams = torch.full_like(quad, step), torch.full_like(quad, stream)
    words = philox4x32(
        (quad & _MASK, quad >> 32, steps, streams), (seed & _MASK, (seed >> 32) & _MASK)
    )
    return torch.stack([*box_muller(words[0], words[1]), *box_muller(words[2], words[3])], dim=-1)


def counter_noise_reference(
    shape: Sequence[int],
    *,
    seed: int,
    step: int,
    stream: int,
    offset: Sequence[int],
    volume_shape: Sequence[int],
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The block [Z, Y, X] at `offset` of the standard normals of a whole volume.

    Arguments as in `counter_noise`, already checked; `dtype` float64 gives them unrounded. Works
    in bounded memory: a few rows at a time.
    """
    depth, height, width = shape
    out = torch.empty(depth * height, width, dtype=dtype, device=device)
    rows = torch.arange(depth * height, device=device)
    # Flat volume index of the first voxel of each row of the block, which may lie inside a quad.
    z = offset[0] + rows // height
    y = offset[1] + rows % height
    first = (z * volume_shape[1] + y) * volume_shape[2] + offset[2]
    width_step = min(width, 4 * _CHUNK)
    rows_step = max(1, _CHUNK // (width_step // 4 + 2))
    for x in range(0, width, width_step):
        columns = torch.arange(min(width_step, width - x), device=device)
        quads = torch.arange(len(columns) // 4 + 2, device=device)
        for row in range(0, depth * height, rows_step):
            start = first[row : row + rows_step, None] + x
            normals = _normals(start // 4 + quads, seed=seed, step=step, stream=stream)
            out[row : row + rows_step, x : x + width_step] = torch.gather(
                normals.flatten(1), 1, start % 4 + columns
            )
    return out.view(depth, height, width)
