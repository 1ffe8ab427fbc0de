"""volume_metrics, native: the reference's counts bit for bit and its sums to rounding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.volume_metrics import (
    evaluate_sums,
    joint_counts,
    operators,
    overlap_counts,
    reference,
)

native = _backend.native
pytestmark = pytest.mark.skipif(native is None, reason=f"native: {_backend.native_missing}")

DTYPES = [
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
# Less than a vector, a tile and a chunk; more than each; odd.
SHAPES = [(1, 1, 1), (3, 2, 3), (2, 37, 41), (5, 64, 64), (2, 257, 263)]
MAPS = [
    pytest.param(1.0, 0.0, None, id="plain"),
    pytest.param(-1.5, 20.0, None, id="negative"),
    pytest.param(1.5, -20.0, (0.0, 255.0), id="clipped"),
]


@pytest.fixture
def every_isa() -> Iterator[list[str]]:
    """The instruction sets of this machine; the one in use is put back."""
    assert native is not None
    before, found = native.isa(), []
    for isa in ("baseline", "avx2", "avx512"):
        try:
            native.use_isa(isa)
        except ValueError:
            continue
        found.append(isa)
    native.use_isa(before)
    yield found
    native.use_isa(before)


def pair(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (200.0 * torch.rand(shape, generator=generator) for _ in range(2))
    return x.to(dtype), (0.7 * x + 0.3 * y).to(dtype)


@pytest.mark.parametrize(("scale", "offset", "clip"), MAPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    scale: float,
    offset: float,
    clip: tuple[float, float] | None,
) -> None:
    x, y = pair(shape, dtype)
    ranges = ((-10.0, 250.0), (3.0, 99.0))
    got = evaluate_sums(x, y, scale=scale, offset=offset, clip=clip, ranges=ranges)
    table = reference.slice_sums(x, y, scale, offset, clip)
    for name, expected in zip(reference.COLUMNS, table.T, strict=True):
        exact = name.startswith(("n", "min", "max"))
        torch.testing.assert_close(
            getattr(got, name), expected, rtol=0 if exact else 1e-13, atol=0 if exact else 1e-9
        )
    counts = reference.histograms(x, y, scale, offset, clip, ranges)
    assert torch.equal(torch.stack([got.histogram_x, got.histogram_y]), counts)
    overlaps = overlap_counts(x, y, (50.0, 61.0), scale=scale, offset=offset, clip=clip)
    expected = reference.overlap_counts(x, y, 50.0, 61.0, scale, offset, clip)
    assert torch.equal(overlaps, expected)
    joint = joint_counts(x, y, ranges, scale=scale, offset=offset, clip=clip)
    assert torch.equal(joint, reference.joint_counts(x, y, scale, offset, clip, ranges))


@pytest.mark.parametrize("other", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_mix(dtype: torch.dtype, other: torch.dtype) -> None:
    x, y = pair((2, 9, 130), torch.float32)
    x, y = x.to(dtype), y.to(other)
    got, expected = evaluate_sums(x, y), evaluate_sums(x.double(), y.double())
    torch.testing.assert_close(got.sum_xy, expected.sum_xy, rtol=1e-14, atol=0)
    assert torch.equal(got.histogram_x, expected.histogram_x)
    assert torch.equal(got.histogram_y, expected.histogram_y)


def test_same_bits_on_every_instruction_set_and_for_any_threads(every_isa: list[str]) -> None:
    assert native is not None
    x, y = pair((3, 259, 307), torch.float32)
    integers = tuple(v.to(torch.uint16) for v in (x, y))
    results = []
    threads = torch.get_num_threads()
    try:
        for isa in every_isa:
            native.use_isa(isa)
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                results.append(
                    [
                        *operators.sums(x, y, 1.0, 0.0, [], [0.0, 200.0] * 2),
                        *operators.sums(x, y, 1.3, -4.0, [0.0, 255.0], [0.0, 255.0] * 2),
                        *operators.sums(*integers, 1.3, -4.0, [0.0, 255.0], [0.0, 256.0] * 2),
                        overlap_counts(x, y, (50.0, 60.0), scale=1.3),
                        operators.joint(x, y, 1.3, -4.0, [0.0, 255.0], [0.0, 255.0] * 2),
                    ]
                )
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 4 * len(every_isa)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(DTYPES),
    st.integers(1, 300),
    st.floats(-1e5, 1e5),
    st.floats(1e-2, 1e5),
    st.sampled_from([1.0, 0.25, -3.0, 1e-3]),
    st.floats(-1e3, 1e3),
)
def test_values_on_and_beside_bin_edges_are_counted_as_the_reference_counts_them(
    seed: int,
    dtype: torch.dtype,
    levels: int,
    low: float,
    width: float,
    scale: float,
    offset: float,
) -> None:
    rng = np.random.default_rng(seed)
    values = low + width * rng.integers(0, levels + 1, (2, 4, 150)) / levels
    values[:, 2] = low + width * (rng.integers(0, 256, (2, 150)) + 0.5) / 256  # centres of bins
    if not dtype.is_floating_point:
        values = np.abs(values) % 256
    x = torch.from_numpy(values).to(dtype)
    extremes = (x.double() * scale + offset).aminmax()
    limits = (float(extremes.min), float(extremes.max))
    ranges = (limits, (limits[0] - 1.0, limits[1] + 0.5))
    clip = None if seed % 2 else limits
    got = evaluate_sums(x, x, scale=scale, offset=offset, clip=clip, ranges=ranges)
    expected = reference.histograms(x, x, scale, offset, clip, ranges)
    assert torch.equal(torch.stack([got.histogram_x, got.histogram_y]), expected)
    joint = joint_counts(x, x, ranges, scale=scale, offset=offset, clip=clip)
    assert torch.equal(joint, reference.joint_counts(x, x, scale, offset, clip, ranges))
    # Thresholds that are mapped voxels: above is not equal.
    levels = float(x[0, 0, 0]) * scale + offset, float(x[1, 2, 3]) * scale + offset
    overlaps = overlap_counts(x, x, levels, scale=scale, offset=offset, clip=clip)
    expected = reference.overlap_counts(x, x, *levels, scale, offset, clip)
    assert torch.equal(overlaps, expected)


@pytest.mark.parametrize(
    "limits",
    [(1e9, 1e9 + 1e-3), (0.0, 1e-40), (-1e300, 1e300), (5.0, 5.0), (0.0, 5e-324)],
    ids=["below the spacing of float32", "subnormal", "huge", "no width", "smallest"],
)
def test_ranges_that_no_arithmetic_resolves(limits: tuple[float, float]) -> None:
    low, high = limits
    values = torch.tensor([low, high, (low + high) / 2, 0.0, 5.0, -7.0, 1e9], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        x = values.clamp(-3e38, 3e38).to(dtype).reshape(1, 1, -1)
        got = evaluate_sums(x, x, ranges=(limits, limits)).histogram_x
        expected = reference.histograms(x, x, 1.0, 0.0, None, (limits, limits))
        assert torch.equal(got, expected[0])
        joint = joint_counts(x, x, (limits, limits))
        assert torch.equal(joint, reference.joint_counts(x, x, 1.0, 0.0, None, (limits, limits)))


@pytest.mark.parametrize("scale", [1.0, -2.0, 0.0])
@pytest.mark.parametrize("threshold", [-torch.inf, -50.0, 0.0, 10.0, 50.0, 1e300, torch.inf])
def test_thresholds_beyond_all_voxels(threshold: float, scale: float) -> None:
    x, y = pair((2, 5, 70), torch.float32)
    for clip in (None, (-50.0, 50.0)):
        thresholds = (threshold, 10.0)
        got = overlap_counts(x, y, thresholds, scale=scale, offset=10.0, clip=clip)
        expected = reference.overlap_counts(x, y, *thresholds, scale, 10.0, clip)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("value", [0.0, 0.5, 0.37])
def test_flat_volumes_on_and_off_an_edge(value: float) -> None:
    x = torch.full((2, 100, 100), value)
    x[1, 50, 50:] = 1.0
    got = evaluate_sums(x, x, clip=(0.0, 1.0)).histogram_x
    assert (int(got[int(256 * value)]), int(got[255]), int(got.sum())) == (19950, 50, 20000)
    limits = ((0.0, 1.0), (0.0, 1.0))
    joint = joint_counts(x, x, limits, clip=(0.0, 1.0))
    assert torch.equal(joint, reference.joint_counts(x, x, 1.0, 0.0, (0.0, 1.0), limits))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_values_that_are_not_finite_are_errors_under_a_clip_too(
    bad: float, clip: tuple[float, float] | None, dtype: torch.dtype
) -> None:
    x = torch.zeros(2, 3, 40, dtype=dtype)
    y = x.clone()
    y[1, 2, 39] = bad
    for volumes in ((x, y), (y, x)):
        with pytest.raises(ValueError, match="finite"):
            evaluate_sums(*volumes, clip=clip)


def test_strided_volumes_and_volumes_that_require_a_gradient() -> None:
    x, y = pair((4, 6, 10), torch.float32)
    views = x[::2, :, 1::3].requires_grad_(), y[::2, :, 1::3]
    got = evaluate_sums(*views, histograms=False)
    expected = evaluate_sums(*(v.detach().contiguous() for v in views), histograms=False)
    assert torch.equal(got.sse, expected.sse)


def test_long_sums_keep_their_digits() -> None:
    """16 Mvoxel of 1 + 2^-20 and 1: the bound of the lanes, not of one running float64 sum."""
    y = torch.ones(1, 4096, 4096, dtype=torch.float32)
    sums = evaluate_sums(y + 2.0**-20, y, histograms=False)
    assert float(sums.sum_x) == 2**24 + 2**4
    assert float(sums.sse) == 2.0**-16


def test_a_slice_of_more_than_2_31_voxels() -> None:
    # Memory that is only read, and never written, takes no room.
    x = torch.zeros(1, 2**16, 2**15 + 1, dtype=torch.uint8)
    x[0, -1, -1] = 7
    sums = evaluate_sums(x, x, ranges=((0.0, 256.0), (0.0, 256.0)))
    assert (float(sums.n), float(sums.sum_xx), float(sums.max_x)) == (x.numel(), 49.0, 7.0)
    assert int(sums.histogram_y[0]) == x.numel() - 1 and int(sums.histogram_y[7]) == 1
