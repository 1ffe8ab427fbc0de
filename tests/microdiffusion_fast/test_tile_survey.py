"""What all tiles agree on: of the whole where it is small, bounded and seeded where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from microdiffusion_fast import tile_survey
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.store_source import StoredStack, open_stack
from microdiffusion_fast.tile_survey import lesson, survey


def stored(tmp_path: Path, data: np.ndarray) -> StoredStack:
    np.save(tmp_path / "a.npy", data)
    return open_stack(tmp_path / "a.npy")


def test_a_small_stack_is_looked_at_as_a_whole(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((6, 40, 50)).astype(np.float32)
    found = survey(stored(tmp_path, data), seed=3)
    assert (found.low, found.high) == Projections.from_any(data, step_length=4).intensity_range()
    assert found.lesson.shape == data.shape
    images = lesson(stored(tmp_path, data), found).numpy()
    np.testing.assert_allclose(images, (data - found.low) / (found.high - found.low), atol=1e-6)


def test_a_large_one_by_seeded_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_survey, "WHOLE", 2**14)
    monkeypatch.setattr(tile_survey, "BLOCK", (4, 16, 16))
    monkeypatch.setattr(tile_survey, "LESSON", (6, 24, 24))
    rng = np.random.default_rng(0)
    data = 100 + 0.01 * rng.random((10, 90, 100)).astype(np.float32)
    data[:, 40:72, 50:82] += rng.random((10, 32, 32)).astype(np.float32)  # the only structure
    stack = stored(tmp_path, data)
    first, again, other = (survey(stack, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert other.pixels <= tile_survey.BLOCKS * 4 * 16 * 16
    assert first.lesson.shape == (6, 24, 24)
    for found in (first, other):
        z, y, x = found.lesson
        assert z.stop <= 10 and 20 <= y.start and y.stop <= 90 and 30 <= x.start and x.stop <= 100
        whole = np.percentile(data, (0.1, 99.9))
        assert abs(found.low - whole[0]) < 0.01 and abs(found.high - whole[1]) < 0.1


def test_a_flat_stack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="intensities that vary"):
        survey(stored(tmp_path, np.ones((3, 9, 9), np.uint8)), seed=0)
    rare = np.zeros((4, 60, 60), np.float32)
    rare[1, 2, 3] = 5.0
    assert survey(stored(tmp_path, rare), seed=0).high == 5.0
