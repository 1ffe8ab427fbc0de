"""The multiresolution hash encoding in plain torch, in tiny-cuda-nn, and an axial mean of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.harness import DEVICE, Contender
from microdiffusion_fast.kernels import HashGridSpec

# As int32: the products wrap to the same 32 bits, of which a hash map keeps the low ones.
PRIMES = (1, 2654435761 - 2**32, 805459861)


@dataclass(frozen=True)
class Level:
    """What a level needs: its scale, the rows it has, and how an index is made."""

    scale: float
    first: int
    size: int
    resolution: int
    hashed: bool


def levels_of(spec: HashGridSpec) -> list[Level]:
    return [
        Level(
            spec.scale(level),
            spec.offsets[level],
            spec.level_size(level),
            spec.resolution(level),
            spec.is_hashed(level),
        )
        for level in range(spec.n_levels)
    ]


def plain_encoding(positions: Tensor, table: Tensor, levels: list[Level]) -> Tensor:
    """[N, 3] and [entries, F] to [N, L*F]: eight gathers a level, in whole-array operations.

    Of the ways we tried, what torch.compile makes the most of: 32-bit indices are 2.3 times as fast
    there as 64-bit ones, and all levels in one array are slower.
    """
    return torch.cat([plain_level(positions, table, level) for level in levels], 1)


def plain_level(positions: Tensor, table: Tensor, level: Level) -> Tensor:
    shifted = positions * level.scale + 0.5
    lower = shifted.floor()
    upper_weight = shifted - lower
    vertex = lower.int()
    strides = PRIMES if level.hashed else (1, level.resolution, level.resolution**2)
    parts = [(vertex[:, d] * strides[d], (vertex[:, d] + 1) * strides[d]) for d in range(3)]
    weights = [(1 - upper_weight[:, d], upper_weight[:, d]) for d in range(3)]
    features = None
    for corner in range(8):
        i, j, k = corner & 1, corner >> 1 & 1, corner >> 2
        x, y, z = parts[0][i], parts[1][j], parts[2][k]
        index = (x ^ y ^ z) & (level.size - 1) if level.hashed else (x + y + z) % level.size
        weight = weights[0][i] * weights[1][j] * weights[2][k]
        term = weight[:, None] * table[index + level.first]
        features = term if features is None else features + term
    assert features is not None
    return features


def grid_positions(axes: list[Tensor]) -> Tensor:
    """The points (x, y, z) of three axes (z, y, x), [Z*Y*X, 3], x fastest."""
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], -1).reshape(-1, 3)


def tiny_cuda_nn(
    positions: Tensor, table: Tensor, spec: HashGridSpec, dtype: torch.dtype
) -> Contender:
    """tiny-cuda-nn's encoding with the same parameters, in its float16 or in float32."""
    try:
        import tinycudann
    except OSError as error:  # what it raises where it finds no GPU
        raise ImportError(str(error)) from error

    encoding = tinycudann.Encoding(3, spec.tcnn_config(), dtype=dtype).to(DEVICE)
    with torch.no_grad():
        encoding.params.copy_(table.reshape(-1))

    def run() -> Tensor:
        with torch.no_grad():
            return encoding(positions)

    return Contender(run, same=dtype == torch.float32)
