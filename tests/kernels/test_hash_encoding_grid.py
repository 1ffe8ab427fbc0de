"""hash_encoding_grid: equals hash_encoding at every grid point, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microdiffusion_fast.kernels import axial_projection
from microdiffusion_fast.kernels.hash_encoding import (
    HashGridSpec,
    hash_encoding,
    hash_encoding_grid,
    hash_encoding_projection,
)

DENSE = HashGridSpec(3, 2, log2_hashmap_size=12, base_resolution=3, per_level_scale=1.5)
HASHED = HashGridSpec(3, 4, log2_hashmap_size=5, base_resolution=6, per_level_scale=1.7)
MIXED = HashGridSpec(4, 1, log2_hashmap_size=8, base_resolution=4, per_level_scale=2.0)
SPECS = [
    pytest.param(DENSE, id="dense"),
    pytest.param(HASHED, id="hashed"),
    pytest.param(MIXED, id="mixed"),
]


def make_table(spec: HashGridSpec, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    table = torch.randn((spec.n_entries, spec.n_features), generator=generator, dtype=torch.float64)
    return table.to(dtype)


def centres(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Voxel centres of a volume whose longest side fills [0, 1]."""
    longest = max(shape)
    return [(torch.arange(n, dtype=dtype) + 0.5) / longest for n in shape]


def at_points(axes: list[Tensor], table: Tensor, spec: HashGridSpec) -> Tensor:
    """The same grid through the op for single points, whose first column is x."""
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).reshape(-1, 3)
    return hash_encoding(points, table, spec).reshape(*z.shape, spec.n_outputs)


def test_the_specs_are_what_their_names_say() -> None:
    assert not any(DENSE.is_hashed(level) for level in range(DENSE.n_levels))
    assert all(HASHED.is_hashed(level) for level in range(HASHED.n_levels))
    assert {MIXED.is_hashed(level) for level in range(MIXED.n_levels)} == {True, False}


@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_points(spec: HashGridSpec) -> None:
    axes, table = centres(5, 9, 11), make_table(spec)
    grid = hash_encoding_grid(axes, table, spec)
    assert grid.shape == (5, 9, 11, spec.n_outputs)
    torch.testing.assert_close(grid, at_points(axes, table, spec), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_points_in_float32(spec: HashGridSpec) -> None:
    axes, table = centres(4, 6, 7, dtype=torch.float32), make_table(spec, torch.float32)
    grid = hash_encoding_grid(axes, table, spec)
    assert grid.dtype == torch.float32
    torch.testing.assert_close(grid, at_points(axes, table, spec), rtol=0, atol=2e-5)


axis = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6).map(
    lambda values: torch.tensor(sorted(values), dtype=torch.float64)
)


@settings(max_examples=40)
@given(
    axes=st.tuples(axis, axis, axis),
    n_levels=st.integers(1, 4),
    n_features=st.integers(1, 3),
    log2_size=st.integers(3, 10),
    base=st.integers(1, 9),
    growth=st.floats(1.0, 2.5),
)
def test_equals_the_points_for_any_grid(
    axes: tuple[Tensor, Tensor, Tensor],
    n_levels: int,
    n_features: int,
    log2_size: int,
    base: int,
    growth: float,
) -> None:
    """Uneven axes, repeated coordinates, single slices, both ends of [0, 1]."""
    spec = HashGridSpec(n_levels, n_features, log2_size, base, growth)
    table = make_table(spec)
    grid = hash_encoding_grid(axes, table, spec)
    torch.testing.assert_close(grid, at_points(list(axes), table, spec), rtol=0, atol=1e-11)


def test_a_part_of_the_axes_gives_a_part_of_the_grid() -> None:
    z, y, x = centres(4, 8, 8)
    table = make_table(MIXED)
    whole = hash_encoding_grid((z, y, x), table, MIXED)
    part = hash_encoding_grid((z, y[3:6], x[5:]), table, MIXED)
    torch.testing.assert_close(part, whole[:, 3:6, 5:], rtol=0, atol=0)


@pytest.mark.parametrize("spec", SPECS)
def test_gradient_equals_that_of_the_points(spec: HashGridSpec) -> None:
    axes = centres(3, 5, 6)
    gradients = []
    for encode in (hash_encoding_grid, at_points):
        table = make_table(spec).requires_grad_()
        out = encode(axes, table, spec)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        (out * weights).sum().backward()
        assert table.grad is not None
        gradients.append(table.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-11)


def test_gradcheck() -> None:
    spec = HashGridSpec(2, 2, log2_hashmap_size=4, base_resolution=2, per_level_scale=2.0)
    table = make_table(spec).requires_grad_()
    axes = centres(2, 3, 2)
    assert torch.autograd.gradcheck(lambda t: hash_encoding_grid(axes, t, spec), table)


def test_same_bits_twice() -> None:
    axes = centres(6, 16, 16, dtype=torch.float32)
    runs = []
    for _ in range(2):
        table = make_table(HASHED, torch.float32).requires_grad_()
        out = hash_encoding_grid(axes, table, HASHED)
        out.square().sum().backward()
        assert table.grad is not None
        runs.append((out.detach(), table.grad))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize(
    ("axes", "argument"),
    [
        pytest.param(centres(3, 4), "axes", id="two axes"),
        pytest.param([*centres(3, 4), torch.zeros(0)], "axes", id="empty"),
        pytest.param([*centres(3, 4), torch.zeros(2, 2)], "axes", id="a matrix"),
    ],
)
def test_bad_axes(axes: list[Tensor], argument: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        hash_encoding_grid(axes, make_table(DENSE), DENSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    ("values", "got"),
    [
        pytest.param([0.1, 0.6, 0.5], "0.6, 0.5", id="descends"),
        pytest.param([-0.1, 0.5, 0.6], "-0.1", id="below 0"),
        pytest.param([0.1, 0.5, 1.01], "1.01", id="above 1"),
        pytest.param([0.1, float("nan"), 0.5], "0.1, nan", id="NaN"),
        pytest.param([float("nan")], "nan", id="NaN alone"),
        pytest.param([0.5, float("inf")], "inf", id="infinity"),
    ],
)
def test_axes_that_do_not_ascend(
    values: list[float], got: str, at: int, dtype: torch.dtype
) -> None:
    """Both CPU backends refuse them, in both functions."""
    axes, table = centres(3, 4, 5, dtype=dtype), make_table(DENSE, dtype)
    axes[at] = torch.tensor(values, dtype=dtype)
    message = rf"^axes: expected ascending coordinates in \[0, 1\], got {got}$"
    with pytest.raises(ValueError, match=message):
        hash_encoding_grid(axes, table, DENSE)
    with pytest.raises(ValueError, match=message):
        hash_encoding_projection(axes, table, DENSE, [1.0], 1, 0, 1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("axes", None),
        ("axes", [[0.1, 0.2]] * 3),
        ("axes", [torch.zeros(2), torch.zeros(2), None]),
        ("axes", torch.zeros(3, 4)),
        ("table", None),
        ("spec", None),
        ("weights", None),
        ("weights", torch.ones(2, 2)),
        ("weights", torch.tensor(1.0)),
        ("weights", ["a"]),
        ("stride", 1.5),
        ("stride", True),
        ("start", None),
        ("count", None),
        ("count", "2"),
    ],
)
def test_arguments_of_other_types(argument: str, value: object) -> None:
    arguments = {
        "axes": centres(4, 2, 2),
        "table": make_table(DENSE),
        "spec": DENSE,
        "weights": [0.5, 0.5],
        "stride": 2,
        "start": 0,
        "count": 2,
    }
    with pytest.raises(TypeError, match=f"^{argument}: expected .*, got"):
        hash_encoding_projection(**arguments | {argument: value})  # type: ignore[arg-type]


def test_bad_table() -> None:
    with pytest.raises(ValueError, match="^table: expected shape"):
        hash_encoding_grid(centres(2, 2, 2), make_table(DENSE)[:-1], DENSE)


# --- axial projections ---

WINDOWS = [
    pytest.param([0.25] * 4, 4, 0, 2, id="disjoint"),
    pytest.param([0.2, 0.5, 0.3], 2, 1, 3, id="overlapping"),
    pytest.param([0.5, 0.5], 5, 1, 2, id="gaps"),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("weights", "stride", "start", "count"), WINDOWS)
def test_projection_equals_that_of_the_grid(
    spec: HashGridSpec,
    dtype: torch.dtype,
    weights: list[float],
    stride: int,
    start: int,
    count: int,
) -> None:
    """In value and in gradient; weights may be a tensor."""
    axes = centres(8, 5, 6, dtype=dtype)
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 5e-6}
    table = make_table(spec, dtype).requires_grad_()
    window = (torch.tensor(weights, dtype=torch.float64), stride, start, count)
    got = hash_encoding_projection(axes, table, spec, *window)
    slices = hash_encoding_grid(axes, table, spec)
    projected = axial_projection(slices.flatten(2), weights, stride, start, count)
    want = projected.view(count, 5, 6, -1)
    torch.testing.assert_close(got, want, **tolerance)
    grad = torch.linspace(-1, 1, got.numel(), dtype=dtype).view_as(got)
    (got_table,) = torch.autograd.grad(got, table, grad)
    (want_table,) = torch.autograd.grad(want, table, grad)
    torch.testing.assert_close(got_table, want_table, **tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    axes, table = centres(4, 5, 6, dtype=torch.float32), make_table(MIXED, dtype)
    exact = hash_encoding_projection(axes, table.float(), MIXED, [0.5, 0.5], 2, 0, 2)
    got = hash_encoding_projection(axes, table, MIXED, [0.5, 0.5], 2, 0, 2)
    assert torch.equal(got, exact.to(dtype)) and got.dtype == dtype


def test_both_passes_are_linear() -> None:
    spec = HashGridSpec(2, 2, log2_hashmap_size=4, base_resolution=2, per_level_scale=2.0)
    table, axes = make_table(spec).requires_grad_(), centres(4, 2, 3)

    def project(rows: Tensor) -> Tensor:
        return hash_encoding_projection(axes, rows, spec, [0.3, 0.7], 1, 1, 2)

    assert torch.autograd.gradcheck(project, table)
    assert torch.autograd.gradgradcheck(project, table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    spec = HashGridSpec(2, 2, log2_hashmap_size=4, base_resolution=2, per_level_scale=2.0)
    axes = centres(4, 2, 3, dtype=dtype)
    geometry = (2, 2, 4, 2, 2.0, [0.3, 0.7], 1, 1, 2)
    table = make_table(spec, dtype).requires_grad_()
    operators = torch.ops.microdiffusion_fast
    torch.library.opcheck(operators.hash_encoding_grid.default, (*axes, table, *geometry))
    grad = torch.ones((2, 2, 3, 4), dtype=dtype, requires_grad=True)
    torch.library.opcheck(operators.hash_encoding_grid_backward.default, (grad, *axes, *geometry))


def test_compiles_as_one_graph() -> None:
    axes, table = centres(4, 5, 6, dtype=torch.float32), make_table(MIXED, torch.float32)
    positions = torch.stack([axis[:4] for axis in axes], 1)

    def loss(rows: Tensor) -> Tensor:
        grid = hash_encoding_grid(axes, rows, MIXED).square().sum()
        projection = hash_encoding_projection(axes, rows, MIXED, [0.5, 0.5], 2, 0, 2)
        return grid + projection.sum() + hash_encoding(positions, rows, MIXED).sum()

    gradients = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        rows = table.clone().requires_grad_()
        run(rows).backward()
        gradients.append(rows.grad)
    assert gradients[0] is not None and gradients[1] is not None
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": []}, "^weights: expected finite numbers, got"),
        ({"weights": [float("nan")]}, "^weights: expected finite numbers, got"),
        ({"stride": 0}, "^stride: expected at least 1, got 0"),
        ({"start": -1}, "^start: expected at least 0, got -1"),
        ({"count": 0}, "^count: expected at least 1, got 0"),
        ({"count": 3}, "^axes: expected at least 6 slices for 3 windows, got 4"),
    ],
)
def test_bad_windows(change: dict[str, object], message: str) -> None:
    window = {"weights": [0.5, 0.5], "stride": 2, "start": 0, "count": 2} | change
    with pytest.raises(ValueError, match=message):
        hash_encoding_projection(centres(4, 2, 2), make_table(DENSE), DENSE, **window)  # type: ignore[arg-type]


def test_bad_dtypes_and_devices() -> None:
    axes, table = centres(2, 2, 2), make_table(DENSE)
    with pytest.raises(TypeError, match="^table: expected float16, .* got torch.int64"):
        hash_encoding_grid(axes, table.long(), DENSE)
    with pytest.raises(TypeError, match="^axes: expected all float32 or all float64, got"):
        hash_encoding_grid([axes[0], axes[1], axes[2].float()], table, DENSE)
    with pytest.raises(TypeError, match="^axes: expected all float32 or all float64, got"):
        hash_encoding_grid([axis.half() for axis in axes], table, DENSE)
    with pytest.raises(ValueError, match="^axes: expected device meta, got cpu"):
        hash_encoding_grid(axes, table.to("meta"), DENSE)
    with pytest.raises(ValueError, match="^table: expected device cpu, got meta"):
        hash_encoding(torch.zeros(4, 3), table.to("meta"), DENSE)
