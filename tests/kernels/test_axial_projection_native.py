"""The axial operators, native: as accurate as plain torch, the same bits on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.axial_projection import (
    axial_backprojection,
    axial_projection,
    axial_pseudo_inverse,
    reference,
)

native = _backend.native
pytestmark = pytest.mark.skipif(native is None, reason=f"native: {_backend.native_missing}")

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
CASES = [
    # weights, stride, start, count, depth
    pytest.param([1 / 6] * 6, 6, 0, 11, 70, id="disjoint-uncovered-end"),
    pytest.param([0.2, 0.5, 0.3], 3, 1, 3, 11, id="disjoint-weighted"),
    pytest.param([0.5, 0.5], 5, 2, 3, 14, id="gaps"),
    pytest.param([0.1, 0.2, 0.3, 0.4], 1, 1, 30, 35, id="overlap-dense"),
    pytest.param([1 / 6] * 6, 4, 0, 12, 50, id="overlap"),
    pytest.param([0.0, 1.0, 0.0], 2, 0, 4, 9, id="zero-edges"),
    pytest.param([0.5, 0.5], 1, 0, 1, 4, id="one-window"),
]
Case = tuple[list[float], int, int, int, int]


def adjoint(x: Tensor, weights: Sequence[float], stride: int, start: int, count: int) -> Tensor:
    operator = torch.ops.microdiffusion_fast.axial_pseudo_inverse_adjoint
    return operator(x, weights, stride, start, count)


def four(geometry: Case, dtype: torch.dtype, plane: tuple[int, int]) -> Iterator[tuple]:
    """(operator, reference, data, arguments) of A, A^T, A^+ and its adjoint."""
    weights, stride, start, count, depth = geometry
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, *plane, generator=generator).to(dtype) for n in (depth, count))
    to_projections, to_volume = (weights, stride, start, count), (weights, stride, start, depth)
    yield axial_projection, reference.project, x, to_projections
    yield axial_backprojection, reference.backproject, y, to_volume
    yield axial_pseudo_inverse, reference.pseudo_inverse, y, to_volume
    yield adjoint, reference.pseudo_inverse_adjoint, x, to_projections


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("weights", "stride", "start", "count", "depth"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plane", [(1, 1), (7, 13), (43, 101)])
def test_as_accurate_as_plain_torch(
    weights: list[float],
    stride: int,
    start: int,
    count: int,
    depth: int,
    dtype: torch.dtype,
    plane: tuple[int, int],
    as_accurate: Callable[[Tensor, Tensor, Tensor], None],
) -> None:
    geometry = (weights, stride, start, count, depth)
    for run, plain, data, arguments in four(geometry, dtype, plane):
        got, exact = run(data, *arguments), plain(data.double(), *arguments)
        if dtype == torch.float64:  # Two roundings of one formula: neither is the exact one.
            torch.testing.assert_close(got, exact, rtol=1e-13, atol=1e-13)
        else:
            as_accurate(got, plain(data, *arguments), exact)


def test_same_bits_on_every_instruction_set_and_for_any_threads() -> None:
    assert native is not None
    geometries: list[Case] = [([1 / 6] * 6, 6, 0, 11, 70), ([1 / 6] * 6, 4, 3, 16, 70)]
    before, threads = native.isa(), torch.get_num_threads()
    results, sets = [], 0
    try:
        for isa in ("baseline", "avx2", "avx512"):
            try:
                native.use_isa(isa)
            except ValueError:
                continue
            sets += 1
            for number in (1, 2, 5):
                torch.set_num_threads(number)
                results.append(
                    [
                        run(data, *arguments)
                        for geometry in geometries
                        for dtype in DTYPES
                        for run, _, data, arguments in four(geometry, dtype, (61, 143))
                    ]
                )
    finally:
        native.use_isa(before)
        torch.set_num_threads(threads)
    assert len(results) == 3 * sets
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=7).filter(any),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(1, 40),
    st.integers(0, 4),
)
def test_columns_do_not_see_each_other(
    raw: list[int], stride: int, start: int, count: int, extra: int
) -> None:
    weights = [w / sum(raw) for w in raw]
    depth = start + (count - 1) * stride + len(raw) + extra
    for run, _, data, arguments in four((weights, stride, start, count, depth), DTYPES[0], (3, 70)):
        whole = run(data, *arguments)
        assert torch.equal(run(data[:, 1:2, 5:19], *arguments), whole[:, 1:2, 5:19])


def test_bfloat16_is_rounded_to_even_and_keeps_nan_and_infinity() -> None:
    values = torch.tensor([1.0, 3.0, torch.nan, torch.inf, -torch.inf, 3.3e38, -0.0])
    x = torch.stack([values, values]).to(torch.bfloat16).reshape(2, 1, 7)
    got = axial_projection(x, [0.501953125, 0.501953125], 2, 0, 1)
    expected = (2 * x[0].double() * 0.501953125).to(torch.bfloat16)
    assert torch.equal(got[0].nan_to_num(-7.0), expected.nan_to_num(-7.0))


def test_planes_without_columns() -> None:
    assert axial_projection(torch.zeros(4, 0, 5), [0.5, 0.5], 2, 0, 2).shape == (2, 0, 5)
    assert axial_pseudo_inverse(torch.zeros(2, 3, 0), [0.5, 0.5], 1, 0, 4).shape == (4, 3, 0)


def test_volumes_that_require_a_gradient() -> None:
    x = torch.randn(8, 3, 5, requires_grad=True)
    axial_projection(x.transpose(1, 2), [0.25, 0.75], 2, 0, 4).square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
