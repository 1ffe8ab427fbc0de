"""volume_metrics: sums against numpy, histograms against numpy.histogram, exact merging."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microdiffusion_fast.kernels.volume_metrics import (
    VolumeSums,
    bin_centres,
    evaluate_sums,
    joint_counts,
    overlap_counts,
    reference,
)


def pair(shape: tuple[int, int, int] = (7, 9, 11), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(100.0, 60.0, shape)
    return x, x + rng.normal(0.0, 20.0, shape)


def assert_same_bits(a: VolumeSums, b: VolumeSums) -> None:
    for field in dataclasses.fields(VolumeSums):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype and torch.equal(left, right), field.name
        else:
            assert left == right, field.name


@pytest.mark.parametrize("clip", [None, (0.0, 255.0)])
def test_sums_are_numpys(clip: tuple[float, float] | None) -> None:
    x, y = pair()
    sums = evaluate_sums(
        torch.from_numpy(x), torch.from_numpy(y), scale=1.5, offset=-20.0, clip=clip
    )
    a, b = (v * 1.5 - 20.0 for v in (x, y))
    if clip:
        a, b = a.clip(*clip), b.clip(*clip)
    axes = (1, 2)
    for name, expected in {
        "n": np.full(7, 99.0),
        "sum_x": a.sum(axes),
        "sum_y": b.sum(axes),
        "sum_xx": (a * a).sum(axes),
        "sum_yy": (b * b).sum(axes),
        "sum_xy": (a * b).sum(axes),
        "sse": ((a - b) ** 2).sum(axes),
        "mse": ((a - b) ** 2).mean(axes),
        "min_x": a.min(axes),
        "max_x": a.max(axes),
        "min_y": b.min(axes),
        "max_y": b.max(axes),
    }.items():
        np.testing.assert_allclose(getattr(sums, name).numpy(), expected, rtol=1e-12)
        assert getattr(sums, name).dtype == torch.float64
    for got, limits, values in (
        (sums.histogram_x, sums.range_x, a),
        (sums.histogram_y, sums.range_y, b),
    ):
        assert limits == (clip or (values.min(), values.max()))
        np.testing.assert_array_equal(got.numpy(), np.histogram(values, 256, range=limits)[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), max_size=3, unique=True))
def test_blocks_merge_to_the_same_bits(seed: int, cuts: list[int]) -> None:
    x, y = (torch.from_numpy(v) for v in pair(seed=seed))
    whole = evaluate_sums(x, y, clip=(0.0, 255.0))
    edges = [0, *sorted(cuts), 7]
    blocks = [
        evaluate_sums(x[lo:hi], y[lo:hi], clip=(0.0, 255.0)) for lo, hi in itertools.pairwise(edges)
    ]
    assert_same_bits(functools.reduce(VolumeSums.merge, blocks), whole)
    if len(blocks) > 2:
        assert_same_bits(blocks[0].merge(functools.reduce(VolumeSums.merge, blocks[1:])), whole)


def test_blocks_with_other_ranges_do_not_merge() -> None:
    x, y = (torch.from_numpy(v) for v in pair())
    a = evaluate_sums(x, y, ranges=((0.0, 1.0), (0.0, 1.0)))
    b = evaluate_sums(x, y, ranges=((0.0, 1.0), (0.0, 2.0)))
    with pytest.raises(ValueError, match="histogram ranges"):
        a.merge(b)


def test_values_outside_the_range_fall_into_the_end_bins() -> None:
    x = torch.tensor([-5.0, 0.0, 0.5, 1.0, 7.0], dtype=torch.float64).reshape(1, 1, 5)
    counts = evaluate_sums(x, x, ranges=((0.0, 1.0), (0.0, 1.0))).histogram_x
    assert (int(counts[0]), int(counts[128]), int(counts[255])) == (2, 1, 2)


def test_a_constant_volume_fills_the_middle_bin() -> None:
    x = torch.full((2, 3, 4), 7.0)
    sums = evaluate_sums(x, x)
    expected = np.histogram(x.numpy(), 256)[0]
    np.testing.assert_array_equal(sums.histogram_x.numpy(), expected)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.int32,
        torch.float16,
        torch.bfloat16,
        torch.float32,
    ],
)
def test_dtypes_are_read_natively(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randint(0, 200, (3, 5, 8), generator=generator, dtype=torch.int32).to(dtype)
        for _ in range(2)
    )
    assert_same_bits(evaluate_sums(x, y), evaluate_sums(x.double(), y.double()))


def test_bright_flat_volumes_keep_their_small_error() -> None:
    x = torch.full((1, 64, 64), 60000.0, dtype=torch.float32)
    y = x.clone()
    y[0, 3, 4] += 1.0
    assert float(evaluate_sums(x, y).sse) == 1.0


def test_histograms_can_be_left_out() -> None:
    x, y = (torch.from_numpy(v) for v in pair())
    full, lean = evaluate_sums(x, y), evaluate_sums(x, y, histograms=False)
    assert torch.equal(full.sse, lean.sse)
    assert int(full.histogram_x.sum()) == x.numel()
    assert int(lean.histogram_x.sum()) == 0


def test_edges_are_numpys() -> None:
    for low, high in ((0.0, 255.0), (-3.7, 1e5), (0.1, 0.1), (1e-9, 2e-9)):
        expected = np.histogram_bin_edges(np.array([low, high]), 256)
        np.testing.assert_array_equal(reference.bin_edges(low, high).numpy(), expected)


@pytest.mark.parametrize("clip", [None, (0.0, 255.0)])
def test_overlaps_are_numpys(clip: tuple[float, float] | None) -> None:
    x, y = pair()
    a, b = (v * 1.5 - 20.0 for v in (x, y))
    if clip:
        a, b = a.clip(*clip), b.clip(*clip)
    above_x, above_y = a > 100.0, b > 255.0
    masks = (above_x, above_y, above_x & above_y)
    expected = np.stack([mask.sum((1, 2)) for mask in masks], 1)
    volumes = torch.from_numpy(x), torch.from_numpy(y)
    got = overlap_counts(*volumes, (100.0, 255.0), scale=1.5, offset=-20.0, clip=clip)
    np.testing.assert_array_equal(got.numpy(), expected)
    assert got.dtype == torch.int64


@pytest.mark.parametrize("clip", [None, (0.0, 255.0)])
def test_joint_counts_hold_both_histograms_and_the_overlap_at_every_pair_of_centres(
    clip: tuple[float, float] | None,
) -> None:
    x, y = (torch.from_numpy(v) for v in pair())
    ranges = ((0.0, 255.0), (-300.0, 700.0))
    x[0, 0, :5] = bin_centres(*ranges[0])[[0, 7, 100, 254, 255]]  # not above themselves
    options = {"scale": 1.0, "offset": 0.0, "clip": clip}
    joint = joint_counts(x, y, ranges, **options)
    assert joint.dtype == torch.int64 and joint.shape == (512, 512)
    sums = evaluate_sums(x, y, ranges=ranges, **options)
    assert torch.equal(joint.sum(1).view(256, 2).sum(1), sums.histogram_x)
    assert torch.equal(joint.sum(0).view(256, 2).sum(1), sums.histogram_y)
    for of_x, of_y in ((0, 0), (7, 90), (100, 130), (254, 200), (255, 255)):
        thresholds = (float(bin_centres(*ranges[0])[of_x]), float(bin_centres(*ranges[1])[of_y]))
        expected = overlap_counts(x, y, thresholds, **options).sum(0)
        one, other = slice(2 * of_x + 1, None), slice(2 * of_y + 1, None)
        got = [joint[one].sum(), joint[:, other].sum(), joint[one, other].sum()]
        assert torch.equal(torch.stack(got), expected)


def test_compiles_as_one_graph() -> None:
    x, y = (torch.from_numpy(v) for v in pair())
    operators = torch.ops.microdiffusion_fast

    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        table, counts = operators.volume_metrics(x, y, 2.0, 1.0, [], [0.0, 255.0, 0.0, 255.0])
        overlaps = operators.overlap_counts(x, y, 90.0, 80.0, 1.0, 0.0, [])
        joint = operators.joint_counts(x, y, 2.0, 1.0, [], [0.0, 255.0, 0.0, 255.0])
        return table.sum() + counts[0, 3] + overlaps.sum() + joint[40, 50]

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert float(compiled(x, y)) == float(run(x, y))


def test_opcheck() -> None:
    x, y = (torch.from_numpy(v) for v in pair())
    operator = torch.ops.microdiffusion_fast.volume_metrics.default
    torch.library.opcheck(operator, (x, y, 2.0, 1.0, [0.0, 255.0], [0.0, 255.0, 0.0, 255.0]))
    torch.library.opcheck(operator, (x.float(), y.float(), 1.0, 0.0, [], []))
    torch.library.opcheck(operator, (x.half(), y.half(), 1.0, 0.0, [], [0.0, 1.0, 0.0, 2.0], False))
    operator = torch.ops.microdiffusion_fast.overlap_counts.default
    torch.library.opcheck(operator, (x, y, 90.0, 80.0, 2.0, 1.0, [0.0, 255.0]))
    torch.library.opcheck(operator, (x.half(), y.half(), 90.0, 80.0, 1.0, 0.0, []))
    operator = torch.ops.microdiffusion_fast.joint_counts.default
    for volumes in ((x, y), (x.half(), y.half())):
        torch.library.opcheck(operator, (*volumes, 2.0, 1.0, [0.0, 9.0], [0.0, 255.0, 0.0, 9.0]))


def test_errors() -> None:
    x = torch.zeros(2, 3, 4)

    def overlap(*volumes: torch.Tensor) -> torch.Tensor:
        return overlap_counts(*volumes, (0.5, 0.5))

    def joint(*volumes: torch.Tensor) -> torch.Tensor:
        return joint_counts(*volumes, ((0.0, 1.0), (0.0, 1.0)))

    for function in (evaluate_sums, overlap, joint):
        with pytest.raises(ValueError, match=r"^test: expected shape \[2, 3, 4\]"):
            function(x, x[:1])
        with pytest.raises(ValueError, match=r"^reference: expected a volume"):
            function(x[0], x[0])
        with pytest.raises(ValueError, match=r"^reference: expected a volume"):
            function(x[:0], x[:0])
        with pytest.raises(ValueError, match=r"^test: expected a tensor on cpu"):
            function(x, x.to("meta"))
        with pytest.raises(TypeError, match=r"^test: expected a real dtype"):
            function(x, x.to(torch.complex64))
    for clip in ((1.0, 0.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match=r"^clip: expected two finite numbers"):
            evaluate_sums(x, x, clip=clip)
    with pytest.raises(ValueError, match=r"^ranges: expected two finite numbers"):
        evaluate_sums(x, x, ranges=((0.0, 1.0), (2.0, 1.0)))
    with pytest.raises(ValueError, match=r"^thresholds: expected two numbers"):
        overlap_counts(x, x, (0.0, math.nan))
    for bad in (torch.nan, torch.inf, -torch.inf):
        y = x.clone()
        y[0, 0, 0] = bad
        for clip in (None, (0.0, 1.0)):
            for dtype in (torch.float16, torch.float32):
                with pytest.raises(ValueError, match="finite"):
                    evaluate_sums(x.to(dtype), y.to(dtype), clip=clip)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_values_on_bin_edges_are_counted_as_numpy_counts_them(
    seed: int, levels: int, low: float, width: float
) -> None:
    rng = np.random.default_rng(seed)
    values = low + width * rng.integers(0, levels + 1, (2, 10, 20)) / levels
    sums = evaluate_sums(torch.from_numpy(values), torch.from_numpy(values))
    np.testing.assert_array_equal(sums.histogram_x.numpy(), np.histogram(values, 256)[0])
