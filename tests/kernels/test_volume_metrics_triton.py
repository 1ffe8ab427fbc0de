"""volume_metrics, Triton: interpreted without a GPU, against the reference."""

from __future__ import annotations

import itertools
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.volume_metrics import operators, reference

if _backend.triton_missing is not None:
    pytest.skip(f"triton: {_backend.triton_missing}", allow_module_level=True)

from microdiffusion_fast.kernels.volume_metrics import triton_kernel as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
]
MAPS = [
    pytest.param(1.0, 0.0, None, id="plain"),
    pytest.param(-1.5, 20.0, None, id="negative"),
    pytest.param(1.5, -20.0, (0.0, 255.0), id="clipped"),
]
RANGES = [-10.0, 250.0, 3.0, 99.0]


def pair(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (200.0 * torch.rand(shape, generator=generator) for _ in range(2))
    return x.to(DEVICE, dtype), (0.7 * x + 0.3 * y).to(DEVICE, dtype)


def assert_rows(table: Tensor, expected: Tensor) -> None:
    for name, got, column in zip(reference.COLUMNS, table.T, expected.T, strict=True):
        exact = name.startswith(("n", "min", "max"))
        torch.testing.assert_close(
            got, column, rtol=0 if exact else 1e-13, atol=0 if exact else 1e-9
        )


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("scale", "offset", "clip"), MAPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_reference(
    dtype: torch.dtype, scale: float, offset: float, clip: tuple[float, float] | None
) -> None:
    x, y = pair((2, 19, 61), dtype)
    table, counts = kernels.volume_metrics_triton(
        x, y, scale, offset, clip, operators._bins(RANGES), True
    )
    assert_rows(table, reference.slice_sums(x, y, scale, offset, clip))
    limits = (RANGES[0], RANGES[1]), (RANGES[2], RANGES[3])
    assert torch.equal(counts, reference.histograms(x, y, scale, offset, clip, limits))
    overlaps = kernels.overlap_counts_triton(x, y, 50.0, 61.0, scale, offset, clip)
    assert torch.equal(overlaps, reference.overlap_counts(x, y, 50.0, 61.0, scale, offset, clip))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 1, 1), id="one voxel"),
        pytest.param((3, 32, 32), id="one step"),
        pytest.param((2, 129, 131), id="two chunks, odd"),
    ],
)
@pytest.mark.parametrize("moments", [True, False])
def test_shapes_and_switches(shape: tuple[int, int, int], moments: bool) -> None:
    x, y = pair(shape, torch.float32)
    for ranges in ([], RANGES):
        table, counts = kernels.volume_metrics_triton(
            x, y, 1.0, 0.0, None, operators._bins(ranges), moments
        )
        expected = operators._sums_reference(x, y, 1.0, 0.0, [], ranges, moments)
        assert_rows(table, expected[0])
        assert torch.equal(counts, expected[1])


def test_a_launch_that_writes_nothing_is_noticed(
    monkeypatch: pytest.MonkeyPatch, poisoned_memory: None
) -> None:
    x, y = pair((2, 9, 13), torch.float32)
    for name in ("_slice_kernel", "_chunk_kernel"):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, name, MagicMock())
            table, _ = kernels.volume_metrics_triton(x, y, 1.0, 0.0, None, None, True)
        assert bool(table[:, 1:].isnan().any())


def test_a_row_depends_on_its_slice_alone() -> None:
    x, y = pair((4, 65, 300), torch.float32)
    whole = kernels.volume_metrics_triton(x, y, 1.0, 0.0, None, None, True)[0]
    for low, high in itertools.pairwise((0, 1, 3, 4)):
        part = kernels.volume_metrics_triton(x[low:high], y[low:high], 1.0, 0.0, None, None, True)
        assert torch.equal(part[0], whole[low:high])


def test_dtypes_mix() -> None:
    x, y = pair((2, 9, 130), torch.float32)
    y = y.to(torch.uint8)
    table, counts = kernels.volume_metrics_triton(
        x, y, 1.0, 0.0, None, operators._bins(RANGES), True
    )
    expected = operators._sums_reference(x, y, 1.0, 0.0, [], RANGES)
    assert_rows(table, expected[0])
    assert torch.equal(counts, expected[1])


def test_values_on_bin_edges_and_dark_volumes() -> None:
    x = torch.zeros(1, 8, 600, device=DEVICE)
    x[0, 3] = torch.arange(600.0, device=DEVICE) / 2.0
    ranges = [0.0, 256.0, -1.0, 255.0]
    counts = kernels.volume_metrics_triton(x, x, 1.0, 0.0, None, operators._bins(ranges), False)[1]
    limits = (ranges[0], ranges[1]), (ranges[2], ranges[3])
    assert torch.equal(counts, reference.histograms(x, x, 1.0, 0.0, None, limits))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_a_slice_that_is_not_finite_has_no_sum(
    bad: float, clip: tuple[float, float] | None
) -> None:
    x = torch.zeros(2, 3, 40, device=DEVICE)
    x[1, 2, 39] = bad
    table, _ = kernels.volume_metrics_triton(x, x, 1.0, 0.0, clip, None, True)
    assert torch.isfinite(table[0]).all() and not torch.isfinite(table[1].sum())


def test_strided_volumes() -> None:
    x, y = (v[:, ::2, 1::3] for v in pair((2, 20, 40), torch.float32))
    table, _ = kernels.volume_metrics_triton(x, y, 1.0, 0.0, None, None, True)
    assert_rows(table, reference.slice_sums(x, y, 1.0, 0.0, None))


def test_numbers_of_the_map_keep_float64() -> None:
    """A kernel's float arguments would be float32: 1 + 2^-40 would be 1."""
    x = torch.full((1, 1, 4), 1.0, device=DEVICE)
    table, _ = kernels.volume_metrics_triton(x, x, 1.0 + 2.0**-40, 2.0**-45, None, None, True)
    assert float(table[0, 7]) == 1.0 + 2.0**-40 + 2.0**-45


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_captures_in_a_graph_and_repeats_its_bits() -> None:
    x, y = pair((8, 128, 128), torch.float32)
    arguments = (x, y, 1.5, -20.0, [0.0, 255.0], [0.0, 255.0] * 2)
    first = operators.sums(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operators.sums(*arguments)
    graph.replay()
    assert all(map(torch.equal, captured, first))
