"""The Python of the README and of the pages runs as it stands there, on files of these names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from microdiffusion_fast import preset_fast
from microdiffusion_fast.adaptation import AdaptOptions
from microdiffusion_fast.inr import INROptions
from microdiffusion_fast.io import write_volume
from microdiffusion_fast.simulate import simulate_projections, simulate_volume

REPOSITORY = Path(__file__).resolve().parent.parent
# The page on the integrations needs a network of the reader's.
PAGES = ["README.md", "docs/start.md", "docs/outputs.md", "docs/embedding.md"]


def blocks(page: str) -> list[str]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The same code with short trainings: what they give is tested elsewhere.
    monkeypatch.setattr(preset_fast, "INROptions", lambda: INROptions(steps=3))
    monkeypatch.setattr(preset_fast, "AdaptOptions", lambda steps: AdaptOptions(steps=1))
    truth = simulate_volume("vessels", (12, 16, 16), seed=1)
    write_volume("volume.tif", truth)
    stack = simulate_projections(truth, step_length=6, voxel_size=(1.0, 0.5, 0.5))
    stack.save("projections.ome.tif")
    made = {"provenance": {"inputs": {"projections": {"sha256": "0"}}}}
    if page == "docs/outputs.md":
        write_volume("volume.ome.zarr", truth, metadata=made)
    found = blocks(page)
    assert found
    names: dict[str, Any] = {}
    for number, block in enumerate(found):  # one after the other, as a reader would
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_every_command_of_the_pages_exists() -> None:
    """`microdiffusion-fast WORD`, anywhere on the site, is a command."""
    known = {"demo", "simulate", "reconstruct", "evaluate", "sweep", "verify", "train", "info"}
    for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]:
        words = re.findall(r"^microdiffusion-fast (\S+)", path.read_text("utf-8"), re.MULTILINE)
        assert set(words) <= known, path
