"""Multiresolution hash encoding (Mueller et al. 2022) in tiny-cuda-nn's parameter layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backend
from . import reference
from .geometry import (
    arguments,
    check_spec_and_table,
    is_native,
    is_triton,
    levels_of,
    spec_of,
)
from .grid import hash_encoding_grid, hash_encoding_projection
from .reference import HashGridSpec

__all__ = [
    "HashGridSpec",
    "hash_encoding",
    "hash_encoding_grid",
    "hash_encoding_projection",
]


def hash_encoding(positions: Tensor, table: Tensor, spec: HashGridSpec) -> Tensor:
    """Encode positions by trilinear interpolation in a multiresolution hash grid.

    Args:
        positions: [N, 3] in [0, 1], float32 or float64. The first column runs fastest in memory.
        table: Parameters, flat [n_params] as tiny-cuda-nn stores them or [n_entries, F]. Half
            precision is interpolated in float32 and cast once.
        spec: Geometry of the grid.

    Returns:
        [N, L*F] in the dtype of the table, level by level. Differentiable once in both arguments;
        the backward pass gives the same bits each run.

    Raises:
        ValueError: if a shape does not fit the spec, or the devices differ.
        TypeError: for other types.

    Examples:
        >>> spec = HashGridSpec(n_levels=2, n_features=2, log2_hashmap_size=8)
        >>> hash_encoding(torch.rand(5, 3), torch.zeros(spec.n_params), spec).shape
        torch.Size([5, 4])

    Source: Mueller et al. 2022, ACM TOG 41(4), section 3.
    """
    if not isinstance(positions, Tensor):
        raise TypeError(f"positions: expected a tensor, got {type(positions).__name__}")
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions: expected shape [N, 3], got {list(positions.shape)}")
    if positions.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"positions: expected float32 or float64, got {positions.dtype}")
    check_spec_and_table(spec, table)
    if tuple(table.shape) not in ((spec.n_params,), (spec.n_entries, spec.n_features)):
        expected = f"shape [{spec.n_params}] or [{spec.n_entries}, {spec.n_features}]"
        raise ValueError(f"table: expected {expected}, got {list(table.shape)}")
    if table.device != positions.device:
        raise ValueError(f"table: expected device {positions.device}, got {table.device}")
    rows = table.reshape(spec.n_entries, spec.n_features)
    return _encode(positions, rows, *arguments(spec))


@torch.library.custom_op("microdiffusion_fast::hash_encoding", mutates_args=())
def _encode(
    positions: Tensor,
    table: Tensor,
    n_levels: int,
    n_features: int,
    log2_hashmap_size: int,
    base_resolution: int,
    per_level_scale: float,
) -> Tensor:
    spec = spec_of(n_levels, n_features, log2_hashmap_size, base_resolution, per_level_scale)
    return reference.encode(positions, table, spec)


@torch.library.custom_op("microdiffusion_fast::hash_encoding_backward", mutates_args=())
def _encode_backward(
    grad: Tensor,
    positions: Tensor,
    table: Tensor,
    n_levels: int,
    n_features: int,
    log2_hashmap_size: int,
    base_resolution: int,
    per_level_scale: float,
    want_positions: bool,
) -> tuple[Tensor, Tensor]:
    spec = spec_of(n_levels, n_features, log2_hashmap_size, base_resolution, per_level_scale)
    return reference.encode_backward(grad, positions, table, spec, want_positions=want_positions)


@_encode.register_fake
def _encode_fake(
    positions: Tensor, table: Tensor, n_levels: int, n_features: int, *rest: Any
) -> Tensor:
    return table.new_empty((positions.shape[0], n_levels * n_features))


@_encode_backward.register_fake
def _encode_backward_fake(
    grad: Tensor, positions: Tensor, table: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    rows = positions.shape[0] if rest[-1] else 0
    return table.new_empty(table.shape), positions.new_empty((rows, 3))


if _backend.native is not None:
    _native = _backend.native

    @_encode.register_kernel("cpu")
    def _native_encode(positions: Tensor, table: Tensor, *numbers: Any) -> Tensor:
        spec = spec_of(*numbers)
        if not is_native(spec, table, positions):
            return reference.encode(positions, table, spec)
        out = table.new_empty((positions.shape[0], spec.n_outputs))
        inputs = (positions.detach().contiguous(), table.detach().contiguous())
        _native.hash_points(out, *inputs, levels_of(spec), torch.get_num_threads())
        return out

    @_encode_backward.register_kernel("cpu")
    def _native_encode_backward(
        grad: Tensor, positions: Tensor, table: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        spec, want_positions = spec_of(*rest[:-1]), rest[-1]
        if not is_native(spec, table, positions):
            return reference.encode_backward(
                grad, positions, table, spec, want_positions=want_positions
            )
        levels, threads = levels_of(spec), torch.get_num_threads()
        grad, positions = grad.detach().contiguous(), positions.detach().contiguous()
        grad_table = torch.zeros(table.shape)
        _native.hash_points_backward_table(grad_table, grad, positions, levels, threads)
        grad_positions = torch.empty((positions.shape[0] if want_positions else 0, 3))
        if want_positions:
            rows = table.detach().contiguous()
            _native.hash_points_backward_positions(
                grad_positions, grad, positions, rows, levels, threads
            )
        return grad_table, grad_positions


if _backend.triton_missing is None:

    @_encode.register_kernel("cuda")
    def _triton_encode(positions: Tensor, table: Tensor, *numbers: Any) -> Tensor:
        if not is_triton(table):
            return reference.encode(positions, table, spec_of(*numbers))
        from .launch import encode_triton

        return encode_triton(positions, table, spec_of(*numbers))

    @_encode_backward.register_kernel("cuda")
    def _triton_encode_backward(
        grad: Tensor, positions: Tensor, table: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        spec, want = spec_of(*rest[:-1]), rest[-1]
        if not is_triton(table):
            return reference.encode_backward(grad, positions, table, spec, want_positions=want)
        from .launch import encode_backward_triton

        return encode_backward_triton(grad, positions, table, spec, want_positions=want)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.spec = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    positions, table = ctx.saved_tensors
    want_positions = ctx.needs_input_grad[0]
    grad_table, grad_positions = _encode_backward(grad, positions, table, *ctx.spec, want_positions)
    return (grad_positions if want_positions else None), grad_table, *[None] * 5


_encode.register_autograd(_backward, setup_context=_setup)
