"""Projections read block by block: the same pixels as in memory, from every format."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from microdiffusion_fast import store_source
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume, write_volume
from microdiffusion_fast.io_zarr_bounds import chunk_check
from microdiffusion_fast.store_source import open_stack
from microdiffusion_fast.tiling_windows import Box, Span

RNG = np.random.default_rng(0)
DATA = RNG.integers(0, 4000, (7, 20, 33)).astype(np.uint16)
BOX = Box(Span(2, 6), Span(4, 19), Span(8, 33))


def _zarr2(path: Path) -> None:
    zarr.create_array(path, data=DATA[None], zarr_format=2, chunks=(1, 3, 8, 8))


def _zarr3_5d(path: Path) -> None:
    group = zarr.open_group(path, mode="w")
    array = group.create_array(
        "s0", shape=(1, 1, *DATA.shape), dtype="uint16", chunks=(1, 1, 3, 8, 8)
    )
    array[...] = DATA[None, None]
    axes = [{"name": "t"}, {"name": "c"}] + [
        {"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"
    ]
    transforms = [{"type": "scale", "scale": [1, 1, 6.0, 0.5, 0.5]}]
    datasets = [{"path": "s0", "coordinateTransformations": transforms}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


WRITERS: dict[str, Any] = {
    "ours.ome.zarr": lambda path: write_volume(path, DATA, voxel_size=(6.0, 0.5, 0.5)),
    "v2.zarr": _zarr2,
    "five.ome.zarr": _zarr3_5d,
    "plain.tif": lambda path: write_volume(path, DATA, voxel_size=(6.0, 0.5, 0.5)),
    "x.ome.tif": lambda path: write_volume(path, DATA, voxel_size=(6.0, 0.5, 0.5)),
    "packed.tif": lambda path: tifffile.imwrite(path, DATA, compression="zlib", rowsperstrip=4),
    "big_endian.tif": lambda path: tifffile.imwrite(path, DATA, byteorder=">"),
    "a.npy": lambda path: np.save(path, DATA),
    "order.npy": lambda path: np.save(path, np.asfortranarray(DATA)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_block_is_that_of_the_volume(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    stack = open_stack(path)
    assert stack.shape == DATA.shape
    np.testing.assert_array_equal(stack.read(BOX), DATA[BOX.slices])
    assert stack.read(BOX).dtype == np.uint16
    whole = read_volume(path)
    assert stack.voxel_size == whole.voxel_size
    assert stack.extra == whole.extra


def test_metadata_of_projections(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "p.ome.zarr", DATA, metadata={"kind": "projections"})
    assert open_stack(path).extra == {"kind": "projections"}


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "p.ome.zarr", DATA)
    first = open_stack(path).fingerprint()
    assert open_stack(path).fingerprint() == first
    moved = path.rename(tmp_path / "q.ome.zarr")
    assert open_stack(moved).fingerprint() == first
    chunk = next(file for file in moved.rglob("c/**/*") if file.is_file())
    os.utime(chunk, ns=(0, 0))
    assert open_stack(moved).fingerprint() != first


def _missing_chunk(path: Path) -> None:
    write_volume(path, DATA)
    next(file for file in path.rglob("c/**/*") if file.is_file()).unlink()


def _wrong_axes(path: Path) -> None:
    zarr.create_array(path, data=np.ones((2, 7, 20, 33), np.uint8), zarr_format=2)


FAULTS: dict[str, tuple[str, Any, str]] = {
    "missing chunk": ("p.zarr", _missing_chunk, "no chunk"),
    "wrong axes": ("p.zarr", _wrong_axes, "4D"),
    "nothing": ("p.zarr", lambda path: None, "not there"),
    "a folder": ("p.zarr", lambda path: path.mkdir(), "without Zarr metadata"),
    "suffix": ("p.txt", lambda path: path.touch(), "p.txt"),
    "short npy": ("p.npy", lambda path: path.write_bytes(_npy()[:-10]), "p.npy"),
    "text": ("p.tif", lambda path: path.write_text("hello"), "p.tif"),
    "complex": ("p.npy", lambda path: np.save(path, DATA.astype(complex)), "complex"),
}


def _npy() -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, DATA)
    return buffer.getvalue()


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_files_are_one_clear_line(tmp_path: Path, fault: str) -> None:
    name, make, got = FAULTS[fault]
    make(tmp_path / name)
    with pytest.raises(InputError, match=got) as caught:
        open_stack(tmp_path / name)
    assert caught.value.argument == "path"
    assert "\n" not in str(caught.value)


def test_what_a_tiff_claims_of_itself_is_looked_at(tmp_path: Path) -> None:
    """A directory that links to itself, as `read_volume` refuses it."""
    path = write_volume(tmp_path / "p.tif", DATA)
    with tifffile.TiffFile(path) as tif:
        first = tif.pages.first.offset
        count = len(tif.pages.first.tags)
    content = bytearray(path.read_bytes())
    link = first + 2 + 12 * count
    content[link : link + 4] = first.to_bytes(4, "little")
    path.write_bytes(content)
    for read in (read_volume, open_stack):
        with pytest.raises(InputError, match="directories are whole"):
            read(path)  # type: ignore[operator]


def test_chunks_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a block meets, before they are decoded; of a sharded store the shards."""
    seen: list[str] = []

    def watched(array: Any, folder: Path) -> Any:
        check = chunk_check(array, folder)

        def once(path: Path) -> None:
            seen.append(str(path.relative_to(folder)))
            check(path)

        return once

    monkeypatch.setattr(store_source, "chunk_check", watched)
    for name, shards, expected in (
        ("a.zarr", None, product((0, 1), (0, 1, 2), (1, 2, 3, 4))),
        ("b.zarr", (4, 16, 16), product((0, 1), (0, 1), (0, 1, 2))),
    ):
        seen.clear()
        zarr.create_array(tmp_path / name, data=DATA, chunks=(4, 8, 8), shards=shards)
        stack = open_stack(tmp_path / name)
        assert not seen
        for _ in range(2):
            np.testing.assert_array_equal(stack.read(BOX), DATA[BOX.slices])
        assert sorted(seen) == [f"c/{z}/{y}/{x}" for z, y, x in expected]


def test_faults_that_show_when_read(tmp_path: Path) -> None:
    data = DATA.astype(np.float32)
    data[3, 5, 9] = np.nan
    np.save(tmp_path / "nan.npy", data)
    with pytest.raises(InputError, match=r"NaN or Inf at \[3, 5, 9\]"):
        open_stack(tmp_path / "nan.npy").read(BOX)
    path = write_volume(tmp_path / "p.ome.zarr", DATA)
    stack = open_stack(path)
    chunk = next(file for file in path.rglob("c/**/*") if file.is_file())
    broken = bytearray(chunk.read_bytes())
    broken[len(broken) // 2] ^= 1
    chunk.write_bytes(bytes(broken))
    with pytest.raises(InputError, match="^path: expected a complete file or store"):
        stack.read(BOX)
