"""AxialProjection: geometry, adjoint identity, right inverse, consistency and interpolation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection


@st.composite
def operators(draw: st.DrawFn) -> AxialProjection:
    s = draw(st.integers(1, 8))
    stride = draw(st.integers(1, 10))
    start = draw(st.integers(0, 3))
    depth = start + s + draw(st.integers(0, 30))
    # Weights away from zero keep the condition number of dense overlap within float64's reach.
    raw = draw(st.none() | st.lists(st.integers(1, 9), min_size=s, max_size=s).map(np.array))
    weights = None if raw is None else raw / raw.sum()
    most = (depth - start - s) // stride + 1
    count = draw(st.none() | st.integers(1, most))
    return AxialProjection(depth, s, stride=stride, weights=weights, start=start, count=count)


def randn(length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, 3, 4, generator=generator, dtype=torch.float64)


many = settings(max_examples=80, deadline=None)


@many
@given(operators())
def test_adjoint_identity(A: AxialProjection) -> None:
    x, y = randn(A.depth), randn(A.count, 1)
    assert float((A(x) * y).sum()) == pytest.approx(float((x * A.T(y)).sum()), abs=1e-11)


@many
@given(operators())
def test_pseudo_inverse_is_the_right_inverse_of_least_norm(A: AxialProjection) -> None:
    if A.condition > 1e8:
        return
    y = randn(A.count)
    x = A.pseudo_inverse(y)
    tolerance = 1e-13 * A.condition + 1e-12
    assert float((A(x) - y).abs().max()) < tolerance
    # Any other solution is x plus something that projects to nothing, and that is orthogonal to x.
    other = randn(A.depth, 2)
    null = other - A.pseudo_inverse(A(other))
    scale = float(x.norm() * other.norm()) + 1.0
    assert abs(float((x * null).sum())) < tolerance * scale


@many
@given(operators())
def test_consistent_reaches_the_projections_and_keeps_what_already_agrees(
    A: AxialProjection,
) -> None:
    if A.condition > 1e8:
        return
    x, y = randn(A.depth), randn(A.count, 1)
    result = A.consistent(x, y)
    tolerance = 1e-13 * A.condition + 1e-12
    assert float((A(result) - y).abs().max()) < tolerance
    assert torch.equal(A.consistent(x, A(x)), x)
    assert torch.equal(result[~A.covered], x[~A.covered])
    halfway = A.consistent(x, y, 0.5)
    torch.testing.assert_close(A(halfway), (A(x) + y) / 2, rtol=0, atol=tolerance)


@many
@given(operators(), st.floats(-3, 3), st.floats(-100, 100))
def test_linear_interpolation_reproduces_ramps_between_the_centres(
    A: AxialProjection, slope: float, value: float
) -> None:
    z = torch.arange(A.depth, dtype=torch.float64)
    ramp = (slope * z + value)[:, None, None].expand(-1, 2, 2)
    result = A.interpolate(A(ramp))
    inside = (z >= A.centres[0]) & (z <= A.centres[-1])
    torch.testing.assert_close(result[inside], ramp[inside], rtol=0, atol=1e-9)
    first, last = A(ramp)[0], A(ramp)[-1]
    for slices, expected in ((z < A.centres[0], first), (z > A.centres[-1], last)):
        assert torch.equal(result[slices], expected.expand_as(result[slices]))


@many
@given(operators())
def test_interpolation_follows_its_definition(A: AxialProjection) -> None:
    y = randn(A.count)
    nearest = [int((A.centres - z).abs().argmin()) for z in range(A.depth)]
    distances = torch.tensor([float((A.centres - z).abs().min()) for z in range(A.depth)])
    picked = A.interpolate(y, "nearest")
    for z in range(A.depth):
        ties = (A.centres - z).abs() < distances[z] + 1e-9
        candidates = y[ties] if int(ties.sum()) > 1 else y[nearest[z]][None]
        assert any(torch.equal(picked[z], c) for c in candidates)
    column = y[:, 0, 0].numpy()
    expected = np.interp(np.arange(A.depth), A.centres.numpy(), column)
    np.testing.assert_allclose(A.interpolate(y)[:, 0, 0].numpy(), expected, atol=1e-12)


@many
@given(operators())
def test_windows_centres_and_cover(A: AxialProjection) -> None:
    seen = torch.zeros(A.depth, dtype=torch.bool)
    for k, (lo, hi) in enumerate(A.windows):
        seen[lo:hi] = True
        assert hi - lo == A.step_length
        centre = sum(z * float(w) for z, w in zip(range(lo, hi), A.weights, strict=True))
        assert float(A.centres[k]) == pytest.approx(centre)
    assert torch.equal(A.covered, seen)
    assert len(A.windows) == A.count
    assert A.windows[-1][1] <= A.depth


def test_disjoint_six_slice_means() -> None:
    A = AxialProjection(100, 6)
    assert (A.count, A.stride, int((~A.covered).sum())) == (16, 6, 4)
    assert A.centres[:2].tolist() == [2.5, 8.5]
    assert A.condition == 1.0
    x = randn(100)
    torch.testing.assert_close(A(x), x[:96].reshape(16, 6, 3, 4).mean(1))


def test_zero_edge_weights_do_not_cover() -> None:
    A = AxialProjection(6, 3, weights=[0.0, 1.0, 0.0])
    assert A.covered.tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("stride", [6, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_kept(stride: int, dtype: torch.dtype) -> None:
    A = AxialProjection(30, 6, stride=stride)
    x = (randn(30) + 5.0).to(dtype)
    y = (randn(A.count, 1) + 5.0).to(dtype)
    result = A.consistent(x, y)
    assert result.dtype == A.interpolate(y).dtype == A(x).dtype == A.T(y).dtype == dtype
    error = float((A(result.double()) - y.double()).abs().max())
    assert error < 100.0 * torch.finfo(dtype).eps


def test_consistent_is_differentiable_in_volume_projections_and_weight() -> None:
    A = AxialProjection(11, 4, stride=2)
    weight = torch.rand(11, 1, 1, dtype=torch.float64)
    inputs = tuple(t.requires_grad_() for t in (randn(11), randn(A.count, 1), weight))
    assert torch.autograd.gradcheck(A.consistent, inputs)


def test_deepinv_names_and_pickle() -> None:
    A = pickle.loads(pickle.dumps(AxialProjection(12, 4, weights=[0.1, 0.2, 0.3, 0.4])))
    x, y = randn(12), randn(3)
    assert torch.equal(A.A(x), A(x))
    assert torch.equal(A.A_adjoint(y), A.T(y))
    assert torch.equal(A.A_dagger(y), A.pseudo_inverse(y))


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        ((5, 6), {}, "step_length"),
        ((8, 6), {"start": 3}, "step_length"),
        ((8, 0), {}, "step_length"),
        ((8, -2), {}, "step_length"),
        ((8, 2.5), {}, "step_length"),
        ((8, True), {}, "step_length"),
        ((0, 1), {}, "depth"),
        ((8, 2), {"stride": 0}, "stride"),
        ((8, 2), {"start": -1}, "start"),
        ((8, 2), {"count": 5}, "count"),
        ((8, 2), {"count": 0}, "count"),
        ((8, 2), {"weights": [0.5]}, "weights"),
        ((8, 2), {"weights": [1.5, -0.5]}, "weights"),
        ((8, 2), {"weights": [0.5, 0.6]}, "weights"),
        ((8, 2), {"weights": [float("nan"), 1.0]}, "weights"),
        ((8, 2), {"weights": ["a", "b"]}, "weights"),
    ],
)
def test_impossible_geometry_names_the_argument(
    arguments: tuple[int, int], options: dict, name: str
) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected") as caught:
        AxialProjection(*arguments, **options)
    assert caught.value.argument == name


def test_wrong_data_names_the_argument() -> None:
    A = AxialProjection(12, 4)
    with pytest.raises(InputError, match=r"^x: expected shape \[12, Y, X\], got shape \[3"):
        A(randn(3))
    with pytest.raises(InputError, match=r"^y: expected shape"):
        A.T(randn(12))
    with pytest.raises(InputError, match=r"^x: expected a floating-point"):
        A(torch.zeros(12, 2, 2, dtype=torch.int32))
    with pytest.raises(InputError, match=r"^x: expected a torch tensor"):
        A(np.zeros((12, 2, 2)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^mode: expected"):
        A.interpolate(randn(3), "cubic")  # type: ignore[arg-type]


def test_weights_are_normalised_in_float64() -> None:
    A = AxialProjection(6, 3, weights=np.full(3, 1 / 3, np.float32))
    assert float(A.weights.sum()) == pytest.approx(1.0, abs=1e-16)
