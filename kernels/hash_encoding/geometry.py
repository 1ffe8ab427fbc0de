"""A grid's geometry as the operators take it: plain numbers, since an operator takes no objects."""

from __future__ import annotations

from functools import lru_cache

from .reference import HashGridSpec


def arguments(spec: HashGridSpec) -> tuple[int, int, int, int, float]:
    """The numbers that define a grid, in the order of `HashGridSpec`."""
    return (
        spec.n_levels,
        spec.n_features,
        spec.log2_hashmap_size,
        spec.base_resolution,
        spec.per_level_scale,
    )


@lru_cache(maxsize=64)
def spec_of(*numbers: float) -> HashGridSpec:
    """The grid of `arguments`; remembered, because its level sizes take a while."""
    return HashGridSpec(*numbers)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def levels_of(spec: HashGridSpec) -> list[tuple[float, int, int, int, bool]]:
    """Scale, first row, rows, vertices along an axis and hashed or not, of each level."""
    return [
        (
            spec.scale(level),
            spec.offsets[level],
            spec.level_size(level),
            spec.resolution(level),
            spec.is_hashed(level),
        )
        for level in range(spec.n_levels)
    ]
