"""Projections: geometry, validation, conversion from anything, files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume, write_volume
from microdiffusion_fast.projections import Projections

K, Y, X = 4, 9, 11
IMAGES = np.random.default_rng(2).random((K, Y, X)).astype(np.float32)
WEIGHTS = (0.1, 0.2, 0.4, 0.2, 0.1)


def refused(argument: str, got: str, images: Any = IMAGES, **options: Any) -> InputError:
    """Assert that `from_any` gives one clear line that names `argument` and says `got`."""
    with pytest.raises(InputError, match=got) as caught:
        Projections.from_any(images, **({"step_length": 6} | options))
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)
    return caught.value


# Geometry


def test_defaults() -> None:
    made = Projections.from_any(IMAGES, step_length=6)
    assert (made.step_length, made.stride, made.start, made.depth) == (6, 6, 0, 24)
    assert (made.weights, made.voxel_size, made.source) == (None, None, None)
    assert (made.images.dtype, made.dtype) == (torch.float32, "float32")
    np.testing.assert_array_equal(made.images.numpy(), IMAGES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.depth = 3  # type: ignore[misc]


@given(
    step_length=st.integers(2, 9),
    stride=st.integers(1, 12),
    start=st.integers(0, 7),
    beyond=st.integers(-3, 14),
)
def test_depth_holds_exactly_the_windows(
    step_length: int, stride: int, start: int, beyond: int
) -> None:
    last = start + (K - 1) * stride + step_length
    windows = [a for a in range(start, last + beyond, stride) if a + step_length <= last + beyond]
    options: dict[str, Any] = {"step_length": step_length, "stride": stride, "start": start}
    assert Projections.from_any(IMAGES, **options).depth == last
    if len(windows) == K:
        assert Projections.from_any(IMAGES, **options, depth=last + beyond).depth == last + beyond
    else:
        with pytest.raises(InputError):
            Projections.from_any(IMAGES, **options, depth=last + beyond)


def test_count_that_does_not_match_depth() -> None:
    error = refused("projections", "4 images", depth=30)
    assert "5 images" in error.expected
    assert "depth 30" in error.expected
    assert "3 images" in refused("projections", "4 images", depth=23).expected
    assert (
        "at most the 20 slices" in refused("step_length", "24", step_length=24, depth=20).expected
    )


@pytest.mark.parametrize("value", [0, 1, -6, 2.5, "6", True, None, float("nan")])
def test_step_length(value: Any) -> None:
    refused("step_length", "got", step_length=value)


@pytest.mark.parametrize("name", ["stride", "start", "depth"])
@pytest.mark.parametrize("value", [-1, 1.5, "a", True])
def test_other_integers(name: str, value: Any) -> None:
    refused(name, "got", **{name: value})


def test_stride_zero() -> None:
    refused("stride", "got 0", stride=0)


def test_numpy_integers_are_integers() -> None:
    step_length: Any = np.int64(6)
    made = Projections.from_any(IMAGES, step_length=step_length, stride=3)
    assert type(made.step_length) is int
    assert made.depth == 15


@pytest.mark.parametrize(
    ("weights", "got"),
    [
        ((0.5, 0.5), "2 numbers"),
        ((1.2, -0.2, 0, 0, 0, 0), "-0.2"),
        ((0.2,) * 6, "1.2"),
        ((0.0,) * 6, "a sum of 0"),
        ((float("nan"),) * 6, "nan"),
        ("abcdef", "abcdef"),
        (0.5, "0.5"),
    ],
)
def test_weights_that_are_refused(weights: Any, got: str) -> None:
    refused("weights", got, weights=weights)


def test_weights_are_kept() -> None:
    made = Projections.from_any(IMAGES, step_length=5, weights=np.array(WEIGHTS))
    assert made.weights == WEIGHTS
    sixths = torch.full((6,), 1 / 6)  # float32 sixths do not sum to 1 exactly
    assert Projections.from_any(IMAGES, step_length=6, weights=sixths).weights is not None


@pytest.mark.parametrize("size", [(1, 1), (1, 1, 0), (1, 1, -1), (1, 1, float("inf")), "abc", 3])
def test_voxel_sizes_that_are_refused(size: Any) -> None:
    refused("voxel_size", "got", voxel_size=size)


# Images


def _with(value: float, dtype: str = "float32") -> np.ndarray:
    images = IMAGES.astype(dtype)
    images[1, 2, 3] = images[3, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (IMAGES[:1], r"1 in shape \(1, 9, 11\)"),
        (IMAGES[0], "shape"),
        (IMAGES[None], "shape"),
        (IMAGES[:0], "shape"),
        (IMAGES[:, :7], r"\(4, 7, 11\)"),
        (np.full((K, Y, X), 7, np.uint8), "7 everywhere"),
        (_with(np.nan), r"2 NaN or Inf, the first at \[k, y, x\] = \[1, 2, 3\]"),
        (_with(-np.inf), "2 NaN or Inf"),
        (torch.from_numpy(_with(np.nan)), "2 NaN or Inf"),
        (_with(1e300, "float64"), "larger float64 values"),
        (torch.from_numpy(_with(1e300, "float64")), "larger float64 values"),
        (IMAGES > 0.5, "bool"),
        (torch.from_numpy(IMAGES > 0.5), "bool"),
        (IMAGES.astype(np.complex64), "complex64"),
        (IMAGES.astype(object), "object"),
        (IMAGES.astype(str), "str"),
        ([[[1.0]]], "list"),
        (None, "NoneType"),
    ],
)
def test_images_that_are_refused(images: Any, got: str) -> None:
    refused("projections", got, images)


DTYPES = ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "float16", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["numpy", "torch", "dlpack", "big-endian"])
def test_conversion_to_float32(dtype: str, kind: str) -> None:
    data = (IMAGES * 100).astype(dtype)
    images: Any = data
    if kind == "torch":
        images = torch.from_numpy(data)
    elif kind == "dlpack":
        images = DLPack(data)
    elif kind == "big-endian":
        images = data.astype(data.dtype.newbyteorder(">"))
    made = Projections.from_any(images, step_length=6)
    assert made.dtype == dtype
    assert made.images.is_contiguous()
    np.testing.assert_array_equal(made.images.numpy(), data.astype(np.float32))


class DLPack:
    """An array of some other library: nothing but the protocol."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()


def test_the_images_are_a_copy() -> None:
    for source in (IMAGES.copy(), torch.from_numpy(IMAGES.copy())):
        made = Projections.from_any(source, step_length=6)
        source[...] = 0
        np.testing.assert_array_equal(made.images.numpy(), IMAGES)


def test_views_and_read_only_arrays() -> None:
    view = IMAGES[::-1, :, ::-1]
    view.flags.writeable = False
    made = Projections.from_any(view, step_length=6)
    np.testing.assert_array_equal(made.images.numpy(), view)
    strided = torch.from_numpy(IMAGES).transpose(1, 2)
    assert Projections.from_any(strided, step_length=6).images.is_contiguous()


def test_integers_beyond_float32_are_noted() -> None:
    images = (IMAGES * 2**30).astype(np.int64)
    with pytest.warns(UserWarning, match=r"int64 intensities above 2\*\*24 are rounded"):
        Projections.from_any(images, step_length=6)


def test_zarr_array(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "p.zarr", data=IMAGES)
    made = Projections.from_any(array, step_length=6)
    np.testing.assert_array_equal(made.images.numpy(), IMAGES)


def test_constructor_validates() -> None:
    with pytest.raises(InputError, match=r"^projections: expected a float32 tensor"):
        Projections(torch.from_numpy(IMAGES).double(), 6)
    with pytest.raises(InputError, match=r"^step_length"):
        Projections(torch.from_numpy(IMAGES), 1)


def test_projections_from_projections() -> None:
    first = Projections.from_any(IMAGES, step_length=5, weights=WEIGHTS, voxel_size=(1, 2, 3))
    again = Projections.from_any(first)
    assert again.images is first.images
    assert (again.weights, again.depth, again.voxel_size) == (WEIGHTS, 20, (1, 2, 3))
    other = Projections.from_any(first, step_length=6)
    assert (other.weights, other.depth, other.voxel_size) == (None, 24, (1, 2, 3))


# Scale


def test_intensity_range() -> None:
    made = Projections.from_any(np.arange(4 * 8 * 8).reshape(4, 8, 8), step_length=6)
    assert made.intensity_range(0, 100) == (0, 255)
    low, high = made.intensity_range()
    assert low == pytest.approx(0.255)
    assert high == pytest.approx(254.745)


def test_intensity_range_of_a_flat_background() -> None:
    images = np.zeros((4, 64, 64))
    images[0, 0, 0] = 5
    assert Projections.from_any(images, step_length=6).intensity_range() == (0, 5)


@pytest.mark.parametrize("limits", [(50, 50), (-1, 99), (0, 101), (float("nan"), 99)])
def test_intensity_range_limits(limits: tuple[float, float]) -> None:
    with pytest.raises(InputError):
        Projections.from_any(IMAGES, step_length=6).intensity_range(*limits)


# Files


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".ome.zarr", ".npy"])
def test_save_and_read(tmp_path: Path, suffix: str) -> None:
    made = Projections.from_any(
        (IMAGES * 100).astype(np.uint16),
        step_length=5,
        stride=3,
        weights=WEIGHTS,
        start=2,
        depth=18,
        voxel_size=(2.0, 0.5, 0.4),
    )
    path = made.save(tmp_path / f"p{suffix}")
    again = Projections.from_any(path)
    for name in ("step_length", "stride", "weights", "start", "depth", "voxel_size", "dtype"):
        assert getattr(again, name) == getattr(made, name), name
    assert again.source == str(path)
    torch.testing.assert_close(again.images, made.images, rtol=0, atol=0)
    # Other programs see the spacing of the projections, stride * voxel z.
    assert read_volume(path).voxel_size == pytest.approx((6.0, 0.5, 0.4))
    with pytest.raises(InputError, match=r"^path: expected a new file"):
        made.save(path)
    made.save(path, overwrite=True)


def test_explicit_arguments_win_over_the_file(tmp_path: Path) -> None:
    made = Projections.from_any(
        IMAGES, step_length=5, stride=3, weights=WEIGHTS, start=2, voxel_size=(2, 1, 1)
    )
    path = made.save(tmp_path / "p.tif")
    again = Projections.from_any(path, start=0, depth=14, voxel_size=(3, 1, 1))
    assert (again.start, again.depth, again.stride, again.weights) == (0, 14, 3, WEIGHTS)
    assert again.voxel_size == (3, 1, 1)
    # A geometry belongs together: another step length drops the rest of the stored one.
    other = Projections.from_any(path, step_length=6)
    assert (other.stride, other.start, other.weights, other.depth) == (6, 0, None, 24)
    assert other.voxel_size == (2, 1, 1)


def test_a_cropped_file_is_noticed(tmp_path: Path) -> None:
    path = Projections.from_any(IMAGES, step_length=6).save(tmp_path / "p.npy")
    extra = read_volume(path).extra
    write_volume(path, IMAGES[:3], metadata=extra, overwrite=True)
    refused("projections", "3 images", path, step_length=None)


def test_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    tifffile.imwrite(
        path,
        (IMAGES * 100).astype(np.uint16),
        imagej=True,
        resolution=(2, 4),
        metadata={"axes": "ZYX", "spacing": 6.0, "unit": "um"},
    )
    made = Projections.from_any(str(path), step_length=4, stride=3)
    # The spacing of the file is that of the projections, so a voxel is spacing / stride long.
    assert made.voxel_size == pytest.approx((2.0, 0.25, 0.5))
    assert made.dtype == "uint16"
    error = refused("step_length", "none stored in", path, step_length=None)
    assert "--step-length" in error.expected


def test_file_with_broken_geometry(tmp_path: Path) -> None:
    metadata = {"kind": "projections", "step_length": "six"}
    path = write_volume(tmp_path / "p.npy", IMAGES, metadata=metadata)
    refused("step_length", "six", path, step_length=None)


def test_missing_file(tmp_path: Path) -> None:
    refused("path", "does not exist", tmp_path / "absent.tif")


def test_operator() -> None:
    forward_model = pytest.importorskip("microdiffusion_fast.forward_model")
    made = Projections.from_any(IMAGES, step_length=5, stride=3, weights=WEIGHTS, start=2, depth=18)
    a = made.operator
    assert isinstance(a, forward_model.AxialProjection)
    volume = torch.rand(18, Y, X, dtype=torch.float64)
    expected = torch.stack(
        [
            sum((w * volume[2 + 3 * k + i] for i, w in enumerate(WEIGHTS)), torch.zeros(Y, X))
            for k in range(K)
        ]
    )
    torch.testing.assert_close(a(volume), expected)


def test_real_volume_as_projections(real_volume: Path) -> None:
    made = Projections.from_any(real_volume, step_length=6)
    assert made.dtype == "uint16"
    low, high = made.intensity_range()
    assert 0 <= low < high <= 65_535
