"""counter_noise in Triton: every Philox call gives the normals of four voxels.

The integers are those of the reference bit for bit. Box-Muller is in float32, with the polynomials
below instead of the GPU's approximations: only additions, multiplications, correctly rounded
divisions and square roots, so every GPU computes the same bits. A normal's relative error against
float64 is below 4e-7, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

_QUADS = 256  # of four voxels a program: two 128-bit stores a thread


@triton.jit
def philox_words(quad, seed, step, stream):
    """The four words of counters (quad, step, stream): [B] int64 -> four [B] uint32."""
    low = quad.to(tl.uint32)
    high = (quad >> 32).to(tl.uint32)
    # Blocks, because scalar words would change their shape from round to round.
    zero = tl.zeros_like(quad)
    return tl.philox(seed, low, high, (zero + step).to(tl.uint32), (zero + stream).to(tl.uint32))


@triton.jit
def box_muller(word0, word1):
    """Two standard normals from two words: r cos(2 pi v), r sin(2 pi v).

    Chebyshev interpolants of atanh, sin and cos, with relative errors of 3e-9, 14e-9 and 1e-9.
    """
    # log(u) = 2 atanh((m - 1) / (m + 1)) + k log(2), u = m 2^k. Above sqrt(1/2), where log(u) goes
    # to 0, 1 - u comes from the complement of the word: u itself has lost it to rounding.
    near = word0 >= 0xB504F334
    centre = (
        tl.where(near, 0xFFFFFFFF - word0, word0).to(tl.float32) + 0.5
    ) * 2.3283064365386963e-10
    shifted = centre.to(tl.int32, bitcast=True) - 0x3F3504F3
    k = tl.where(near, 0, shifted >> 23).to(tl.float32)
    m = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    s = tl.div_rn(tl.where(near, -centre, m - 1.0), tl.where(near, 2.0 - centre, m + 1.0))
    t = s * s
    p = (0.14789974696 * t + 0.19994390283) * t + 0.333333425198
    radius = tl.sqrt_rn(k * -1.3862943611198906 - 4.0 * (s + s * t * p))
    # The angle's nearest quarter turn is taken off in integers, which is exact.
    quarter = (word1 + 0x20000000) >> 30
    rest = (word1 - (quarter << 30)).to(tl.int32, bitcast=True)
    x = (rest.to(tl.float32) + 0.5) * 1.4629180792671596e-09
    t = x * x
    p = (-0.000195878908804 * t + 0.00833274827063) * t - 0.166666646623
    sine = x + x * t * p
    p = (2.45479420851e-5 * t - 0.00138883030359) * t + 0.0416666646595
    cosine = 1.0 - t * (0.5 - t * p)
    odd = (quarter & 1) != 0
    first = radius * tl.where(odd, sine, cosine)
    second = radius * tl.where(odd, cosine, sine)
    return (
        tl.where(((quarter + 1) & 2) != 0, -first, first),
        tl.where((quarter & 2) != 0, -second, second),
    )


@triton.jit
def quad_normals(quad, seed, step, stream):
    """The normals of voxels 4 quad .. 4 quad + 3: [B] int64 -> [B, 4] float32."""
    word0, word1, word2, word3 = philox_words(quad, seed, step, stream)
    n0, n1 = box_muller(word0, word1)
    n2, n3 = box_muller(word2, word3)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [quad.shape[0], 4])


@triton.jit
def voxel_normals(voxel, seed, step, stream):
    """The normal of each voxel by itself, the same bits at four times the integer work."""
    word0, word1, word2, word3 = philox_words(voxel >> 2, seed, step, stream)
    pair = (voxel & 2) != 0
    # sin is cos a quarter turn earlier, exactly.
    turn = ((voxel & 1) << 30).to(tl.uint32)
    return box_muller(tl.where(pair, word2, word0), tl.where(pair, word3, word1) - turn)[0]


@triton.jit(do_not_specialize=["seed", "step", "stream"])
def _counter_noise_kernel(
    out,
    words,  # seed, stream and first in place of those below, or None
    seed,
    step,
    stream,
    first,  # voxel index of the block's first voxel
    runs,  # stretches of the block that are contiguous in the volume
    length,  # voxels of a run
    quads,  # that cover a run, wherever it starts
    height,  # runs of a plane of the block
    row_stride,
    plane_stride,
    STEP_ON_DEVICE: tl.constexpr,
    ONE_RUN: tl.constexpr,
    QUADS: tl.constexpr,
):
    if words is not None:
        seed = tl.load(words)
        stream = tl.load(words + 1)
        first = tl.load(words + 2)
    i_quad = tl.program_id(0).to(tl.int64) * QUADS + tl.arange(0, QUADS)
    if ONE_RUN:
        i_run = tl.zeros_like(i_quad)
        voxel = tl.zeros_like(i_quad) + first
    else:
        i_run = i_quad // quads
        i_quad -= i_run * quads
        voxel = first + i_run // height * plane_stride + i_run % height * row_stride
    if STEP_ON_DEVICE:
        step = tl.load(step)
    normals = quad_normals(voxel // 4 + i_quad, seed, step, stream)
    i_voxel = (4 * i_quad - voxel % 4)[:, None] + tl.arange(0, 4)[None, :]
    mask = (i_voxel >= 0) & (i_voxel < length) & (i_run < runs)[:, None]
    tl.store(out + (i_run * length)[:, None] + i_voxel, normals, mask=mask)


def counter_noise_triton(
    out: Tensor,
    *,
    seed: int,
    step: int | Tensor,
    stream: int,
    offset: Sequence[int],
    volume_shape: Sequence[int],
    words: Tensor | None = None,
) -> None:
    """Fills `out` [Z, Y, X], contiguous float32, as `counter_noise_reference` does.

    Arguments as there, but that the seed may be its signed 64-bit twin, and that the step, and the
    `words` of a `NoiseKey`, may lie on the device, and the host then need not know them.
    """
    depth, height, width = out.shape
    _, volume_height, volume_width = volume_shape
    first = (offset[0] * volume_height + offset[1]) * volume_width + offset[2]
    runs, length = depth * height, width
    if width == volume_width:
        runs, length = (1, out.numel()) if height == volume_height else (depth, height * width)
    quads = triton.cdiv(length + 3, 4)
    _counter_noise_kernel[(triton.cdiv(runs * quads, _QUADS),)](
        out,
        words,
        seed,
        step,
        stream,
        first,
        runs,
        length,
        quads,
        height if length == width else 1,
        volume_width,
        volume_height * volume_width,
        STEP_ON_DEVICE=isinstance(step, Tensor),
        ONE_RUN=runs == 1,
        QUADS=_QUADS,
        num_warps=4,
        enable_fp_fusion=False,
    )
