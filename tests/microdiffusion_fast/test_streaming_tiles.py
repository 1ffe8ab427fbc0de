"""One tile after the other: read ahead, halved where a GPU has no room, through pinned buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.small_network import random_network
from microdiffusion_fast import streaming_tiles
from microdiffusion_fast.denoiser import save_denoiser
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.streaming import stream_reconstruct
from microdiffusion_fast.streaming_tiles import TileJob, TileReceipt, TileWorker, run_tiles
from microdiffusion_fast.streaming_upload import Uploader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    generator = torch.Generator().manual_seed(0)
    images = 1000 * torch.rand((6, 28, 24), generator=generator)
    Projections(images, step_length=4).save(folder / "p.zarr")
    save_denoiser(folder / "network.safetensors", random_network(generator))
    return folder


def stream(folder: Path, output: Path, **options: Any) -> np.ndarray:
    stream_reconstruct(
        folder / "p.zarr",
        output,
        denoiser=folder / "network.safetensors",
        adapt=False,
        chunks=(6, 8, 8),
        memory="64.6MiB",
        **options,
    )
    return read_volume(output).data


def test_the_next_tile_is_read_while_one_is_computed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    read, compute = TileWorker._read, TileWorker._compute

    def reading(self: TileWorker, number: int) -> Any:
        events.append(f"read {number}")
        return read(self, number)

    def computing(self: TileWorker, number: int, images: Any) -> Any:
        if self._ahead is not None:
            self._ahead[1].result()  # it does not wait for this tile
        events.append(f"compute {number}")
        return compute(self, number, images)

    monkeypatch.setattr(TileWorker, "_read", reading)
    monkeypatch.setattr(TileWorker, "_compute", computing)
    stream(folder, tmp_path / "v.zarr")
    count = len(events) // 2
    expected = ["read 0"]
    for number in range(count):
        expected += [f"read {number + 1}"] * (number + 1 < count) + [f"compute {number}"]
    assert events == expected and count > 2


def test_the_order_and_what_was_announced_change_no_bit(folder: Path, tmp_path: Path) -> None:
    def odd(job: TileJob, tiles: Sequence[int]) -> Iterator[TileReceipt]:
        with TileWorker(job) as worker:
            for number in reversed(tiles):
                yield worker.run(number, following=tiles[0])  # mostly another comes

    np.testing.assert_array_equal(
        stream(folder, tmp_path / "v.zarr"), stream(folder, tmp_path / "w.zarr", runner=odd)
    )


def out_of_memory_above(monkeypatch: pytest.MonkeyPatch, columns: int) -> list[int]:
    """Let tiles with more columns fail, as on a GPU without room; the list gets those tried."""
    tried: list[int] = []
    compute = streaming_tiles.reconstruct_tile

    def limited(tile: Any, images: Any, recipe: Any) -> Any:
        tried.append(tile.core.y.length * tile.core.x.length)
        if tried[-1] > columns:
            images.fill_(torch.nan)  # it was at work already
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate.\nMore.")
        return compute(tile, images, recipe)

    monkeypatch.setattr(streaming_tiles, "reconstruct_tile", limited)
    return tried


def test_a_tile_without_room_is_halved_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = out_of_memory_above(monkeypatch, 10**9)
    expected = stream(folder, tmp_path / "v.zarr")
    whole = max(seen)
    tried = out_of_memory_above(monkeypatch, whole // 2)
    found = stream(folder, tmp_path / "w.zarr")
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)
    assert tried[0] == whole and max(tried[1:]) == whole // 2  # not again and again
    out_of_memory_above(monkeypatch, whole // 8)
    with pytest.raises(InputError, match="^memory: expected a budget .* got CUDA out of") as caught:
        stream(folder, tmp_path / "x.zarr")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_buffers_hand_on_every_bit(dtype: str) -> None:
    """Through two buffers, which are overwritten in turn, as without any."""
    rng = np.random.default_rng(0)
    blocks = [(255 * rng.random((n, 5, 7))).astype(dtype) for n in (3, 3, 4, 3, 3)]
    place = torch.device("cpu")
    plain, buffered = Uploader(place), Uploader(place, buffered=True)
    sent = [buffered.send(block.copy()) for block in blocks]
    for block, uploaded in zip(blocks, sent, strict=True):
        assert torch.equal(uploaded.wait(), plain.send(block).wait())
        assert uploaded.wait().dtype == torch.float32


def test_a_run_through_buffers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buffered(job: TileJob, tiles: Sequence[int]) -> Iterator[TileReceipt]:
        monkeypatch.setattr(
            streaming_tiles, "Uploader", lambda place: Uploader(place, buffered=True)
        )
        yield from run_tiles(job, tiles)

    np.testing.assert_array_equal(
        stream(folder, tmp_path / "v.zarr"), stream(folder, tmp_path / "w.zarr", runner=buffered)
    )
