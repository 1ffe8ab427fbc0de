"""OME-Zarr: NGFF 0.5, 0.4 and plain arrays, and stores that lost or hide something."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume, write_volume

DATA = np.random.default_rng(5).integers(0, 60_000, (6, 16, 18)).astype(np.uint16)
VOXEL_SIZE = (1.3, 0.45, 0.3)
METADATA = {"kind": "projections", "step_length": 6}


def refused(path: Path | str, got: str, **options: Any) -> InputError:
    """Assert that reading gives one clear line that names the path argument and says `got`."""
    with pytest.raises(InputError, match=got) as caught:
        read_volume(path, **options)
    assert caught.value.argument == "path"
    assert str(caught.value).startswith("path: expected ")
    return caught.value


@pytest.fixture
def store(tmp_path: Path) -> Path:
    data = np.random.default_rng(5).normal(size=(40, 16, 150)).astype(np.float32)
    return write_volume(tmp_path / "v.ome.zarr", data)


def test_zarr_is_ngff_05_with_checksums(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.ome.zarr", DATA.astype("float32"), voxel_size=VOXEL_SIZE)
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == 3
    ome: Any = group.attrs["ome"]
    assert ome["version"] == "0.5"
    image = ome["multiscales"][0]
    assert [axis["name"] for axis in image["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in image["axes"]} == {"micrometer"}
    assert image["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": list(VOXEL_SIZE)}
    ]
    array = json.loads((path / "0" / "zarr.json").read_text())
    assert array["fill_value"] == "NaN"
    assert array["dimension_names"] == ["z", "y", "x"]
    zstd = [codec for codec in array["codecs"] if codec["name"] == "zstd"]
    assert zstd[0]["configuration"]["checksum"] is True


@pytest.mark.parametrize("shape", [(6, 16, 18), (1, 1, 6, 16, 18)], ids=["zyx", "tczyx"])
def test_ngff_04(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "v.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    chunks = (1,) * (len(shape) - 3) + (2, 16, 9)
    array = group.create_array("s0", shape=shape, chunks=chunks, dtype=">u2")
    array[...] = DATA.reshape(shape)
    names = "tczyx"[-len(shape) :]
    axes = [{"name": n, **({"unit": "nanometer"} if n in "zyx" else {})} for n in names]
    scale = [1.0] * (len(shape) - 3)
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": axes,
            "coordinateTransformations": [{"type": "scale", "scale": [*scale, 2.0, 1.0, 1.0]}],
            "datasets": [
                {
                    "path": "s0",
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [*scale, 500.0, 200.0, 100.0]}
                    ],
                }
            ],
        }
    ]
    image = read_volume(path)
    np.testing.assert_array_equal(image.data, DATA)
    assert image.data.dtype == np.uint16
    assert image.voxel_size == pytest.approx((1.0, 0.2, 0.1))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_zarr_array(tmp_path: Path, zarr_format: Any) -> None:
    path = tmp_path / "v.zarr"
    array = zarr.create_array(
        path, shape=(6, 16, 18), chunks=(2, 16, 9), dtype="float64", zarr_format=zarr_format
    )
    array[...] = DATA.astype("float64")
    image = read_volume(path)
    np.testing.assert_array_equal(image.data, DATA.astype("float64"))
    assert image.voxel_size is None


def test_sharded_zarr_array(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    array = zarr.create_array(
        path, shape=(6, 16, 18), chunks=(2, 8, 9), shards=(4, 16, 18), dtype="uint16"
    )
    array[...] = DATA
    np.testing.assert_array_equal(read_volume(path).data, DATA)


def test_zarr_bombs(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(2**20,) * 3, chunks=(64,) * 3, dtype="uint8")
    refused(tmp_path / "a.zarr", "bytes declared")
    zarr.create_array(tmp_path / "b.zarr", shape=(8,) * 3, chunks=(2048,) * 3, dtype="uint8")
    refused(tmp_path / "b.zarr", "2048")


def test_all_zero_chunks_are_written(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.zarr", np.zeros((40, 16, 150), np.uint16))
    assert read_volume(path).data.max() == 0


def test_missing_chunk(store: Path) -> None:
    (store / "0" / "c" / "1" / "0" / "1").unlink()
    refused(store, "no chunk c/1/0/1")
    partial = read_volume(store, allow_missing_chunks=True).data
    assert np.isnan(partial[32:, :, 128:]).all()
    assert np.isfinite(partial[:32]).all()


def test_flipped_bits_are_found(store: Path) -> None:
    chunk = store / "0" / "c" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    refused(store, "v.ome.zarr")


def test_truncated_chunk(store: Path) -> None:
    chunk = store / "0" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-100])
    refused(store, "v.ome.zarr")


def test_links_out_of_a_store(store: Path, tmp_path: Path) -> None:
    chunk = store / "0" / "c" / "0" / "0" / "0"
    shutil.move(chunk, tmp_path / "secret")
    chunk.symlink_to(tmp_path / "secret")
    refused(store, "secret")
    chunk.unlink()
    shutil.move(tmp_path / "secret", chunk)
    read_volume(store)
    (store / "link").symlink_to(tmp_path, target_is_directory=True)
    refused(store, "link")


def test_dataset_path_out_of_a_store(store: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "secret.zarr", DATA)
    group = json.loads((store / "zarr.json").read_text())
    for path in ("../secret.zarr/0", "/etc", "0/../../secret.zarr/0", "", "1", 7):
        group["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = path
        (store / "zarr.json").write_text(json.dumps(group))
        refused(store, "got")


def test_group_that_is_no_image(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "v.zarr", mode="w").create_group("series0")
    refused(tmp_path / "v.zarr", "series0")


@pytest.mark.parametrize("shape", [(16, 18), (2, 3, 16, 18)])
def test_zarr_that_is_no_stack(tmp_path: Path, shape: tuple[int, ...]) -> None:
    zarr.create_array(tmp_path / "v.zarr", data=np.ones(shape, np.uint8))
    refused(tmp_path / "v.zarr", f"{len(shape)}D")


@pytest.mark.parametrize(
    ("change", "got"), [("unit", "furlong"), ("scale", "-1.0"), ("json", "zarr.json")]
)
def test_zarr_metadata_that_means_nothing(tmp_path: Path, change: str, got: str) -> None:
    store = write_volume(tmp_path / "v.zarr", DATA, voxel_size=(1, 1, 1))
    group = json.loads((store / "zarr.json").read_text())
    image = group["attributes"]["ome"]["multiscales"][0]
    image["axes"][2] |= {"unit": "furlong"} if change == "unit" else {}
    if change == "scale":
        image["datasets"][0]["coordinateTransformations"][0]["scale"][2] = -1.0
    (store / "zarr.json").write_text("{" if change == "json" else json.dumps(group))
    refused(store, got)
