"""`evaluate --report`: a page, whole or not at all, that never replaces what it should not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from microdiffusion_fast import cli
from microdiffusion_fast.io import write_volume
from microdiffusion_fast.simulate import simulate_volume


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    truth = simulate_volume("vessels", (24, 32, 40), seed=5) * np.float32(900)
    made = truth + np.random.default_rng(0).normal(0, 20, truth.shape).astype(np.float32)
    metadata = {"parameters": {"gamma": 0.125}, "provenance": {"seed": 7}}
    write_volume(tmp_path / "truth.npy", truth)
    write_volume(tmp_path / "made.ome.tif", made, voxel_size=(2, 0.5, 0.5), metadata=metadata)
    return tmp_path / "made.ome.tif", tmp_path / "truth.npy"


def test_the_page(files: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    line = ["evaluate", *map(str, files), "--report", str(page)]
    assert cli.run(line) == 0
    text = page.read_text(encoding="utf-8")
    assert "made.ome.tif against truth.npy" in text and "0.125" in text
    before = page.stat().st_mtime_ns
    assert cli.run(line) == 2 and page.stat().st_mtime_ns == before
    assert cli.run([*line, "--overwrite"]) == 0 and page.stat().st_mtime_ns > before
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["page.txt", "no/folder.html", "made.ome.tif"])
def test_a_bad_place_is_refused_first(
    name: str, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files[0].read_bytes()
    line = ["evaluate", *map(str, files), "--report", str(tmp_path / name), "--overwrite"]
    assert cli.run(line) == 2
    assert capsys.readouterr().err.startswith("error: --report: expected ")
    assert files[0].read_bytes() == before
