"""hash_encoding's Triton kernels in the interpreter, against the reference."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.hash_encoding import HashGridSpec, reference

if _backend.triton_missing is not None:
    pytest.skip(f"triton: {_backend.triton_missing}", allow_module_level=True)

from microdiffusion_fast.kernels.hash_encoding import launch

Check = Callable[[Tensor, Tensor, Tensor], None]
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

MIXED = HashGridSpec(4, 2, 7, 3, 1.8)
SPECS = [
    pytest.param(MIXED, id="both, F=2"),
    pytest.param(HashGridSpec(2, 1, 12, 4, 1.5), id="dense, F=1"),
    pytest.param(HashGridSpec(3, 3, 6, 6, 2.0), id="hashed, F=3"),
    pytest.param(HashGridSpec(1, 8, 8, 5, 1.0), id="dense, F=8"),
]
WINDOWS = [
    pytest.param([1.0], 1, 0, 6, id="slices"),
    pytest.param([0.5, 0.5], 2, 1, 2, id="disjoint"),
    pytest.param([0.1, 0.6, 0.3], 1, 0, 4, id="overlapping"),
    pytest.param([0.5, 0.5], 3, 0, 2, id="gaps"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE, dtype)


def points(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.rand((n, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return values.to(DEVICE, dtype)


def table_of(spec: HashGridSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    return random(spec.n_entries, spec.n_features, dtype=dtype, seed=2)


def centres(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [(torch.arange(n, device=DEVICE).to(dtype) + 0.5) / max(shape) for n in shape]


def check_points(spec: HashGridSpec, positions: Tensor, table: Tensor, as_accurate: Check) -> None:
    got = launch.encode_triton(positions, table, spec)
    exact = reference.encode(positions, table.double(), spec)
    as_accurate(got, reference.encode(positions, table, spec), exact)

    grad = random(len(positions), spec.n_outputs, dtype=table.dtype)
    got_both = launch.encode_backward_triton(grad, positions, table, spec, want_positions=True)
    plain = reference.encode_backward(grad, positions, table, spec, want_positions=True)
    exact_both = reference.encode_backward(
        grad.double(), positions, table.double(), spec, want_positions=True
    )
    for result, simple, truth in zip(got_both, plain, exact_both, strict=True):
        as_accurate(result, simple, truth)


@pytest.mark.parametrize("spec", SPECS)
def test_points(spec: HashGridSpec, as_accurate: Check, poisoned_memory: None) -> None:
    check_points(spec, points(131), table_of(spec), as_accurate)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_points_of_half_precision(dtype: torch.dtype, as_accurate: Check) -> None:
    check_points(MIXED, points(50), table_of(MIXED, dtype), as_accurate)


def test_points_of_double_precision(as_accurate: Check) -> None:
    check_points(MIXED, points(50, torch.float64), table_of(MIXED), as_accurate)


def test_the_cells_are_those_of_the_reference() -> None:
    """The same rows get a gradient: a cell that was off by one would show."""
    spec = HashGridSpec(2, 1, 14, 8, 2.5)
    positions = points(300)
    grad = torch.ones((300, 2), device=DEVICE)
    table = table_of(spec)
    got, _ = launch.encode_backward_triton(grad, positions, table, spec, want_positions=False)
    want, _ = reference.encode_backward(grad, positions, table, spec, want_positions=False)
    assert torch.equal(got != 0, want != 0)


def test_positions_outside_wrap_like_the_reference() -> None:
    table, positions = table_of(MIXED), 20 * points(60) - 10
    got = launch.encode_triton(positions, table, MIXED)
    torch.testing.assert_close(got, reference.encode(positions, table, MIXED))


@pytest.mark.parametrize("n", [0, 1])
def test_few_points(n: int) -> None:
    table, positions = table_of(MIXED), points(n)
    got = launch.encode_triton(positions, table, MIXED)
    torch.testing.assert_close(got, reference.encode(positions, table, MIXED))
    grads = launch.encode_backward_triton(got, positions, table, MIXED, want_positions=True)
    assert grads[0].shape == table.shape and grads[1].shape == (n, 3)
    assert bool(grads[0].any()) == (n > 0)


def check_grid(
    spec: HashGridSpec,
    axes: list[Tensor],
    table: Tensor,
    window: tuple[list[float], int, int, int],
    as_accurate: Check,
) -> None:
    got = launch.encode_grid_triton(axes, table, spec, *window)
    exact = reference.encode_grid(axes, table.double(), spec, *window)
    # plain torch as one would write it, point by point: lerp rounds less than eight products
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    slices = reference.encode(torch.stack([x, y, z], -1).reshape(-1, 3), table.float(), spec)
    slices = slices.view(*z.shape, -1)
    weights, stride, start, count = window
    plain = torch.stack(
        [
            sum(w * slices[start + k * stride + i] for i, w in enumerate(weights))
            for k in range(count)
        ]
    ).to(table.dtype)
    as_accurate(got, plain, exact)

    grad = random(*got.shape, dtype=table.dtype)
    rest = (axes, spec, weights, stride, start)
    as_accurate(
        launch.encode_grid_backward_triton(grad, *rest),
        reference.encode_grid_backward(grad, *rest),
        reference.encode_grid_backward(grad.double(), *rest),
    )


@pytest.mark.parametrize(("weights", "stride", "start", "count"), WINDOWS)
def test_windows(
    weights: list[float],
    stride: int,
    start: int,
    count: int,
    as_accurate: Check,
    poisoned_memory: None,
) -> None:
    axes = centres(6, 5, 7)
    assert 0 < launch._lattices(MIXED, 6, 5, 7).levels < MIXED.n_levels  # both ways are taken
    check_grid(MIXED, axes, table_of(MIXED), (weights, stride, start, count), as_accurate)


@pytest.mark.parametrize("spec", SPECS)
def test_grids(spec: HashGridSpec, as_accurate: Check, poisoned_memory: None) -> None:
    check_grid(spec, centres(3, 9, 6), table_of(spec), ([1.0], 1, 0, 3), as_accurate)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_grids_of_half_precision(dtype: torch.dtype, as_accurate: Check) -> None:
    table = table_of(MIXED, dtype)
    check_grid(MIXED, centres(4, 5, 6), table, ([0.25] * 4, 1, 0, 1), as_accurate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uneven_axes(dtype: torch.dtype, as_accurate: Check) -> None:
    """Repeated coordinates, cells that are skipped, a single row, both ends."""
    axes = [
        torch.tensor(values, device=DEVICE, dtype=dtype)
        for values in ([0.0, 0.01, 0.01, 0.5, 0.95, 1.0], [0.4], [0.0, 0.3, 0.32, 0.9, 0.9])
    ]
    spec = HashGridSpec(3, 2, 9, 2, 1.7)
    assert launch._lattices(spec, 6, 1, 5).levels > 0
    check_grid(spec, axes, table_of(spec), ([1.0], 1, 0, 6), as_accurate)


def test_same_bits_and_exact_sums() -> None:
    """All points on one vertex: the sum in fixed point is the exact sum, rounded once."""
    spec = HashGridSpec(1, 1, 10, 4, 1.0)
    positions = torch.full((200, 3), 0.5, device=DEVICE)
    grad = random(200, 1)
    got, _ = launch.encode_backward_triton(
        grad, positions, table_of(spec), spec, want_positions=False
    )
    again, _ = launch.encode_backward_triton(
        grad.flip(0), positions, table_of(spec), spec, want_positions=False
    )
    assert torch.equal(got, again)
    exact = grad.double().sum().reshape(1)
    _, fraction = reference.cell(positions[:1], spec.scale(0))
    assert bool((fraction == 0).all())  # scale 3: the middle is a vertex
    assert torch.equal(got[got != 0], exact.float())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_gradients_of_any_size(scale: float) -> None:
    positions, table = points(40), table_of(MIXED)
    grad = random(40, MIXED.n_outputs) * scale
    got, _ = launch.encode_backward_triton(grad, positions, table, MIXED, want_positions=False)
    want, _ = reference.encode_backward(
        grad.double(), positions, table.double(), MIXED, want_positions=False
    )
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6 * scale)


# the interpreter casts NaN to an integer with a warning
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_shows(bad: float) -> None:
    positions, table = points(9), table_of(MIXED)
    grad = random(9, MIXED.n_outputs)
    grad[4, 3] = bad
    got, _ = launch.encode_backward_triton(grad, positions, table, MIXED, want_positions=False)
    assert bool(got.isnan().all())


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_position_that_is_not_finite_shows(bad: float) -> None:
    positions, table = points(9), table_of(MIXED)
    positions[4, 1] = bad
    grad = random(9, MIXED.n_outputs)
    got, _ = launch.encode_backward_triton(grad, positions, table, MIXED, want_positions=False)
    assert bool(got.isnan().all())


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_of_a_grid_that_is_not_finite_shows(bad: float) -> None:
    grad = random(2, 3, 4, MIXED.n_outputs)
    grad[1, 2, 0, 0] = bad
    got = launch.encode_grid_backward_triton(grad, centres(2, 3, 4), MIXED, [1.0], 1, 0)
    assert bool(got.isnan().all())


def test_graphs_keep_their_constants() -> None:
    """A captured graph reads them by address: none is ever dropped."""
    assert launch.constant.cache_info().maxsize is None


def test_a_launch_that_writes_nothing_is_noticed(
    monkeypatch: pytest.MonkeyPatch, poisoned_memory: None
) -> None:
    monkeypatch.setattr(launch.kernels, "encode_kernel", MagicMock())
    assert bool(launch.encode_triton(points(3), table_of(MIXED), MIXED).isnan().all())
    grid = launch.encode_grid_triton(centres(2, 3, 4), table_of(MIXED), MIXED, [1.0], 1, 0, 2)
    assert bool(grid.isnan().all())


def test_no_gradient_gives_zeros() -> None:
    grad = torch.zeros((2, 3, 4, MIXED.n_outputs), device=DEVICE)
    got = launch.encode_grid_backward_triton(grad, centres(2, 3, 4), MIXED, [1.0], 1, 0)
    assert not bool(got.any()) and got.shape == (MIXED.n_entries, 2)


def test_rows_past_2_31_numbers(tmp_path: Path) -> None:
    """A table of 10 GB in a sparse file, of which a few pages are touched."""
    spec = HashGridSpec(5, 8, 26, 2000, 1.0)
    assert spec.n_params > 2**31
    if DEVICE == "cuda":
        pytest.skip("a sparse file is not on the device")
    table = torch.from_file(str(tmp_path / "table"), shared=True, size=spec.n_params).view(-1, 8)
    positions = points(3)
    lower, fraction = reference.cell(positions, spec.scale(4))
    for corner in range(8):
        upper = torch.tensor([corner >> d & 1 for d in range(3)])
        rows = reference.grid_index(lower + upper, 4, spec) + spec.offsets[4]
        table[rows] = float(corner)
    expected = fraction @ torch.tensor([1.0, 2.0, 4.0])
    got = launch.encode_triton(positions, table, spec)
    torch.testing.assert_close(got[:, -8:], expected[:, None].expand(-1, 8))
