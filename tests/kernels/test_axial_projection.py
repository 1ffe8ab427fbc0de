"""The axial operators: adjoint, right inverse, gradients and registration, over many geometries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from microdiffusion_fast.kernels.axial_projection import (
    axial_backprojection,
    axial_projection,
    axial_pseudo_inverse,
    gram_condition,
    reference,
)

CASES = [
    # weights, stride, start, count, depth
    pytest.param([1 / 6] * 6, 6, 0, 3, 20, id="disjoint-uncovered-end"),
    pytest.param([0.25] * 4, 4, 2, 2, 10, id="disjoint-start"),
    pytest.param([0.2, 0.5, 0.3], 3, 1, 3, 11, id="disjoint-weighted"),
    pytest.param([0.5, 0.5], 5, 0, 3, 12, id="gaps"),
    pytest.param([0.1, 0.2, 0.3, 0.4], 1, 1, 6, 11, id="overlap-dense"),
    pytest.param([1 / 6] * 6, 3, 0, 5, 18, id="overlap-half"),
    pytest.param([0.0, 1.0, 0.0], 2, 0, 4, 9, id="zero-edges"),
    pytest.param([1.0], 1, 0, 5, 5, id="identity"),
    pytest.param([0.5, 0.5], 1, 0, 1, 4, id="one-window"),
]


@st.composite
def geometries(draw: st.DrawFn) -> tuple[list[float], int, int, int, int]:
    s = draw(st.integers(1, 7))
    stride = draw(st.integers(1, 9))
    start = draw(st.integers(0, 3))
    count = draw(st.integers(1, 12))
    raw = draw(st.lists(st.integers(0, 8), min_size=s, max_size=s).filter(any))
    depth = start + (count - 1) * stride + s + draw(st.integers(0, 4))
    return [w / sum(raw) for w in raw], stride, start, count, depth


def dense(weights: list[float], stride: int, start: int, count: int, depth: int) -> torch.Tensor:
    """A as a matrix [K, Z], from its definition."""
    matrix = torch.zeros(count, depth, dtype=torch.float64)
    for k in range(count):
        for i, weight in enumerate(weights):
            matrix[k, start + k * stride + i] += weight
    return matrix


def volume(length: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, 2, 3, generator=generator, dtype=torch.float64).to(dtype)


@settings(max_examples=60, deadline=None)
@given(geometries())
def test_operators_equal_the_dense_matrix(geometry: tuple[list[float], int, int, int, int]) -> None:
    weights, stride, start, count, depth = geometry
    matrix = dense(*geometry)
    x, y = volume(depth), volume(count, 1)
    projected = axial_projection(x, weights, stride, start, count)
    torch.testing.assert_close(projected, torch.einsum("kz,zyx->kyx", matrix, x))
    spread = axial_backprojection(y, weights, stride, start, depth)
    torch.testing.assert_close(spread, torch.einsum("kz,kyx->zyx", matrix, y))
    condition = gram_condition(weights, stride, count)
    assert condition == pytest.approx(float(torch.linalg.cond(matrix @ matrix.T)), rel=1e-3)
    assume(condition < 1e7)
    inverse = axial_pseudo_inverse(y, weights, stride, start, depth)
    expected = torch.einsum("zk,kyx->zyx", torch.linalg.pinv(matrix), y)
    torch.testing.assert_close(inverse, expected, rtol=1e-12 * condition, atol=1e-12 * condition)


@pytest.mark.parametrize(("weights", "stride", "start", "count", "depth"), CASES)
def test_opcheck_and_gradcheck(
    weights: list[float], stride: int, start: int, count: int, depth: int
) -> None:
    x = volume(depth).requires_grad_()
    y = volume(count).requires_grad_()
    operators = torch.ops.microdiffusion_fast
    for operator, data, length in (
        (operators.axial_projection, x, count),
        (operators.axial_backprojection, y, depth),
        (operators.axial_pseudo_inverse, y, depth),
        (operators.axial_pseudo_inverse_adjoint, x, count),
    ):
        torch.library.opcheck(operator.default, (data, weights, stride, start, length))
        assert torch.autograd.gradcheck(
            lambda data, run=operator, n=length: run(data, weights, stride, start, n), (data,)
        )


@pytest.mark.parametrize(("weights", "stride", "start", "count", "depth"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(
    weights: list[float], stride: int, start: int, count: int, depth: int, dtype: torch.dtype
) -> None:
    x = volume(depth, dtype=dtype)
    exact = axial_projection(x.double(), weights, stride, start, count)
    got = axial_projection(x, weights, stride, start, count)
    assert got.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=eps, atol=4 * eps)
    y = volume(count, dtype=dtype)
    inverse = axial_pseudo_inverse(y, weights, stride, start, depth)
    exact = axial_pseudo_inverse(y.double(), weights, stride, start, depth)
    torch.testing.assert_close(inverse.double(), exact, rtol=eps, atol=8 * eps)


def test_results_do_not_alias_or_change_their_inputs() -> None:
    x = volume(5)
    kept = x.clone()
    for result in (
        axial_projection(x, [1.0], 1, 0, 5),
        axial_backprojection(x, [1.0], 1, 0, 5),
        axial_pseudo_inverse(x, [0.5, 0.5], 1, 0, 6),
    ):
        result.zero_()
        assert torch.equal(x, kept)


def test_non_contiguous_volumes() -> None:
    x = volume(12).permute(0, 2, 1)
    assert not x.is_contiguous()
    for weights, stride in (([1 / 3] * 3, 3), ([0.5, 0.25, 0.25], 2)):
        torch.testing.assert_close(
            axial_projection(x, weights, stride, 0, 4),
            axial_projection(x.contiguous(), weights, stride, 0, 4),
        )
        torch.testing.assert_close(
            axial_pseudo_inverse(x[:4], weights, stride, 0, 12),
            axial_pseudo_inverse(x[:4].contiguous(), weights, stride, 0, 12),
        )


def test_condition_of_even_overlap_grows_with_the_square_of_the_count() -> None:
    weights = [1 / 6] * 6
    assert gram_condition(weights, 6, 50) == 1.0
    assert gram_condition(weights, 5, 200) < 2.0
    ratio = gram_condition(weights, 3, 200) / gram_condition(weights, 3, 100)
    assert 3.5 < ratio < 4.5


def test_long_even_overlap_is_still_inverted_to_rounding() -> None:
    weights, stride, count = [0.25] * 4, 1, 1200
    y = volume(count)
    x = axial_pseudo_inverse(y, weights, stride, 0, count + 3)
    error = (axial_projection(x, weights, stride, 0, count) - y).abs().max()
    assert float(error) < 1e-9


def test_ill_conditioned_windows_are_damped_not_blown_up() -> None:
    # Binomial weights suppress the highest axial frequency to the twelfth order.
    weights = [math.comb(12, i) / 2**12 for i in range(13)]
    count, depth = 60, 72
    assert gram_condition(weights, 1, count) > reference.MAX_CONDITION
    noise = volume(count)
    x = axial_pseudo_inverse(noise, weights, 1, 0, depth)
    assert torch.isfinite(x).all()
    # |A^+| is at most 1 / (2 sqrt(ridge)) for a damped inverse.
    assert float(x.norm() / noise.norm()) < 1e5
    smooth = axial_projection(volume(depth), weights, 1, 0, count)
    again = axial_projection(
        axial_pseudo_inverse(smooth, weights, 1, 0, depth), weights, 1, 0, count
    )
    torch.testing.assert_close(again, smooth, rtol=0, atol=1e-4)


def test_errors() -> None:
    x = volume(6)
    with pytest.raises(ValueError, match="x: expected at least 7"):
        axial_projection(x, [0.5, 0.5], 5, 0, 2)
    with pytest.raises(ValueError, match="depth: expected at least 7"):
        axial_backprojection(x[:2], [0.5, 0.5], 5, 0, 6)
    with pytest.raises(ValueError, match="stride"):
        axial_projection(x, [1.0], 0, 0, 1)
    with pytest.raises(ValueError, match="start"):
        axial_projection(x, [1.0], 1, -1, 1)
    with pytest.raises(ValueError, match="count"):
        axial_projection(x, [1.0], 1, 0, 0)
    with pytest.raises(ValueError, match="weights"):
        axial_projection(x, [0.0], 1, 0, 1)
    with pytest.raises(ValueError, match="3 dimensions"):
        axial_backprojection(x[0], [1.0], 1, 0, 4)
    with pytest.raises(TypeError, match="floating"):
        axial_pseudo_inverse(x.long(), [1.0], 1, 0, 6)
