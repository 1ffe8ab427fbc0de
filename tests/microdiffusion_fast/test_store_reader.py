"""Tiles get the right pixels whatever is kept, and chunks are decoded as often as predicted."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import GzipCodec, ZstdCodec

from microdiffusion_fast.store_reader import (
    TileReader,
    cell_of,
    pixels_to_decode,
    reading_bytes,
)
from microdiffusion_fast.store_source import StoredStack, open_stack
from microdiffusion_fast.tiling import Reach, TilePlan, plan_tiles
from microdiffusion_fast.tiling_windows import Box, Windows

REACH = Reach(5, 3, 2, 4, 1)


def stored(data: np.ndarray, chunks: tuple[int, int, int]) -> StoredStack:
    shape = (data.shape[0], data.shape[1], data.shape[2])
    return StoredStack(Path("-"), shape, data.dtype, lambda box: data[box.slices], chunks)


@st.composite
def cases(draw: st.DrawFn) -> tuple[StoredStack, np.ndarray, TilePlan]:
    count = draw(st.integers(2, 20))
    height, width = draw(st.integers(8, 70)), draw(st.integers(8, 70))
    step = draw(st.integers(2, 4))
    windows = Windows(step * count, count, step, step, 0, (step - 1) / 2)
    shards = tuple(draw(st.integers(4, 20)) for _ in range(3))
    plan = plan_tiles((windows.depth, height, width), windows, REACH, shards=shards, core=shards)
    data = np.arange(count * height * width, dtype=np.int32).reshape(count, height, width)
    chunks = (draw(st.integers(1, 12)), draw(st.integers(1, 200)), draw(st.integers(1, 200)))
    return stored(data, chunks), data, plan


def cells(stack: StoredStack) -> int:
    """Bytes of all of it in whole cells."""
    sizes = zip(stack.shape, cell_of(stack), strict=True)
    return math.prod(-(-n // c) * c for n, c in sizes) * stack.dtype.itemsize


@given(cases(), st.floats(0, 1.2), st.randoms(use_true_random=False))
def test_tiles_get_their_pixels(
    case: tuple[StoredStack, np.ndarray, TilePlan], share: float, random: object
) -> None:
    stack, data, plan = case
    keep = int(share * cells(stack))
    reader = TileReader(stack, plan, keep=keep)
    for number, tile in enumerate(plan):
        np.testing.assert_array_equal(reader.read(number), data[tile.read.slices])
        kept = sum(entry.data.nbytes for entry in reader._kept.values())
        assert kept == reader._bytes <= keep
    assert not reader._kept  # nothing is left that nobody needs
    assert data.size <= reader.pixels <= pixels_to_decode(stack, plan, keep=keep)
    if share >= 1:
        assert reader.pixels == data.size
    order = list(range(len(plan)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for number in order:  # as the workers of a cluster take them
        np.testing.assert_array_equal(reader.read(number), data[plan[number].read.slices])
        assert reader._bytes <= keep


def test_what_is_read_may_be_overwritten() -> None:
    windows = Windows(24, 4, 6, 6, 0, 2.5)
    plan = plan_tiles((24, 40, 40), windows, REACH, shards=(12, 20, 20), core=(12, 20, 20))
    data = np.random.default_rng(0).random((4, 40, 40)).astype(np.float32)
    reader = TileReader(stored(data.copy(), (4, 16, 16)), plan, keep=2**20)
    for number, tile in enumerate(plan):
        got = reader.read(number)
        np.testing.assert_array_equal(got, data[tile.read.slices])
        got[...] = np.nan


def _zarr(path: Path, data: np.ndarray, codec: Any) -> None:
    array = zarr.create_array(
        path, shape=data.shape, dtype=data.dtype, chunks=data.shape, compressors=codec
    )
    array[...] = data


LARGE: dict[str, Callable[[Path, np.ndarray], object]] = {
    "zstd.zarr": lambda path, data: _zarr(path, data, ZstdCodec()),
    "gzip.zarr": lambda path, data: _zarr(path, data, GzipCodec()),
    "raw.zarr": lambda path, data: _zarr(path, data, None),
    "strips.tif": lambda path, data: tifffile.imwrite(
        path, data, compression="zlib", rowsperstrip=data.shape[1], photometric="minisblack"
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_chunk_larger_than_a_tile_takes_what_is_said(tmp_path: Path, name: str) -> None:
    data = np.random.default_rng(0).integers(0, 4000, (4, 700, 700)).astype(np.uint16)
    LARGE[name](tmp_path / name, data)
    stack = open_stack(tmp_path / name)
    windows = Windows(24, 4, 6, 6, 0, 2.5)
    plan = plan_tiles((24, 700, 700), windows, REACH, shards=(24, 20, 20), core=(24, 20, 20))
    reader = TileReader(stack, plan, keep=0)
    reader.read(0)  # the first time imports, and makes threads
    tracemalloc.start()
    try:
        got = reader.read(1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(got, data[plan[1].read.slices])
    assert 2 * got.nbytes < reading_bytes(stack) / 6 < peak <= reading_bytes(stack)


def test_cells_are_whole_chunks_of_useful_size() -> None:
    def cell(shape: tuple[int, int, int], chunks: tuple[int, int, int]) -> tuple[int, int, int]:
        load = lambda box: np.empty(Box(*box).shape)  # noqa: E731
        return cell_of(StoredStack(Path("-"), shape, np.dtype("u2"), load, chunks))

    assert cell((100, 900, 900), (32, 128, 128)) == (32, 128, 128)
    assert cell((100, 900, 900), (1, 1, 1)) == (8, 64, 64)  # mapped
    assert cell((100, 900, 900), (4, 100, 300)) == (4, 100, 300)
    assert cell((100, 2000, 2000), (1, 2000, 2000)) == (1, 2000, 2000)  # one by one
    assert cell((100, 2000, 2000), (1, 4, 2000)) == (1, 64, 2000)  # strips
    assert cell((5, 20, 900), (1, 1, 1)) == (5, 20, 64)
