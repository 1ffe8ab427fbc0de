"""Projections of a volume on disk: those of the volume in memory, bit by bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume, write_volume
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.simulate import Noise, simulate_projections
from microdiffusion_fast.simulate_stream import _slabs, simulate_stored
from microdiffusion_fast.store_source import StoredStack
from microdiffusion_fast.store_verify import verify

RNG = np.random.default_rng(0)
DATA = (4000 * RNG.random((29, 17, 23)) ** 4).astype(np.uint16)
ONE_WINDOW = 17 * 23 * (6 * 10 + 24)

NOISES = {
    "none": None,
    "shot": Noise(photons=300),  # dark and bright pixels
    "bright": Noise(photons=1e6, background=500, read_noise=20),  # no dark ones
    "all": Noise(photons=300, read_noise=3, background=2, bits=12),
    "read": Noise(photons=None, read_noise=0.01),
}


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulate") / "v.tif"
    return write_volume(path, DATA, voxel_size=(2.0, 0.5, 0.5))


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
@pytest.mark.parametrize("memory", [ONE_WINDOW, 3 * ONE_WINDOW, "1GiB"])
def test_the_bits_of_memory(
    volume: Path, tmp_path: Path, noise: Noise | None, memory: int | str
) -> None:
    expected = simulate_projections(
        DATA, step_length=6, noise=noise, seed=3, voxel_size=(2.0, 0.5, 0.5)
    )
    expected.save(tmp_path / "memory.zarr")
    simulate_stored(
        volume, tmp_path / "disk.zarr", step_length=6, noise=noise, seed=3, memory=memory
    )
    one, two = (read_volume(tmp_path / name) for name in ("memory.zarr", "disk.zarr"))
    np.testing.assert_array_equal(one.data, two.data)
    assert one.extra == two.extra and one.voxel_size == two.voxel_size
    assert verify(tmp_path / "disk.zarr").ok


def test_a_large_chunk_is_counted_while_it_is_decoded() -> None:
    shape, dtype = (256, 512, 1024), np.dtype(np.float32)
    large = StoredStack(Path("-"), shape, dtype, lambda box: np.empty(box.shape), (16, 512, 1024))
    plain = replace(large, chunks=(1, 1, 1))
    decoding, window = 192 * 2**20, 2**19 * (6 * 12 + 24)
    assert _slabs(large, 42, 6, 6, decoding + 2 * window) == _slabs(plain, 42, 6, 6, 2 * window)
    assert len(_slabs(plain, 42, 6, 6, 2 * window)) == 21
    expected = r"^memory: expected at least 240 MiB .*, 192 MiB of it to read a chunk"
    with pytest.raises(InputError, match=expected):
        _slabs(large, 42, 6, 6, decoding)


@pytest.mark.parametrize(("stride", "start"), [(4, 0), (9, 2), (6, 5)])
def test_any_geometry(volume: Path, tmp_path: Path, stride: int, start: int) -> None:
    weights = (0.1, 0.2, 0.2, 0.2, 0.2, 0.1)
    geometry: dict[str, Any] = {
        "step_length": 6,
        "stride": stride,
        "start": start,
        "weights": weights,
    }
    expected = simulate_projections(DATA, **geometry)
    simulate_stored(volume, tmp_path / "p.zarr", memory=2 * ONE_WINDOW, **geometry)
    found = Projections.from_any(tmp_path / "p.zarr")
    np.testing.assert_array_equal(found.images, expected.images)
    assert (found.stride, found.start, found.weights) == (stride, start, expected.weights)


def test_bad_input_leaves_nothing(volume: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.ones((12, 9, 9)))
    np.save(tmp_path / "huge.npy", np.linspace(0, 1e300, 12 * 81).reshape(12, 9, 9))
    np.save(tmp_path / "small.npy", RNG.random((12, 9, 4)))
    before = set(tmp_path.iterdir())
    for source, options, argument in (
        (volume, {"memory": ONE_WINDOW - 1}, "memory"),
        (volume, {"step_length": 1}, "step_length"),
        (volume, {"step_length": 20}, "projections"),
        (volume, {"weights": [1.0]}, "weights"),
        (tmp_path / "flat.npy", {}, "volume"),
        (tmp_path / "huge.npy", {}, "volume"),
        (tmp_path / "small.npy", {}, "volume"),
        (tmp_path / "absent.npy", {}, "path"),
    ):
        with pytest.raises(InputError) as caught:
            simulate_stored(source, tmp_path / "p.zarr", **({"step_length": 6} | options))
        assert caught.value.argument == argument
        assert set(tmp_path.iterdir()) == before
    with pytest.raises(InputError, match="^output: .*zarr"):
        simulate_stored(volume, tmp_path / "p.tif", step_length=6)
    with pytest.raises(InputError, match="^output: .* existing folder"):
        simulate_stored(volume, tmp_path / "nowhere" / "p.zarr", step_length=6)
