"""Round trips: intensities, dtype, axes, voxel size and metadata through every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st

from microdiffusion_fast.io import Image, read_volume, write_volume
from microdiffusion_fast.io_common import micrometres_per

SUFFIXES = [".tif", ".tiff", ".ome.tif", ".ome.tiff", ".ome.zarr", ".zarr", ".npy"]
DTYPES = ["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64"]
VOXEL_SIZE = (1.3, 0.45, 0.3)
METADATA = {"kind": "projections", "step_length": 6, "weights": [0.25, 0.75], "note": "µ <&> \n"}


def volume(dtype: str = "uint16", shape: tuple[int, ...] = (5, 12, 14)) -> np.ndarray:
    rng = np.random.default_rng(3)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(size=shape).astype(kind)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_keeps_everything(tmp_path: Path, suffix: str, dtype: str) -> None:
    data = volume(dtype)
    path = tmp_path / f"volume{suffix}"
    assert write_volume(path, data, voxel_size=VOXEL_SIZE, metadata=METADATA) == path
    image = read_volume(str(path))
    np.testing.assert_array_equal(image.data, data)
    assert image.data.dtype == np.dtype(dtype)
    assert image.data.dtype.isnative
    assert image.voxel_size == pytest.approx(VOXEL_SIZE, rel=1e-6)
    assert image.axes == "ZYX"
    assert image.source == path
    assert image.extra == METADATA


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_unknown_voxel_size_stays_unknown(tmp_path: Path, suffix: str) -> None:
    path = write_volume(tmp_path / f"volume{suffix}", volume())
    assert read_volume(path).voxel_size is None
    assert read_volume(path).extra == {}


@given(
    shape=st.tuples(st.integers(2, 7), st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(*[st.floats(1e-3, 1e3)] * 3),
    suffix=st.sampled_from([".tif", ".ome.tif", ".zarr", ".npy"]),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
)
def test_any_shape_and_voxel_size(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    size: tuple[float, float, float],
    suffix: str,
    dtype: str,
) -> None:
    data = volume(dtype, shape)
    path = write_volume(tmp_path_factory.mktemp("any") / f"volume{suffix}", data, voxel_size=size)
    image = read_volume(path)
    np.testing.assert_array_equal(image.data, data)
    # ImageJ TIFF stores pixels per micrometre as a ratio of two 32-bit integers.
    assert image.voxel_size == pytest.approx(size, rel=1e-6)


def test_non_finite_floats_survive(tmp_path: Path) -> None:
    data = volume("float32")
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    for suffix in SUFFIXES:
        path = write_volume(tmp_path / f"volume{suffix}", data)
        np.testing.assert_array_equal(read_volume(path).data, data)


def test_real_volumes_round_trip(tmp_path: Path, real_volume: Path) -> None:
    image = read_volume(real_volume)
    np.testing.assert_array_equal(image.data, tifffile.imread(real_volume))
    assert image.data.dtype == np.uint16
    assert image.voxel_size is None
    for suffix in (".tif", ".ome.tif", ".ome.zarr", ".npy"):
        path = write_volume(tmp_path / f"copy{suffix}", image.data)
        np.testing.assert_array_equal(read_volume(path).data, image.data)


@pytest.mark.parametrize(
    ("unit", "micrometres"),
    [
        ("µm", 1.0),
        ("μm", 1.0),
        ("\\u00B5m", 1.0),
        ("micron", 1.0),
        ("micrometer", 1.0),
        ("nm", 1e-3),
        ("mm", 1e3),
        ("cm", 1e4),
        ("Å", 1e-4),
        ("\u212b", 1e-4),
        ("angstrom", 1e-4),
        ("inch", 25_400.0),
        ("pixel", None),
        ("", None),
        (None, None),
    ],
)
def test_units(unit: str | None, micrometres: float | None) -> None:
    assert micrometres_per(unit, Path("v.tif")) == micrometres


def test_npy_needs_no_sidecar(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.asfortranarray(volume().astype(">u2")))
    image = read_volume(tmp_path / "v.npy")
    np.testing.assert_array_equal(image.data, volume())
    assert image.data.flags.c_contiguous
    assert image.voxel_size is None


def test_tensors_are_written(tmp_path: Path) -> None:
    data = torch.from_numpy(volume("float32")).requires_grad_()
    path = write_volume(tmp_path / "v.npy", data)
    np.testing.assert_array_equal(read_volume(path).data, volume("float32"))


def test_image_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Image(volume()).axes = "XYZ"  # type: ignore[misc]
