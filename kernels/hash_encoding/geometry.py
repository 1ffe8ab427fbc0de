"""A grid's geometry as the operators take it: plain numbers, since an operator takes no objects."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .reference import HashGridSpec

_TRITON_TABLES = (torch.float32, torch.bfloat16, torch.float16)
TABLES = (*_TRITON_TABLES, torch.float64)


def arguments(spec: HashGridSpec) -> tuple[int, int, int, int, float]:
    """The numbers that define a grid, in the order of `HashGridSpec`."""
    return (
        spec.n_levels,
        spec.n_features,
        spec.log2_hashmap_size,
        spec.base_resolution,
        float(spec.per_level_scale),
    )


@lru_cache(maxsize=64)
def spec_of(*numbers: float) -> HashGridSpec:
    """The grid of `arguments`; remembered, because its level sizes take a while."""
    return HashGridSpec(*numbers)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def levels_of(spec: HashGridSpec) -> tuple[tuple[float, int, int, int, bool], ...]:
    """Scale, first row, rows, vertices along an axis and hashed or not, of each level."""
    return tuple(
        (
            spec.scale(level),
            spec.offsets[level],
            spec.level_size(level),
            spec.resolution(level),
            spec.is_hashed(level),
        )
        for level in range(spec.n_levels)
    )


def is_native(spec: HashGridSpec, table: Tensor, positions: Tensor) -> bool:
    """Whether the native kernels take these; the reference takes the rest."""
    single = table.dtype == positions.dtype == torch.float32
    return single and spec.n_features in (1, 2, 4, 8)


def is_triton(table: Tensor) -> bool:
    """Whether the Triton kernels, whose arithmetic is float32, take a table or its gradient.

    Positions may be float64: only their cells need it.
    """
    return table.dtype in _TRITON_TABLES


def check_spec_and_table(spec: HashGridSpec, table: Tensor) -> None:
    if not isinstance(spec, HashGridSpec):
        raise TypeError(f"spec: expected a HashGridSpec, got {type(spec).__name__}")
    if not isinstance(table, Tensor):
        raise TypeError(f"table: expected a tensor, got {type(table).__name__}")
    if table.dtype not in TABLES:
        expected = "float16, bfloat16, float32 or float64"
        raise TypeError(f"table: expected {expected}, got {table.dtype}")
