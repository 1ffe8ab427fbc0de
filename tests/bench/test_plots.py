"""The plots show every peer that was measured, and every roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.plots import draw, rooflines, speedups

RATIO = {"median": 4.0, "low": 3.0, "high": 5.0, "least": 2.0}
RESULTS: dict[str, Any] = {
    "device": "cpu",
    "gpu": None,
    "machine": {"processor": "some", "torch_threads": 2},
    "date": "2026-01-01T00:00:00",
    "commit": None,
    "rows": [
        {
            "row": "step.given",
            "roofline": 0.5,
            "peers": {
                "as published": {"speedup": RATIO},
                "elsewhere": {"status": "not installed: elsewhere"},
            },
        },
        {"row": "metrics.sums", "status": "wrong"},
    ],
}


def test_what_is_drawn() -> None:
    assert speedups(RESULTS) == [("step.given: as published", RATIO)]
    assert rooflines(RESULTS) == [("step.given", 0.5)]


def test_draws_two_images(tmp_path: Path) -> None:
    paths = draw(RESULTS, tmp_path / "plots")
    assert [path.name for path in paths] == ["speedups.png", "roofline.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
