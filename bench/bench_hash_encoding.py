"""hash_encoding at random points and on a voxel grid, against plain torch and tiny-cuda-nn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.harness import DEVICE, Contender, Measure, Peer, Row, choose, compiled, uniform
from bench.peers.hash import grid_positions, levels_of, plain_encoding, tiny_cuda_nn
from microdiffusion_fast.kernels import HashGridSpec, hash_encoding, hash_encoding_grid
from microdiffusion_fast.kernels.hash_encoding import reference

SIDE = choose(smoke=16, cpu=128, cuda=256)
POINTS = SIDE**3
SPEC = choose(
    smoke=HashGridSpec(4, 2, 12, 8, 2.0),
    # 16 to 512 in 16 levels
    cpu=HashGridSpec(16, 2, 19, 16, 32 ** (1 / 15)),
    cuda=HashGridSpec(16, 2, 19, 16, 32 ** (1 / 15)),
)
ABOUT = f"{SPEC.n_levels} levels x {SPEC.n_features}, 2^{SPEC.log2_hashmap_size}"
SLOW = 2
COMPARED = 1 << 15
# Positions are rounded to float32 in a cell of the finest level: 2^-24 * 512, of features up to 1.
TOLERANCE = 1e-4


def _table() -> Tensor:
    return uniform((SPEC.n_entries, SPEC.n_features), 1, 2.0) - 1.0


def bench_points(measure: Measure) -> None:
    _points(measure, "hash.points", torch.float32)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="half precision is for GPUs")
def bench_points_half(measure: Measure) -> None:
    """A float16 table, as tiny-cuda-nn has it by default."""
    _points(measure, "hash.points-half", torch.float16)


def _points(measure: Measure, name: str, dtype: torch.dtype) -> None:
    positions, table = uniform((POINTS, 3), 2), _table().to(dtype)
    levels = levels_of(SPEC)
    part = positions[:COMPARED]

    def torch_compile() -> Contender:
        function = compiled(plain_encoding)
        return Contender(lambda: function(positions, table, levels), rounds=5)

    peers: dict[str, Peer] = {
        "torch eager": lambda: Contender(
            lambda: plain_encoding(positions, table, levels), rounds=SLOW
        ),
        "torch.compile": torch_compile,
        "tiny-cuda-nn": lambda: tiny_cuda_nn(positions, table, SPEC, dtype),
    }
    row = Row(
        name,
        f"hash encoding at random points, {ABOUT}",
        f"{POINTS:,} points {dtype}".replace("torch.", ""),
        Contender(lambda: hash_encoding(positions, table, SPEC)),
        peers,
        floor_bytes=POINTS * (12 + table.itemsize * SPEC.n_outputs) + table.nbytes,
        exact=lambda: reference.encode(part, table.double(), SPEC),
        view=lambda features: features[:COMPARED],
        tolerance=TOLERANCE if dtype == torch.float32 else 2e-3,
    )
    measure(row)


def bench_grid(measure: Measure) -> None:
    """The same number of points, on the voxels of a cube."""
    table = _table()
    axis = (torch.arange(SIDE, device=DEVICE) + 0.5) / SIDE
    axes = [axis, axis, axis]
    points, at_random = grid_positions(axes), uniform((POINTS, 3), 2)
    levels = levels_of(SPEC)
    rows = max(COMPARED // SIDE**2, 1)
    peers: dict[str, Peer] = {
        "ours at random points": lambda: Contender(
            lambda: hash_encoding(at_random, table, SPEC), same=False
        ),
        "ours at the grid's points": lambda: Contender(lambda: hash_encoding(points, table, SPEC)),
        "torch eager": lambda: Contender(
            lambda: plain_encoding(points, table, levels), rounds=SLOW
        ),
        "tiny-cuda-nn": lambda: tiny_cuda_nn(points, table, SPEC, torch.float32),
    }
    row = Row(
        "hash.grid",
        f"hash encoding of a voxel grid, {ABOUT}",
        f"{SIDE}x{SIDE}x{SIDE} float32",
        Contender(lambda: hash_encoding_grid(axes, table, SPEC)),
        peers,
        floor_bytes=POINTS * 4 * SPEC.n_outputs + table.nbytes,
        exact=lambda: reference.encode(points[: rows * SIDE**2], table.double(), SPEC),
        view=lambda features: features.reshape(POINTS, -1)[: rows * SIDE**2],
        tolerance=TOLERANCE,
    )
    measure(row)
