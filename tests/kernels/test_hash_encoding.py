"""hash_encoding: tiny-cuda-nn's layout pinned by hand, interpolation, gradients, determinism."""

from __future__ import annotations

import importlib
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.hash_encoding import (
    HashGridSpec,
    geometry,
    hash_encoding,
    reference,
)

SMALL = HashGridSpec(
    n_levels=4, n_features=2, log2_hashmap_size=7, base_resolution=3, per_level_scale=1.5
)


def random_table(spec: HashGridSpec, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(spec.n_params, generator=generator, dtype=torch.float64).to(dtype)


def random_positions(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand(n, 3, generator=generator, dtype=torch.float64).to(dtype)


def f32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def scalar_encode(position: list[float], table: list[float], spec: HashGridSpec) -> list[float]:
    """One position, in plain Python, from the formulas; float32 only where the layout needs it."""
    features: list[float] = []
    offset = 0
    for level in range(spec.n_levels):
        exponent = f32(level * f32(math.log2(f32(spec.per_level_scale))))
        scale = f32(f32(f32(2.0**exponent) * spec.base_resolution) - 1.0)
        resolution = math.ceil(scale) + 1
        size = min(-(-(resolution**3) // 8) * 8, 2**spec.log2_hashmap_size)
        place = [scale * p + 0.5 for p in position]
        lower = [math.floor(p) for p in place]
        level_features = [0.0] * spec.n_features
        for corner in range(8):
            weight, vertex = 1.0, []
            for d in range(3):
                fraction = place[d] - lower[d]
                upper = corner >> d & 1
                weight *= fraction if upper else 1.0 - fraction
                vertex.append(lower[d] + upper)
            if size >= resolution**3:
                index = vertex[0] + resolution * (vertex[1] + resolution * vertex[2])
            else:
                index = vertex[0]
                index ^= vertex[1] * 2654435761 % 2**32
                index ^= vertex[2] * 805459861 % 2**32
            row = (offset + index % size) * spec.n_features
            for f in range(spec.n_features):
                level_features[f] += weight * table[row + f]
        features += level_features
        offset += size
    return features


def test_level_sizes_by_hand() -> None:
    # Growth 2 from 16: vertices 16, 32, 64, 128; 4096 and 32768 entries fit into 2^19, and so
    # do 64^3 = 262144; 128^3 = 2097152 does not.
    spec = HashGridSpec(4, 2, 19, 16, 2.0)
    assert [spec.resolution(level) for level in range(4)] == [16, 32, 64, 128]
    assert spec.offsets == (0, 4096, 36864, 299008, 823296)
    assert [spec.is_hashed(level) for level in range(4)] == [False, False, False, True]
    assert (spec.n_entries, spec.n_params, spec.n_outputs) == (823296, 1646592, 8)


def test_level_sizes_are_rounded_up_to_eight() -> None:
    # 3^3 = 27 -> 32; scale 3 * 1.5 - 1 = 3.5 -> 5 vertices, 125 -> 128, which just fits into 2^7;
    # 3 * 2.25 - 1 = 5.75 -> 7 vertices, 343 > 128; 3 * 3.375 - 1 = 9.125 -> 11 vertices.
    assert [SMALL.resolution(level) for level in range(4)] == [3, 5, 7, 11]
    assert SMALL.offsets == (0, 32, 160, 288, 416)
    assert [SMALL.is_hashed(level) for level in range(4)] == [False, False, True, True]


def test_scale_is_rounded_in_float32() -> None:
    # log2(1.3819) is no float32 number; the levels follow the rounded exponent.
    spec = HashGridSpec(16, 2, 19, 16, 1.3819)
    for level in range(16):
        exact = 16 * 1.3819**level - 1
        assert spec.scale(level) == pytest.approx(exact, rel=1e-5)
        assert spec.scale(level) == f32(spec.scale(level))
    assert HashGridSpec(2, 2, 19, 16, 1.0).scale(1) == 15.0


def test_resolutions_beyond_uint32_are_hashed() -> None:
    spec = HashGridSpec(1, 1, 31, 1626, 1.0)
    assert spec.resolution(0) ** 3 > 2**32 and spec.is_hashed(0)
    assert not HashGridSpec(1, 1, 31, 1024, 1.0).is_hashed(0)


def test_dense_indices_by_hand() -> None:
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [4, 4, 4], [5, 5, 5]])
    # 5 vertices an axis; vertex 5 lies beyond the last and wraps: 5 + 25 + 125 = 155, modulo 128.
    assert reference.grid_index(vertices, 1, SMALL).tolist() == [0, 1, 5, 25, 124, 27]


def test_hashed_indices_by_hand() -> None:
    spec = HashGridSpec(1, 2, 19, 128, 1.0)
    vertices = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [100, 37, 90]])
    # 2654435761 = 5062 * 2^19 + 489905, 805459861 = 1536 * 2^19 + 153493; the low 19 bits of a
    # product are those of the product of the low 19 bits.
    last = 100 ^ (37 * 489905 % 2**19) ^ (90 * 153493 % 2**19)
    expected = [1, 489905, 153493, 1 ^ 489905 ^ 153493, last]
    assert reference.grid_index(vertices, 0, spec).tolist() == expected


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.sampled_from([1, 2, 4]),
    st.integers(3, 12),
    st.integers(1, 20),
    st.floats(1.0, 2.5, width=32),
    st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=5),
)
def test_vectorised_equals_scalar(
    levels: int,
    features: int,
    log2_size: int,
    base: int,
    growth: float,
    points: list[tuple[float, float, float]],
) -> None:
    spec = HashGridSpec(levels, features, log2_size, base, growth)
    table = random_table(spec)
    positions = torch.tensor(points, dtype=torch.float64)
    got = hash_encoding(positions, table, spec)
    expected = [scalar_encode(list(point), table.tolist(), spec) for point in points]
    torch.testing.assert_close(
        got, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10
    )


def test_flat_and_two_dimensional_tables_agree() -> None:
    table, positions = random_table(SMALL), random_positions(9)
    rows = table.reshape(-1, 2)
    assert torch.equal(
        hash_encoding(positions, table, SMALL), hash_encoding(positions, rows, SMALL)
    )


def test_a_vertex_returns_its_entry() -> None:
    spec = HashGridSpec(1, 2, 10, 8, 1.0)
    table = random_table(spec).reshape(-1, 2)
    # Vertex v lies at (v - 1/2) / scale, scale 7.
    for vertex in ([1, 1, 1], [3, 5, 2], [7, 1, 6]):
        position = (torch.tensor([vertex], dtype=torch.float64) - 0.5) / 7.0
        row = vertex[0] + 8 * vertex[1] + 64 * vertex[2]
        torch.testing.assert_close(hash_encoding(position, table, spec)[0], table[row])


def test_a_dense_level_reproduces_a_linear_function() -> None:
    spec = HashGridSpec(1, 1, 12, 16, 1.0)
    z, y, x = torch.meshgrid(*[torch.arange(16, dtype=torch.float64)] * 3, indexing="ij")
    table = (2.0 * x - 3.0 * y + 0.5 * z).flatten()
    # Below (15 - 1/2) / 15 no corner wraps around.
    positions = random_positions(200) * (14.49 / 15)
    expected = (positions * 15 + 0.5) @ torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(hash_encoding(positions, table, spec)[:, 0], expected)


def test_constant_tables_give_constant_features() -> None:
    got = hash_encoding(random_positions(50), torch.ones(SMALL.n_params).double(), SMALL)
    torch.testing.assert_close(got, torch.ones_like(got))


def test_gradients_of_table_and_positions() -> None:
    # Positions away from cell faces, where the encoding has a kink.
    positions = random_positions(40)
    place = torch.stack([positions * SMALL.scale(level) + 0.5 for level in range(4)])
    inside = ((place - place.round()).abs() > 1e-3).all(0).all(1)
    positions = positions[inside][:6].clone().requires_grad_()
    table = random_table(SMALL).requires_grad_()
    assert positions.shape[0] == 6
    assert torch.autograd.gradcheck(lambda p, t: hash_encoding(p, t, SMALL), (positions, table))


def test_the_backward_pass_is_deterministic() -> None:
    spec = HashGridSpec(6, 2, 8, 4, 1.7)
    positions = random_positions(20000, torch.float32)
    weights = torch.randn(20000, spec.n_outputs, generator=torch.Generator().manual_seed(5))
    gradients = []
    for _ in range(3):
        table = random_table(spec, torch.float32).requires_grad_()
        (hash_encoding(positions, table, spec) * weights).sum().backward()
        assert table.grad is not None
        gradients.append(table.grad)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
    exact = random_table(spec).requires_grad_()
    (hash_encoding(positions, exact, spec) * weights).sum().backward()
    assert exact.grad is not None
    torch.testing.assert_close(gradients[0].double(), exact.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    table = random_table(SMALL, dtype)
    positions = random_positions(100, torch.float32)
    got = hash_encoding(positions, table, SMALL)
    exact = hash_encoding(positions, table.double(), SMALL)
    assert got.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        got.double(), exact, rtol=eps, atol=8 * torch.finfo(torch.float32).eps
    )


def test_the_cells_of_float32_positions_are_rounded_like_an_fma() -> None:
    positions = random_positions(1000, torch.float32)
    lower, fraction = reference.cell(positions, 1023.0)
    exact = positions.double() * 1023.0 + 0.5
    assert torch.equal((lower + fraction.double()).float(), exact.float())
    assert bool((fraction >= 0).all()) and bool((fraction < 1).all())


def test_no_positions() -> None:
    table = random_table(SMALL).requires_grad_()
    result = hash_encoding(torch.zeros(0, 3), table, SMALL)
    assert result.shape == (0, 8)
    result.sum().backward()
    assert table.grad is not None and not bool(table.grad.any())


def test_opcheck() -> None:
    positions = random_positions(5).requires_grad_()
    rows = random_table(SMALL).reshape(-1, 2).requires_grad_()
    operators = torch.ops.microdiffusion_fast
    torch.library.opcheck(operators.hash_encoding.default, (positions, rows, 4, 2, 7, 3, 1.5))
    for want in (False, True):
        grad = torch.ones(5, 8, dtype=torch.float64)
        arguments = (grad, positions.detach(), rows.detach(), 4, 2, 7, 3, 1.5, want)
        torch.library.opcheck(operators.hash_encoding_backward.default, arguments)


def test_configuration_for_tiny_cuda_nn() -> None:
    config = SMALL.tcnn_config()
    assert (config["otype"], config["type"]) == ("Grid", "Hash")
    assert (config["n_levels"], config["n_features_per_level"]) == (4, 2)
    assert (config["base_resolution"], config["per_level_scale"]) == (3, 1.5)


@pytest.mark.parametrize(
    "options",
    [
        {"n_levels": 0},
        {"n_levels": True},
        {"n_features": 9},
        {"log2_hashmap_size": 32},
        {"base_resolution": 0},
        {"per_level_scale": 0.5},
        {"per_level_scale": math.nan},
        {"per_level_scale": 1e6},
        {"per_level_scale": "a"},
        {"per_level_scale": None},
        {"per_level_scale": True},
        {"per_level_scale": 1000.0, "n_levels": 128},
    ],
)
def test_impossible_specs(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=": expected"):
        HashGridSpec(**options)  # type: ignore[arg-type]


def test_errors() -> None:
    table = random_table(SMALL)
    with pytest.raises(ValueError, match=r"^positions: expected shape \[N, 3\]"):
        hash_encoding(torch.zeros(4, 2), table, SMALL)
    with pytest.raises(TypeError, match=r"^positions: expected float32"):
        hash_encoding(torch.zeros(4, 3).half(), table, SMALL)
    with pytest.raises(ValueError, match=r"^table: expected shape \[832\] or \[416, 2\]"):
        hash_encoding(torch.zeros(4, 3), table[:-1], SMALL)
    for dtype in (torch.int64, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=rf"^table: expected float16, .* got {dtype}"):
            hash_encoding(torch.zeros(4, 3), table.to(dtype), SMALL)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("positions", None), ("positions", [[0.0, 0.0, 0.0]]), ("table", None), ("spec", None)],
)
def test_arguments_of_other_types(argument: str, value: object) -> None:
    arguments = {"positions": torch.zeros(4, 3), "table": random_table(SMALL), "spec": SMALL}
    with pytest.raises(TypeError, match=f"^{argument}: expected a .*, got {type(value).__name__}"):
        hash_encoding(**arguments | {argument: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_takes_what_float32_arithmetic_serves(dtype: torch.dtype) -> None:
    table = random_table(SMALL, dtype)
    assert geometry.is_triton(table)
    assert not geometry.is_triton(table.double())


def test_a_double_table_on_a_gpu_goes_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, without a GPU: what is registered for CUDA, on tensors that lie elsewhere."""
    if _backend.triton_missing is not None:
        pytest.skip(f"triton: {_backend.triton_missing}")
    from microdiffusion_fast.kernels.hash_encoding import grid, launch

    points = importlib.import_module(hash_encoding.__module__)
    launched: list[torch.dtype] = []

    def note(_: object, table: torch.Tensor, *rest: object) -> torch.Tensor:
        launched.append(table.dtype)
        return table

    for name in ("encode_triton", "encode_grid_triton"):
        monkeypatch.setattr(launch, name, note)
    axes = [torch.full((1,), 0.5)] * 3
    for dtype in (torch.float64, torch.float32):
        rows = random_table(SMALL, dtype).reshape(-1, 2)
        numbers = geometry.arguments(SMALL)
        points._triton_encode(random_positions(3, dtype), rows, *numbers)
        grid._triton_encode(*axes, rows, *numbers, [1.0], 1, 0, 1)
    assert launched == [torch.float32] * 2


def test_levels_are_shared_and_cannot_be_changed() -> None:
    assert isinstance(geometry.levels_of(SMALL), tuple)
