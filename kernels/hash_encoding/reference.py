"""Multiresolution hash encoding in plain torch, with tiny-cuda-nn's parameter layout and indexing.

Sources: Mueller et al. 2022, "Instant Neural Graphics Primitives", section 3; the layout that
tiny-cuda-nn documents in `encodings/grid.h` and `common_device.h` (type "Hash", linear
interpolation, hash "CoherentPrime").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import numpy as np
import torch
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)

# Beyond this resolution resolution^3 leaves uint32, and a level is hashed whatever its size.
MAX_DENSE_RESOLUTION = 0x659

_UINT32 = 0xFFFFFFFF


@dataclass(frozen=True)
class HashGridSpec:
    """Geometry of a hash grid over [0, 1]^3, with tiny-cuda-nn's names and arithmetic.

    The grid is isotropic; anisotropy is a matter of scaling the positions first.

    Attributes:
        n_levels: Resolution levels L.
        n_features: Features per level F.
        log2_hashmap_size: Base-2 logarithm of the entries that a level has at most.
        base_resolution: Grid vertices along an axis of level 0.
        per_level_scale: Growth of the resolution from level to level.
    """

    n_levels: int = 16
    n_features: int = 2
    log2_hashmap_size: int = 19
    base_resolution: int = 16
    per_level_scale: float = 2.0

    def __post_init__(self) -> None:
        limits = {
            "n_levels": (1, 128),
            "n_features": (1, 8),
            "log2_hashmap_size": (3, 31),
            "base_resolution": (1, 1 << 20),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name}: expected an integer in {least}..{most}, got {value!r}")
        growth = self.per_level_scale
        is_number = isinstance(growth, Real) and not isinstance(growth, bool)
        if not is_number or not 1.0 <= growth <= 1024.0:
            raise ValueError(f"per_level_scale: expected a number in 1..1024, got {growth!r}")
        finest = math.log2(self.base_resolution) + (self.n_levels - 1) * math.log2(growth)
        if finest >= 31.0:
            got = f"2^{finest:.1f}"
            raise ValueError(f"n_levels: expected a finest resolution below 2^31, got {got}")

    def scale(self, level: int) -> float:
        """Cells per unit length of a level, `base * growth^level - 1`, in float32 arithmetic."""
        # Every operation rounds to float32 as in tiny-cuda-nn: the ceil below depends on it.
        growth = np.float32(math.log2(float(np.float32(self.per_level_scale))))
        exponent = np.float32(level) * growth
        power = np.float32(2.0 ** float(exponent))
        return float(power * np.float32(self.base_resolution) - np.float32(1.0))

    def resolution(self, level: int) -> int:
        """Grid vertices along an axis of a level."""
        return math.ceil(self.scale(level)) + 1

    def level_size(self, level: int) -> int:
        """Entries of a level: dense, rounded up to a multiple of 8, or at most the hash map's."""
        dense = min(self.resolution(level) ** 3, _UINT32 // 2)
        return min((dense + 7) // 8 * 8, 1 << self.log2_hashmap_size)

    def is_hashed(self, level: int) -> bool:
        """True where a level has fewer entries than vertices."""
        resolution = self.resolution(level)
        return resolution > MAX_DENSE_RESOLUTION or resolution**3 > self.level_size(level)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First entry of every level, and the number of all entries at the end: L + 1 numbers."""
        offsets = [0]
        for level in range(self.n_levels):
            offsets.append(offsets[-1] + self.level_size(level))
        return tuple(offsets)

    @property
    def n_entries(self) -> int:
        """Rows of the table [n_entries, F]."""
        return self.offsets[-1]

    @property
    def n_params(self) -> int:
        """Length of the flat table: `n_entries * n_features`, entry by entry."""
        return self.n_entries * self.n_features

    @property
    def n_outputs(self) -> int:
        """Features of a position: `n_levels * n_features`, level by level."""
        return self.n_levels * self.n_features

    def tcnn_config(self) -> dict[str, str | int | float]:
        """The same grid as tiny-cuda-nn's encoding configuration."""
        return {
            "otype": "Grid",
            "type": "Hash",
            "hash": "CoherentPrime",
            "interpolation": "Linear",
            "n_levels": self.n_levels,
            "n_features_per_level": self.n_features,
            "log2_hashmap_size": self.log2_hashmap_size,
            "base_resolution": self.base_resolution,
            "per_level_scale": self.per_level_scale,
        }


def grid_index(vertices: Tensor, level: int, spec: HashGridSpec) -> Tensor:
    """Row within a level of integer grid vertices. int64 [..., 3] -> int64 [...].

    Dense levels run fastest along the first axis; a vertex beyond the last wraps into the next row,
    as in tiny-cuda-nn. Hashed levels take the exclusive or of coordinate times prime, in uint32.
    """
    if spec.is_hashed(level):
        parts = [(vertices[..., d] * PRIMES[d]) & _UINT32 for d in range(3)]
        index = parts[0] ^ parts[1] ^ parts[2]
    else:
        stride = spec.resolution(level)
        x, y, z = vertices.unbind(-1)
        index = (x + y * stride + z * stride * stride) & _UINT32
    return index % spec.level_size(level)


def cell(positions: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Lower vertex (int64) and fraction in the cell of positions, both [N, 3].

    The half-cell offset staggers the levels. The product and sum are rounded once, like an fma.
    """
    shifted = (positions.to(torch.float64) * scale + 0.5).to(positions.dtype)
    lower = shifted.floor()
    return lower.to(torch.int64), shifted - lower


def _corners(lower: Tensor, fraction: Tensor) -> Iterator[tuple[Tensor, list[Tensor], list[int]]]:
    """The 8 corners of each cell: vertices [N, 3], weights along the axes [N], upper bits."""
    below = 1.0 - fraction
    for corner in range(8):
        bits = [corner >> d & 1 for d in range(3)]
        weights = [(fraction if bit else below)[:, d] for d, bit in enumerate(bits)]
        yield (lower + lower.new_tensor(bits)) & _UINT32, weights, bits


def encode(positions: Tensor, table: Tensor, spec: HashGridSpec) -> Tensor:
    """Trilinearly interpolated features. [N, 3], [n_entries, F] -> [N, L*F]."""
    dtype = torch.promote_types(table.dtype, torch.float32)
    levels = []
    for level in range(spec.n_levels):
        rows = table[spec.offsets[level] : spec.offsets[level + 1]]
        lower, fraction = cell(positions, spec.scale(level))
        features = torch.zeros(
            (positions.shape[0], spec.n_features), dtype=dtype, device=table.device
        )
        for vertices, (wx, wy, wz), _ in _corners(lower, fraction.to(dtype)):
            index = grid_index(vertices, level, spec)
            features.addcmul_(rows.index_select(0, index).to(dtype), (wx * wy * wz)[:, None])
        levels.append(features)
    return torch.cat(levels, 1).to(table.dtype)


def encode_backward(
    grad: Tensor, positions: Tensor, table: Tensor, spec: HashGridSpec, *, want_positions: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the table [n_entries, F] and, if wanted, of the positions [N, 3] (else [0, 3]).

    The scatter adds in the order of the positions, one feature at a time: deterministic.
    """
    dtype = torch.promote_types(table.dtype, torch.float32)
    columns = torch.zeros((spec.n_features, table.shape[0]), dtype=dtype, device=table.device)
    rows_of_positions = positions.shape[0] if want_positions else 0
    grad_positions = torch.zeros((rows_of_positions, 3), dtype=dtype, device=table.device)
    by_level = grad.to(dtype).unflatten(1, (spec.n_levels, spec.n_features))
    for level in range(spec.n_levels):
        scale = spec.scale(level)
        lower, fraction = cell(positions, scale)
        for vertices, weights, bits in _corners(lower, fraction.to(dtype)):
            wx, wy, wz = weights
            index = grid_index(vertices, level, spec) + spec.offsets[level]
            for feature in range(spec.n_features):
                contribution = by_level[:, level, feature] * (wx * wy * wz)
                columns[feature].index_add_(0, index, contribution)
            if want_positions:
                inner = (table.index_select(0, index).to(dtype) * by_level[:, level]).sum(1)
                for d, others in enumerate((wy * wz, wx * wz, wx * wy)):
                    grad_positions[:, d] += inner * others * (scale if bits[d] else -scale)
    return columns.T.to(table.dtype).contiguous(), grad_positions.to(positions.dtype)


def encode_grid(
    axes: Sequence[Tensor],
    table: Tensor,
    spec: HashGridSpec,
    weights: Sequence[float],
    stride: int,
    start: int,
    count: int,
) -> Tensor:
    """Axial projection of the encodings of a voxel grid, [K, Y, X, L*F].

    Each lattice vertex is looked up once, then interpolated along x, y and z in turn. Weights
    [1.0] and stride 1 give the encodings themselves.
    """
    dtype = torch.promote_types(table.dtype, torch.float32)
    levels = []
    for level in range(spec.n_levels):
        rows = table[spec.offsets[level] : spec.offsets[level + 1]]
        index, cells = _lattice(axes, spec, level)
        features = rows[index].to(dtype)
        # innermost axis first: the array grows to its full size only in the last interpolation
        for dim in (2, 1, 0):
            lower, fraction = cells[dim]
            below, above = (features.index_select(dim, lower + upper) for upper in (0, 1))
            features = torch.lerp(below, above, _along(fraction.to(dtype), dim))
        levels.append(features)
    volume = torch.cat(levels, -1)
    out = volume.new_zeros((count, *volume.shape[1:]))
    for i, weight in enumerate(weights):
        out.add_(volume[_tap(start + i, stride, count)], alpha=weight)
    return out.to(table.dtype)


def encode_grid_backward(
    grad: Tensor,
    axes: Sequence[Tensor],
    spec: HashGridSpec,
    weights: Sequence[float],
    stride: int,
    start: int,
) -> Tensor:
    """The transpose of `encode_grid`, step by step: [K, Y, X, L*F] -> [n_entries, F]."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    volume = torch.zeros((len(axes[0]), *grad.shape[1:]), dtype=dtype, device=grad.device)
    for i, weight in enumerate(weights):
        volume[_tap(start + i, stride, grad.shape[0])].add_(grad, alpha=weight)
    tables = []
    for level in range(spec.n_levels):
        index, cells = _lattice(axes, spec, level)
        features = volume[..., level * spec.n_features : (level + 1) * spec.n_features]
        for dim in (0, 1, 2):
            lower, fraction = cells[dim]
            upper = _along(fraction.to(dtype), dim)
            shape = [*features.shape]
            shape[dim] = index.shape[dim]
            vertices = features.new_zeros(shape)
            vertices.index_add_(dim, lower, features * (1.0 - upper))
            features = vertices.index_add_(dim, lower + 1, features * upper)
        rows = features.new_zeros((spec.level_size(level), spec.n_features))
        tables.append(rows.index_add_(0, index.flatten(), features.flatten(0, 2)))
    return torch.cat(tables).to(grad.dtype)


def _lattice(
    axes: Sequence[Tensor], spec: HashGridSpec, level: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Rows [z, y, x] of the vertices that a grid touches; lower vertex in it and fraction, by axis.

    Only the span of the cells is looked at, so the axes have to ascend.
    """
    cells, spans = [], []
    for axis in axes:
        lower, fraction = cell(axis, spec.scale(level))
        spans.append(torch.arange(int(lower[0]), int(lower[-1]) + 2, device=axis.device))
        cells.append((lower - lower[0], fraction))
    z, y, x = spans
    vertices = torch.broadcast_tensors(x[None, None, :], y[None, :, None], z[:, None, None])
    return grid_index(torch.stack(vertices, -1), level, spec), cells


def _along(vector: Tensor, dim: int) -> Tensor:
    """A vector that broadcasts along dimension `dim` of four."""
    return vector.view([-1 if d == dim else 1 for d in range(4)])


def _tap(first: int, stride: int, count: int) -> slice:
    """The slices that one weight of every window takes."""
    return slice(first, first + (count - 1) * stride + 1, stride)
