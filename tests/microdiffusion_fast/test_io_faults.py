"""Files that are wrong, hostile or half there: each is one InputError, and outputs are whole."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import pytest
import tifffile
import zarr

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume, write_volume

DATA = np.random.default_rng(5).integers(0, 60_000, (6, 16, 18)).astype(np.uint16)


def refused(path: Path | str, got: str, **options: Any) -> InputError:
    """Assert that reading gives one clear line that names the path argument and says `got`."""
    with pytest.raises(InputError, match=got) as caught:
        read_volume(path, **options)
    assert caught.value.argument == "path"
    assert str(caught.value).startswith("path: expected ")
    return caught.value


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.tif", "does not exist")


def test_folder_that_is_no_zarr_store(tmp_path: Path) -> None:
    refused(tmp_path, "a folder without Zarr metadata")


@pytest.mark.parametrize("name", ["v.czi", "v", "v.zarr.zip", "v.npz"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    error = refused(tmp_path / name, re.escape(name))
    assert ".ome.zarr" in error.expected


@pytest.mark.parametrize("path", ["", "a\0b.tif", 3, None])
def test_what_is_no_path(path: Any) -> None:
    refused(path, "got")


def test_name_too_long() -> None:
    refused("x" * 5000 + ".tif", "got")


def test_zarr_file_and_fifo(tmp_path: Path) -> None:
    (tmp_path / "v.zarr").write_bytes(b"x")
    refused(tmp_path / "v.zarr", "a file")
    os.mkfifo(tmp_path / "v.npy")  # opening it would wait for ever
    refused(tmp_path / "v.npy", "which is not one")


@pytest.mark.parametrize("dtype", ["complex64", "bool"])
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".zarr"])
def test_values_that_are_no_intensities(tmp_path: Path, dtype: str, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    data = np.ones((3, 16, 18), dtype)
    if suffix == ".tif":
        tifffile.imwrite(path, data, photometric="minisblack")
    elif suffix == ".npy":
        np.save(path, data)
    else:
        zarr.create_array(path, data=data)
    refused(path, dtype)
    with pytest.raises(InputError, match=f"^data: .*{dtype}"):
        write_volume(tmp_path / "out.npy", data)


def test_npy_bomb(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    with path.open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**15, 2**15)}
        np.lib.format.write_array_header_1_0(file, header)
    refused(path, "v.npy")


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".zarr"])
def test_max_bytes(tmp_path: Path, suffix: str) -> None:
    path = write_volume(tmp_path / f"v{suffix}", DATA)
    assert read_volume(path, max_bytes=DATA.nbytes).data.shape == DATA.shape
    refused(path, f"{DATA.nbytes:,} bytes declared", max_bytes=DATA.nbytes - 1)


@pytest.mark.parametrize("content", [b"", b"II*\0", b"\x93NUMPY", b"PK\x03\x04" + bytes(40)])
@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy"])
def test_garbage(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"v{suffix}").write_bytes(content)
    refused(tmp_path / f"v{suffix}", "got")


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    objects = np.empty((2, 2, 2), object)
    objects[...] = Payload(mark)
    np.save(tmp_path / "v.npy", objects, allow_pickle=True)
    refused(tmp_path / "v.npy", "v.npy")
    store = tmp_path / "v.zarr"
    zarr.create_array(store, data=DATA, chunks=DATA.shape, zarr_format=2, filters=None)
    meta = json.loads((store / ".zarray").read_text())
    meta |= {"compressor": None, "filters": [{"id": "pickle", "protocol": 5}]}
    (store / ".zarray").write_text(json.dumps(meta))
    chunk = next(store.glob("0*"))
    (chunk if chunk.is_file() else chunk / "0" / "0").write_bytes(
        bytes(numcodecs.Pickle().encode(objects))
    )
    refused(store, "pickle")
    assert not mark.exists()


def test_npy_shorter_than_declared_and_foreign_sidecar(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.npy", DATA, voxel_size=(1, 1, 1))
    np.save(path, DATA[:3])
    refused(path, r"\[6, 16, 18\]")
    (tmp_path / "v.npy.json").write_text("{")
    refused(path, "v.npy.json")
    (tmp_path / "v.npy.json").unlink()
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, "v.npy")


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")  # numpy parsing the noise
@pytest.mark.parametrize("name", ["v.tif", "v.ome.tif", "v.npy", "zarr.json", "0/zarr.json"])
def test_mutated_headers_raise_nothing_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / ("v.zarr" if name.endswith("json") else name)
    write_volume(path, DATA, voxel_size=(1, 2, 3), metadata={"a": 1})
    file = path / name if path.is_dir() else path
    content = file.read_bytes()
    rng = np.random.default_rng(11)
    refusals = 0
    for _ in range(150):
        changed = bytearray(content)
        for place in rng.integers(0, min(len(content), 600), 3):
            changed[place] = rng.integers(256)
        file.write_bytes(changed)
        try:
            read_volume(path, max_bytes=2**26)
        except InputError:
            refusals += 1
    assert refusals > 20


def test_any_value_in_ngff_metadata(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.zarr", DATA, voxel_size=(1, 2, 3))
    group = json.loads((path / "zarr.json").read_text())
    values: list[Any] = [None, 0, -1, True, "x", [], {}, float("inf"), 2**70]
    places = [place for place in _places(group) if "ome" in place]
    assert len(places) > 20
    for place in places:
        for value in values:
            changed = json.loads(json.dumps(group))
            node = changed
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = value
            (path / "zarr.json").write_text(json.dumps(changed))
            try:
                size = read_volume(path).voxel_size
            except InputError:
                continue
            assert size is None or (len(size) == 3 and min(size) > 0)


def _places(node: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = list(node) if isinstance(node, dict) else range(len(node) if type(node) is list else 0)
    return [p for key in keys for p in ((*place, key), *_places(node[key], (*place, key)))]
