"""What all tiles agree on: of the whole where it is small, bounded and seeded where it is not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from microdiffusion_fast import tile_survey
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.store_source import StoredStack, open_stack
from microdiffusion_fast.tile_survey import blocks_of, pixels_to_survey, survey


def stored(tmp_path: Path, data: np.ndarray) -> StoredStack:
    np.save(tmp_path / "a.npy", data)
    return open_stack(tmp_path / "a.npy")


def test_a_small_stack_is_looked_at_as_a_whole(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((6, 40, 50)).astype(np.float32)
    found = survey(stored(tmp_path, data), seed=3)
    assert (found.low, found.high) == Projections.from_any(data, step_length=4).intensity_range()
    wanted = (data - found.low) / (found.high - found.low)
    np.testing.assert_allclose(found.lesson.numpy(), wanted, atol=1e-6)
    assert found.pixels == data.size == pixels_to_survey(stored(tmp_path, data), seed=3)


def test_a_large_one_by_seeded_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("WHOLE", 2**14),
        ("SHARE", 4),
        ("BLOCK", (4, 16, 16)),
        ("LESSON", (6, 24, 24)),
    ):
        monkeypatch.setattr(tile_survey, name, value)
    rng = np.random.default_rng(0)
    data = 100 + 0.01 * rng.random((10, 90, 100)).astype(np.float32)
    data[:, 40:72, 50:82] += rng.random((10, 32, 32)).astype(np.float32)  # the only structure
    stack = stored(tmp_path, data)
    first, again, other = (survey(stack, seed=seed) for seed in (1, 1, 2))
    assert (first.low, first.high, first.place) == (again.low, again.high, again.place)
    assert blocks_of(stack, seed=1) != blocks_of(stack, seed=2)
    for found, seed in ((first, 1), (other, 2)):
        assert found.pixels == pixels_to_survey(stack, seed=seed) < data.size / 3
        assert found.lesson.shape == found.place.shape == (6, 24, 24)
        z, y, x = found.place
        assert z.stop <= 10 and 20 <= y.start and y.stop <= 90 and 30 <= x.start and x.stop <= 100
        whole = np.percentile(data, (0.1, 99.9))
        assert abs(found.low - whole[0]) < 0.01 and abs(found.high - whole[1]) < 0.1


@pytest.mark.parametrize("chunks", [(32, 128, 128), (64, 64, 64), (1, 700, 700), (300, 16, 16)])
def test_a_bounded_share_of_the_chunks(chunks: tuple[int, int, int]) -> None:
    """What is decoded is what is looked at, for any size; no stretch of the stack is left out."""
    for shape in ((85, 1024, 1024), (1365, 16384, 2048)):
        pixels = math.prod(shape)
        stack = StoredStack(Path("-"), shape, np.dtype("u2"), lambda box: np.empty(0), chunks)
        blocks = blocks_of(stack, seed=0)
        decoded = sum(math.prod(block.shape) for block in blocks)
        assert len(set(blocks)) == len(blocks) >= 2
        assert decoded <= max(1.05 * pixels / tile_survey.SHARE, 2 * math.prod(blocks[0].shape))
        assert decoded <= max(tile_survey.MOST, 2 * math.prod(blocks[0].shape))
        for block in blocks:
            for span, chunk, size in zip(block, chunks, shape, strict=True):
                assert span.start % chunk == 0 and (span.stop % chunk == 0 or span.stop == size)
        if chunks[0] < shape[0] / 2:
            assert {2 * block.z.start // shape[0] for block in blocks} == {0, 1}


@pytest.mark.parametrize("chunks", [(1, 8192, 8192), (3, 5000, 4097), (512, 512, 512)])
def test_huge_chunks_are_looked_at_in_part(chunks: tuple[int, int, int]) -> None:
    """No more pixels are kept than of other stacks, and still there are neighbours to compare."""
    shape = (1365, 8192, 8192)
    stack = StoredStack(Path("-"), shape, np.dtype("u2"), lambda box: np.empty(0), chunks)
    blocks = blocks_of(stack, seed=0)
    assert len(set(blocks)) == len(blocks) >= 2
    kept = sum(math.prod(block.shape) for block in blocks)
    assert tile_survey.MOST / 8 < kept <= tile_survey.MOST
    assert all(block.z.length >= 2 for block in blocks)


def test_a_flat_stack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="intensities that vary"):
        survey(stored(tmp_path, np.ones((3, 9, 9), np.uint8)), seed=0)
    rare = np.zeros((4, 60, 60), np.float32)
    rare[1, 2, 3] = 5.0
    assert survey(stored(tmp_path, rare), seed=0).high == 5.0
