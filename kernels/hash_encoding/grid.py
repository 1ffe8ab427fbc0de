"""Hash encoding of a voxel grid: each lattice vertex is looked up once, then interpolated per axis.

A level of resolution r costs one look-up per vertex instead of eight per voxel: for levels coarser
than the voxels that is 8 (D / r)^3 times fewer. Plain torch, so autograd gives the table gradient;
`embedding` accumulates it in a fixed order, so the same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import HashGridSpec, cell, grid_index


def hash_encoding_grid(axes: Sequence[Tensor], table: Tensor, spec: HashGridSpec) -> Tensor:
    """Encode the grid points (z, y, x) of three coordinate axes, as `hash_encoding` would.

    Args:
        axes: three ascending coordinate vectors [Z], [Y], [X] in [0, 1], float32 or float64.
        table: parameters [n_entries, F], float32 or float64.
        spec: geometry of the grid; x is its first (fastest) axis.

    Returns:
        [Z, Y, X, L*F] in the dtype of the table, level by level. Differentiable in the table.

    Raises:
        ValueError: if axes or table do not have the stated shapes.

    Source: Mueller et al. 2022, ACM TOG 41(4), section 3.
    """
    if len(axes) != 3 or any(axis.ndim != 1 or len(axis) == 0 for axis in axes):
        shapes = [list(axis.shape) for axis in axes]
        raise ValueError(f"axes: expected three non-empty vectors (z, y, x), got shapes {shapes}")
    if tuple(table.shape) != (spec.n_entries, spec.n_features):
        expected = [spec.n_entries, spec.n_features]
        raise ValueError(f"table: expected shape {expected}, got {list(table.shape)}")
    # one split: its backward is one concatenation, not a table-sized sum per level
    levels = table.split([spec.level_size(level) for level in range(spec.n_levels)])
    return torch.cat([_encode(axes, rows, spec, level) for level, rows in enumerate(levels)], -1)


def _encode(axes: Sequence[Tensor], rows: Tensor, spec: HashGridSpec, level: int) -> Tensor:
    cells = [cell(axis, spec.scale(level)) for axis in axes]
    firsts = [int(lower[0]) for lower, _ in cells]
    counts = [int(lower[-1]) - first + 2 for (lower, _), first in zip(cells, firsts, strict=True)]
    z, y, x = (
        torch.arange(first, first + count, device=rows.device)
        for first, count in zip(firsts, counts, strict=True)
    )
    vertices = torch.stack(
        torch.broadcast_tensors(x[None, None, :], y[None, :, None], z[:, None, None]), dim=-1
    )
    features = F.embedding(grid_index(vertices, level, spec), rows)
    # innermost axis first: the array grows to its full size only in the last interpolation
    for dim in (2, 1, 0):
        lower, fraction = cells[dim]
        below = features.index_select(dim, lower - firsts[dim])
        above = features.index_select(dim, lower - firsts[dim] + 1)
        weight = fraction.to(rows.dtype).view([-1 if d == dim else 1 for d in range(4)])
        features = torch.lerp(below, above, weight)
    return features
