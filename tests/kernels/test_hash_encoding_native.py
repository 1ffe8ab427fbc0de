"""hash_encoding on a CPU: the native kernels against the reference, and the same bits always."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.hash_encoding import (
    HashGridSpec,
    hash_encoding,
    hash_encoding_projection,
    reference,
)
from microdiffusion_fast.kernels.hash_encoding.geometry import levels_of

Check = Callable[[Tensor, Tensor, Tensor], None]

pytestmark = pytest.mark.skipif(
    _backend.native is None, reason=f"native module: {_backend.native_missing}"
)

SPECS = [
    pytest.param(HashGridSpec(5, 1, 14, 3, 1.6), id="dense, F=1"),
    pytest.param(HashGridSpec(6, 2, 9, 4, 1.9), id="both, F=2"),
    pytest.param(HashGridSpec(3, 4, 7, 9, 2.0), id="hashed, F=4"),
    pytest.param(HashGridSpec(2, 8, 10, 5, 3.0), id="both, F=8"),
]
MIXED = HashGridSpec(6, 2, 9, 4, 1.9)
WINDOWS = [
    pytest.param([1.0], 1, 0, 19, id="slices"),
    pytest.param([0.25] * 4, 4, 1, 4, id="disjoint"),
    pytest.param([0.1, 0.6, 0.3], 2, 0, 9, id="overlapping"),
    pytest.param([0.5, 0.5], 5, 2, 3, id="gaps"),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def points(n: int) -> Tensor:
    return torch.rand((n, 3), generator=torch.Generator().manual_seed(1))


def table_of(spec: HashGridSpec) -> Tensor:
    return random(spec.n_entries, spec.n_features, seed=2)


def centres(*shape: int) -> list[Tensor]:
    return [(torch.arange(n) + 0.5) / max(shape) for n in shape]


@pytest.fixture
def isas() -> Iterator[list[str]]:
    """The instruction sets of this machine; restores the one in use."""
    native = _backend.native
    assert native is not None
    in_use, found = native.isa(), []
    for name in ("baseline", "avx2", "avx512"):
        try:
            native.use_isa(name)
            found.append(name)
        except ValueError:
            pass
    yield found
    native.use_isa(in_use)


@pytest.mark.parametrize("spec", SPECS)
def test_points(spec: HashGridSpec, as_accurate: Check, poisoned_memory: None) -> None:
    positions, table = points(1000), table_of(spec)
    plain = reference.encode(positions, table, spec)
    exact = reference.encode(positions, table.double(), spec)
    as_accurate(hash_encoding(positions, table, spec), plain, exact)


@pytest.mark.parametrize("spec", SPECS)
def test_points_backward(spec: HashGridSpec, as_accurate: Check, poisoned_memory: None) -> None:
    positions, table = points(1000).requires_grad_(), table_of(spec).requires_grad_()
    grad = random(1000, spec.n_outputs)
    got = torch.autograd.grad(hash_encoding(positions, table, spec), (table, positions), grad)
    inputs = (positions.detach(), table.detach())
    plain = reference.encode_backward(grad, *inputs, spec, want_positions=True)
    exact = reference.encode_backward(
        grad.double(), inputs[0], inputs[1].double(), spec, want_positions=True
    )
    as_accurate(got[0], plain[0], exact[0])
    as_accurate(got[1], plain[1], exact[1])
    # the same rows, and no others
    assert torch.equal(got[0] != 0, exact[0] != 0)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("weights", "stride", "start", "count"), WINDOWS)
def test_grid(
    spec: HashGridSpec,
    weights: list[float],
    stride: int,
    start: int,
    count: int,
    as_accurate: Check,
    poisoned_memory: None,
) -> None:
    axes, table = centres(19, 21, 13), table_of(spec).requires_grad_()
    window = (weights, stride, start, count)
    got = hash_encoding_projection(axes, table, spec, *window)
    rows = table.detach()
    exact = reference.encode_grid(axes, rows.double(), spec, *window)
    as_accurate(got.detach(), reference.encode_grid(axes, rows, spec, *window), exact)

    grad = random(*got.shape)
    (got_table,) = torch.autograd.grad(got, table, grad)
    plain = reference.encode_grid_backward(grad, axes, spec, weights, stride, start)
    exact = reference.encode_grid_backward(grad.double(), axes, spec, weights, stride, start)
    as_accurate(got_table, plain, exact)


def run_everything(spec: HashGridSpec) -> list[Tensor]:
    """More points and voxels than a chunk, a slab and a round of the backward pass hold."""
    n = (1 << 22) // spec.n_outputs + 300
    positions, table = points(n).requires_grad_(), table_of(spec).requires_grad_()
    encoded = hash_encoding(positions, table, spec)
    grads = torch.autograd.grad(encoded, (positions, table), random(n, spec.n_outputs))
    axes = centres(60, 90, 70)
    slices = hash_encoding_projection(axes, table, spec, [1.0], 1, 0, 60)
    (grid_grad,) = torch.autograd.grad(slices, table, random(*slices.shape))
    windows = hash_encoding_projection(axes, table, spec, [0.3, 0.7], 1, 0, 59)
    return [encoded.detach(), *grads, slices.detach(), grid_grad, windows.detach()]


def test_same_bits_for_any_threads_and_instruction_set(isas: list[str]) -> None:
    native, before = _backend.native, torch.get_num_threads()
    assert native is not None
    spec = HashGridSpec(6, 4, 12, 6, 1.9)
    expected = None
    try:
        for isa, threads in [*((isa, 2) for isa in isas), (isas[-1], 1), (isas[-1], 5)]:
            native.use_isa(isa)
            torch.set_num_threads(threads)
            results = run_everything(spec)
            expected = expected or results
            same = [torch.equal(a, b) for a, b in zip(results, expected, strict=True)]
            assert all(same), (isa, threads, same)
    finally:
        torch.set_num_threads(before)


def test_across_chunks_and_slabs() -> None:
    """Beyond the first chunk, and beyond the first slab, every point is its own."""
    spec = HashGridSpec(8, 8, 10, 5, 1.5)
    n = (1 << 22) // spec.n_outputs + 200
    positions, table = points(n), table_of(spec)
    got = hash_encoding(positions, table, spec)[-300:]
    torch.testing.assert_close(got, reference.encode(positions[-300:], table, spec))

    axes = centres(20, 70, 70)
    slices = hash_encoding_projection(axes, table, spec, [1.0], 1, 0, 20)
    assert slices.numel() > 1 << 22
    z, y, x = torch.meshgrid(axes[0][-1:], axes[1], axes[2], indexing="ij")
    last = reference.encode(torch.stack([x, y, z], -1).reshape(-1, 3), table, spec)
    torch.testing.assert_close(slices[-1].flatten(0, 1), last)


def test_positions_outside_wrap_like_the_reference() -> None:
    """Beyond the contract, but never beyond the table."""
    table = table_of(MIXED)
    positions = 20 * points(500) - 10
    got = hash_encoding(positions, table, MIXED)
    torch.testing.assert_close(got, reference.encode(positions, table, MIXED))
    assert hash_encoding(torch.full((3, 3), 1e30), table, MIXED).shape == (3, 12)
    assert hash_encoding(torch.full((3, 3), float("nan")), table, MIXED).isnan().all()


axis = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9).map(
    lambda values: torch.tensor(sorted(values))
)


@settings(max_examples=40)
@given(
    axes=st.tuples(axis, axis, axis),
    levels=st.integers(1, 4),
    features=st.sampled_from([1, 2, 4, 8]),
    log2_size=st.integers(3, 10),
    base=st.integers(1, 20),
    growth=st.floats(1.0, 3.0, width=32),
)
def test_any_axes(
    axes: tuple[Tensor, Tensor, Tensor],
    levels: int,
    features: int,
    log2_size: int,
    base: int,
    growth: float,
) -> None:
    """Uneven axes, repeated coordinates, single slices, coarse and fine levels."""
    spec = HashGridSpec(levels, features, log2_size, base, growth)
    table = table_of(spec).requires_grad_()
    window = ([1.0], 1, 0, len(axes[0]))
    got = hash_encoding_projection(axes, table, spec, *window)
    exact = reference.encode_grid(axes, table.detach().double(), spec, *window)
    torch.testing.assert_close(got.detach().double(), exact, rtol=0, atol=3e-6)
    grad = random(*got.shape)
    (got_table,) = torch.autograd.grad(got, table, grad)
    exact = reference.encode_grid_backward(grad.double(), axes, spec, [1.0], 1, 0)
    torch.testing.assert_close(got_table.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("features", "dtype"), [(3, torch.float32), (2, torch.float16), (2, torch.float64)]
)
def test_the_reference_takes_the_rest(features: int, dtype: torch.dtype) -> None:
    spec = HashGridSpec(3, features, 8, 4, 1.5)
    positions, table = points(20), table_of(spec).to(dtype)
    assert torch.equal(
        hash_encoding(positions, table, spec), reference.encode(positions, table, spec)
    )
    axes, window = centres(4, 5, 6), ([0.5, 0.5], 2, 0, 2)
    got = hash_encoding_projection(axes, table, spec, *window)
    assert torch.equal(got, reference.encode_grid(axes, table, spec, *window))


def test_strided_inputs() -> None:
    wide, table = points(40), table_of(MIXED)
    strided = torch.stack([wide, wide], -1)[..., 0]
    assert not strided.is_contiguous()
    spread = torch.stack([table, table], -1)[..., 1]
    assert torch.equal(hash_encoding(strided, spread, MIXED), hash_encoding(wide, table, MIXED))


def test_rows_past_2_31_numbers(tmp_path: Path) -> None:
    """A table of 10 GB in a sparse file, of which a few pages are touched."""
    spec = HashGridSpec(5, 8, 26, 2000, 1.0)
    assert spec.n_params > 2**31
    path = str(tmp_path / "table")
    table = torch.from_file(path, shared=True, size=spec.n_params).view(-1, 8)
    positions = points(3)
    lower, fraction = reference.cell(positions, spec.scale(4))
    for corner in range(8):
        upper = torch.tensor([corner >> d & 1 for d in range(3)])
        rows = reference.grid_index(lower + upper, 4, spec) + spec.offsets[4]
        table[rows] = float(corner)
    expected = fraction @ torch.tensor([1.0, 2.0, 4.0])
    got = hash_encoding(positions, table, spec)
    torch.testing.assert_close(got[:, -8:], expected[:, None].expand(-1, 8))
    assert not bool(got[:, :-8].any())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": torch.empty(5, 11)}, "encoded: expected"),
        ({"positions": torch.empty(5, 2)}, "positions: expected"),
        ({"table": torch.empty(9, 2)}, "table: expected all levels"),
        ({"table": torch.empty(9, 3), "out": torch.empty(5, 18)}, "table: expected 1, 2, 4 or 8"),
    ],
)
def test_the_module_checks_its_arguments(change: dict[str, Any], message: str) -> None:
    native = _backend.native
    assert native is not None
    arguments = {
        "out": torch.empty(5, MIXED.n_outputs),
        "positions": torch.rand(5, 3),
        "table": table_of(MIXED),
    }
    with pytest.raises(ValueError, match=message):
        native.hash_points(*(arguments | change).values(), levels_of(MIXED), 1)
