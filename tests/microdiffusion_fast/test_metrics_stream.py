"""Metrics of volumes on disk: the numbers of `evaluate`, whatever the slabs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microdiffusion_fast import metrics, metrics_ranks
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import write_volume
from microdiffusion_fast.metrics_ranks import order_statistics, stored_percentiles, tail_values
from microdiffusion_fast.metrics_stream import evaluate_stored, slabs_of
from microdiffusion_fast.store_source import StoredStack, open_stack

DTYPES = ["uint8", "uint16", "int16", "int32", "float32", "float64"]


def held(data: np.ndarray) -> StoredStack:
    """A stack in memory, read like one in a file."""
    shape: Any = data.shape
    return StoredStack(Path("memory"), shape, data.dtype, lambda box: data[box.slices])


def volumes(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    reference = rng.gamma(2.0, 20.0, (11, 30, 26))
    test = reference + rng.normal(0, 6, reference.shape)
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    if limits is not None:
        reference, test = (np.clip(v, limits.min, limits.max) for v in (reference, test))
    return reference.astype(dtype), test.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory", [1, "40kB", "1GiB"])
def test_the_numbers_are_those_in_memory(tmp_path: Path, dtype: str, memory: int | str) -> None:
    reference, test = volumes(dtype)
    for name, data in (("reference", reference), ("test", test)):
        write_volume(tmp_path / f"{name}.zarr", data)
    expected = metrics.evaluate(test, reference)
    paths = tmp_path / "test.zarr", tmp_path / "reference.zarr"
    assert evaluate_stored(*paths, memory=memory) == expected
    given = metrics.evaluate(test, reference, intensity=(5.0, 60.0), window="gaussian")
    assert evaluate_stored(*paths, memory=memory, intensity=(5.0, 60.0), window="gaussian") == given


def test_a_test_volume_that_spans_less(tmp_path: Path) -> None:
    """Its histogram lies between its own extremes, not between the limits of the map."""
    reference, test = volumes("float32")
    test = 20 + 0.1 * test
    np.save(tmp_path / "x.npy", reference)
    np.save(tmp_path / "y.npy", test)
    assert evaluate_stored(tmp_path / "y.npy", tmp_path / "x.npy", memory=5000) == metrics.evaluate(
        test, reference
    )


def counted(data: np.ndarray) -> tuple[StoredStack, list[int]]:
    """A stack in memory, and the slices that were read of it."""
    shape: Any = data.shape
    read: list[int] = []

    def load(box: Any) -> np.ndarray:
        read.extend(range(box.z.start, box.z.stop))
        return data[box.slices]

    return StoredStack(Path("memory"), shape, data.dtype, load), read


@pytest.mark.parametrize("intensity", [None, (5.0, 60.0)])
def test_each_volume_is_read_once_to_be_compared(intensity: tuple[float, float] | None) -> None:
    reference, test = volumes("float32")
    (x, of_x), (y, of_y) = counted(reference), counted(test)
    got = evaluate_stored(y, x, intensity=intensity, memory=5000)
    assert got == metrics.evaluate(test, reference, intensity=intensity)
    slices = list(range(11))
    assert of_y == slices
    assert of_x == (slices if intensity else 2 * slices)  # its percentiles come before


@pytest.mark.parametrize(
    "values", [(20.0, 0.0), (20.0, 1e-9), (1e-3, 3.0), (1e4, 1.0), (-9.0, 1.0)]
)
def test_a_test_volume_of_little_or_no_contrast(values: tuple[float, float]) -> None:
    """Constant, in a range that float64 hardly divides, and beyond the limits of the map."""
    reference, test = (v.astype(np.float64) for v in volumes("float64"))
    low, width = values
    test = low + width * (test - test.min()) / np.ptp(test)
    for one, other in ((test, reference), (reference, test)):
        expected = metrics.evaluate(one, other, intensity=(5.0, 60.0))
        assert evaluate_stored(held(one), held(other), intensity=(5.0, 60.0), memory=1) == expected


def test_a_volume_and_itself() -> None:
    stack = held(volumes("float32")[0])
    assert evaluate_stored(stack, stack).dice == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 600), st.sampled_from(["uint8", "float32", "float64"]))
def test_voxels_at_a_threshold_are_counted_as_in_memory(seed: int, levels: int, dtype: str) -> None:
    """Few grey levels: many lie at edges and centres of the bins."""
    rng = np.random.default_rng(seed)
    scale = 255.0 / levels if dtype != "uint8" else 1.0
    reference, test = (
        (rng.integers(0, levels + 1, (3, 20, 20)) % 256 * scale).astype(dtype) for _ in range(2)
    )
    reference[0, 0, :2] = 0, 255
    expected = metrics.evaluate(test, reference, intensity=(0.0, 255.0))
    got = evaluate_stored(held(test), held(reference), intensity=(0.0, 255.0), memory=1)
    assert got == expected


ELEMENTS = {
    "uint8": st.integers(0, 255),
    "uint16": st.integers(0, 2**16 - 1),
    "float32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
}


@settings(max_examples=40)
@given(st.data(), st.sampled_from(sorted(ELEMENTS)))
def test_order_statistics_are_exact(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
    values = data.draw(hnp.arrays(dtype, shape, elements=ELEMENTS[dtype]))
    ranks = data.draw(st.lists(st.integers(0, values.size - 1), min_size=1, max_size=4))
    stack = held(values)
    got = order_statistics(stack, ranks, slabs_of(stack, stack, memory=1))
    np.testing.assert_array_equal(got, np.sort(values.ravel())[ranks])


@settings(max_examples=40)
@given(st.data(), st.sampled_from(["float32", "float64"]))
def test_tails_are_exact(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=6))
    values = data.draw(hnp.arrays(dtype, shape, elements=ELEMENTS[dtype]))
    low, high = (data.draw(st.integers(0, values.size - 1)) for _ in range(2))
    ranks = [low, high, min(low + 1, values.size - 1), min(high + 1, values.size - 1)]
    stack = held(values)
    got = tail_values(stack, ranks, slabs_of(stack, stack, memory=1))
    np.testing.assert_array_equal(got, np.sort(values.ravel())[ranks])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tails", [metrics_ranks.TAILS, 0])
def test_percentiles_are_numpys(dtype: str, tails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_ranks, "TAILS", tails)  # 0: always from counts
    reference, _ = volumes(dtype)
    stack = held(reference)
    for percents in ((0.1, 99.9), (25.0, 62.5), (0.0, 100.0)):
        got = stored_percentiles(stack, percents, slabs_of(stack, stack, memory=1))
        assert got == tuple(np.percentile(reference, percents).tolist())


def test_slabs_are_whole_chunks(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.zarr", np.ones((100, 8, 8), np.float32))
    stack = open_stack(path)
    assert stack.chunks == (32, 8, 8)
    lengths = [slab.z.length for slab in slabs_of(stack, stack, memory=70 * 8 * 8 * 8 * 4)]
    assert lengths == [64, 36]
    assert len(slabs_of(stack, stack, memory=1)) == 100


@pytest.mark.parametrize(
    ("chunk", "memory", "slices"),
    [
        (1, 2**30, 4),  # 16 MiB a slice: no more than are fast
        (3, 2**30, 3),
        (32, 2**30, 32),  # a layer of chunks, which would be decoded twice
        (32, 2**29, 32),
        (32, 2**28, 16),  # what the budget holds
        (1, 2**25, 2),
        (1, 1, 1),
    ],
)
def test_slabs_are_no_larger_than_is_fast(chunk: int, memory: int, slices: int) -> None:
    shape = (100, 512, 1024)
    stack = StoredStack(
        Path("-"), shape, np.dtype(np.float32), lambda box: np.empty(box.shape), (chunk, 64, 64)
    )
    slabs = slabs_of(stack, stack, memory)
    assert slabs[0].z.length == slices and slabs[-1].z.stop == 100


def test_large_chunks_are_counted_while_they_are_decoded() -> None:
    shape, dtype = (256, 512, 1024), np.dtype(np.float32)
    large = StoredStack(Path("-"), shape, dtype, lambda box: np.empty(box.shape), (16, 512, 1024))
    plain = StoredStack(Path("-"), shape, dtype, lambda box: np.empty(box.shape))
    decoding, slab = 6 * 32 * 2**20, 16 * 2**20  # of a chunk; of a slice of both
    slabs = slabs_of(large, plain, decoding + 8 * slab)
    assert slabs[0].z.length == 8  # not the 16 that would fit without
    with pytest.raises(InputError, match=r"^memory: expected at least 192 MiB to read a chunk"):
        slabs_of(large, plain, decoding - 1)
    with pytest.raises(InputError, match=r"^memory: expected at least 384 MiB to read a chunk"):
        slabs_of(large, large, decoding)


def test_faults_are_one_clear_line(tmp_path: Path) -> None:
    reference, test = volumes("float32")
    np.save(tmp_path / "x.npy", reference)
    np.save(tmp_path / "short.npy", test[:5])
    np.save(tmp_path / "flat.npy", np.ones_like(test))
    test[3, 4, 5] = np.inf
    np.save(tmp_path / "inf.npy", test)
    for names, argument, expected in (
        (("short.npy", "x.npy"), "test", "shape"),
        (("x.npy", "flat.npy"), "reference", "percentile"),
        (("inf.npy", "x.npy"), "path", "finite"),
        (("none.npy", "x.npy"), "path", "existing"),
    ):
        with pytest.raises(InputError, match=expected) as caught:
            evaluate_stored(*(tmp_path / name for name in names))
        assert caught.value.argument == argument
        assert "\n" not in str(caught.value)
