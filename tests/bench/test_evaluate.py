"""The benchmark of `evaluate` on disk: its files, its scores, and what the record says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import evaluate


def test_a_small_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_DROP", tmp_path / "nowhere" / "drop_caches")
    shape = (18, 40, 50)
    found = evaluate.measure(tmp_path, shape, memory="1MiB", check=True)
    assert found["same_as_in_memory"] is True
    assert found["page_cache"].startswith("not dropped")
    assert found["files_mib"] == round(2 * np.prod(shape) * 4 / 2**20)
    assert found["ratio"] > 0 and 10 < found["scores"]["psnr"] < 40
    test, reference = (np.load(tmp_path / name) for name in evaluate.NAMES)
    assert test.shape == shape and test.dtype == np.float32 and (test > reference).mean() > 0.99
    before = (tmp_path / "test.npy").stat().st_mtime_ns
    evaluate.make_volumes(tmp_path, shape)
    assert (tmp_path / "test.npy").stat().st_mtime_ns == before
    evaluate.make_volumes(tmp_path, (17, 40, 50))
    assert np.load(tmp_path / "test.npy").shape == (17, 40, 50)
