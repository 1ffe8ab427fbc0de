"""The multiresolution hash encoding in plain torch, in tiny-cuda-nn, and an axial mean of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.harness import DEVICE, Contender
from microdiffusion_fast.kernels import HashGridSpec


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

    As the fallbacks of other packages do it; 64-bit integers, since torch has no others that hold
    the products of the hash.
    """
    return torch.cat([plain_level(positions, table, level) for level in levels], 1)


def plain_level(positions: Tensor, table: Tensor, level: Level) -> Tensor:
    shifted = positions * level.scale + 0.5
    lower = shifted.floor()
    fraction = shifted - lower
    ends = torch.stack([lower, lower + 1]).long()
    if level.hashed:
        x, y, z = ends[..., 0], ends[..., 1] * 2654435761, ends[..., 2] * 805459861
    else:
        x, y, z = ends[..., 0], ends[..., 1] * level.resolution, ends[..., 2] * level.resolution**2
    weights = torch.stack([1 - fraction, fraction])
    features = positions.new_zeros(())
    for corner in range(8):
        i, j, k = corner & 1, corner >> 1 & 1, corner >> 2
        if level.hashed:
            # The size is a power of two, so the high bits of 64-bit products fall away.
            index = (x[i] ^ y[j] ^ z[k]) & (level.size - 1)
        else:
            index = (x[i] + y[j] + z[k]) % level.size
        weight = weights[i][:, 0] * weights[j][:, 1] * weights[k][:, 2]
        features = features + weight[:, None] * table[index + level.first]
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
