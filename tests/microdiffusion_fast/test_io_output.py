"""Outputs: whole or not at all, never over something else, and values that fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import check_output, read_volume, write_volume
from microdiffusion_fast.io_output import prepare_output

DATA = np.random.default_rng(5).integers(0, 60_000, (6, 16, 18)).astype(np.uint16)
VOXEL_SIZE = (1.3, 0.45, 0.3)
METADATA = {"kind": "projections", "step_length": 6}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    data = np.random.default_rng(5).normal(size=(40, 16, 150)).astype(np.float32)
    return write_volume(tmp_path / "v.ome.zarr", data)


def test_an_output_is_named_as_the_caller_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, overwrite in (("file", False), ("file", True), ("none/v.zarr", False)):
        place = tmp_path / name
        for options, expected in (({}, "path"), ({"argument": "output"}, "output")):
            with pytest.raises(InputError) as caught:
                prepare_output(place, overwrite=overwrite, store=True, **options)
            assert caught.value.argument == expected


SUFFIXES = [".tif", ".ome.tif", ".zarr", ".npy"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_existing_output_is_refused_and_replaced(tmp_path: Path, suffix: str) -> None:
    path = write_volume(tmp_path / f"v{suffix}", DATA, voxel_size=(1, 1, 1), metadata={"a": 1})
    with pytest.raises(InputError, match=r"^path: expected a new file.*--overwrite.*exists"):
        write_volume(path, DATA + 1)
    np.testing.assert_array_equal(read_volume(path).data, DATA)
    write_volume(path, DATA[:3], overwrite=True)
    image = read_volume(path)
    np.testing.assert_array_equal(image.data, DATA[:3])
    assert image.voxel_size is None
    assert image.extra == {}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: BaseException
) -> None:
    path = write_volume(tmp_path / f"v{suffix}", DATA)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(tifffile.TiffWriter, "write", fail)
    monkeypatch.setattr(np.lib.format, "write_array", fail)
    monkeypatch.setattr(zarr.Array, "__setitem__", fail)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    for overwrite, target in ((True, path), (False, tmp_path / f"new{suffix}")):
        with pytest.raises(expected):
            write_volume(target, DATA + 1, overwrite=overwrite)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_volume(path).data, DATA)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_store_is_restored_when_its_replacement_cannot_move_in(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_volume(store).data
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match="Input/output error"):
        write_volume(store, DATA, overwrite=True)
    np.testing.assert_array_equal(read_volume(store).data, before)
    assert [entry.name for entry in store.parent.iterdir()] == [store.name]


def test_overwrite_never_deletes_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "v.zarr").mkdir()
    (tmp_path / "v.zarr" / "notes.txt").write_text("mine")
    (tmp_path / "v.tif").mkdir()
    (tmp_path / "w.zarr").write_text("mine")
    for name in ("v.zarr", "v.tif", "w.zarr"):
        with pytest.raises(InputError, match=r"^path: expected a .* to overwrite"):
            write_volume(tmp_path / name, DATA, overwrite=True)
    assert (tmp_path / "v.zarr" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_outputs_that_cannot_be_written(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir(mode=0o555)
    for folder in ("absent", "file"):
        with pytest.raises(InputError, match=r"^path: "):
            check_output(tmp_path / folder / f"v{suffix}")
    if os.geteuid() != 0:  # root may write anywhere
        with pytest.raises(InputError, match="read-only"):
            check_output(tmp_path / "locked" / f"v{suffix}")
    if Path("/proc/self").is_dir():  # a folder that not even root can write to
        with pytest.raises(InputError, match=r"^path: "):
            write_volume(f"/proc/v{suffix}", DATA)
    with pytest.raises(InputError, match=r"^path: expected a name ending in"):
        check_output(tmp_path / "v.png")


@pytest.mark.parametrize(
    ("data", "options", "argument"),
    [
        (np.ones((4, 4)), {}, "data"),
        (np.ones((0, 4, 4)), {}, "data"),
        (np.array([[["a"]]]), {}, "data"),
        (np.ones((1, 4, 4)), {}, "data"),
        (DATA, {"voxel_size": (1, 1)}, "voxel_size"),
        (DATA, {"voxel_size": (1, 0, 1)}, "voxel_size"),
        (DATA, {"voxel_size": (1, float("nan"), 1)}, "voxel_size"),
        (DATA, {"voxel_size": "abc"}, "voxel_size"),
        (DATA, {"metadata": {"a": float("nan")}}, "metadata"),
        (DATA, {"metadata": {"a": DATA}}, "metadata"),
        (DATA, {"dtype": "nonsense"}, "dtype"),
        (DATA, {"dtype": "complex64"}, "dtype"),
        (DATA.astype(np.int64), {}, "dtype"),
    ],
)
def test_arguments_of_write(
    tmp_path: Path, data: Any, options: dict[str, Any], argument: str
) -> None:
    with pytest.raises(InputError) as caught:
        write_volume(tmp_path / "v.ome.tif", data, **options)
    assert caught.value.argument == argument
    assert not list(tmp_path.iterdir())


def test_check_output_agrees_with_write(tmp_path: Path) -> None:
    path = check_output(tmp_path / "v.tif")
    assert path == (tmp_path / "v.tif").resolve()
    write_volume(path, DATA)
    with pytest.raises(InputError, match=r"^path: expected a new file"):
        check_output(path)
    assert check_output(path, overwrite=True) == path


def test_floats_round_to_the_nearest_integer(tmp_path: Path) -> None:
    data = np.array([0.4, 0.6, 254.6, 255.4, -0.4]).reshape(5, 1, 1)
    path = write_volume(tmp_path / "v.npy", data, dtype="uint8")
    assert read_volume(path).data.ravel().tolist() == [0, 1, 255, 255, 0]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.0, 255.6], "uint8"),
        ([-0.6, 1.0], "uint16"),
        ([0.0, float("nan")], "uint8"),
        ([0.0, float("inf")], "int16"),
        ([0.0, 2.0**63], "int64"),
        ([0.0, 1e39], "float32"),
    ],
)
def test_values_that_the_dtype_cannot_hold(tmp_path: Path, values: list[float], dtype: str) -> None:
    data = np.array(values).reshape(-1, 1, 1)
    with pytest.raises(InputError, match=r"^dtype: expected one that holds every value"):
        write_volume(tmp_path / "v.npy", data, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_integer_overflow_between_integers(tmp_path: Path) -> None:
    data = np.full((2, 2, 2), 65_535, np.uint16)
    with pytest.raises(InputError, match=r"^dtype: .*-32768 to 32767"):
        write_volume(tmp_path / "v.tif", data, dtype=np.int16)
    path = write_volume(tmp_path / "v.tif", data, dtype=np.uint32)
    assert read_volume(path).data.dtype == np.uint32
