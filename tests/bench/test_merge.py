"""Parts of results become one file only if they belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.merge import ALIKE, main, merge


def part(*rows: str, commit: str = "abc", time: int = 1) -> dict[str, Any]:
    found = [{"row": row, "time": time} for row in rows]
    return dict.fromkeys(ALIKE) | {"commit": commit, "date": str(time), "rows": found}


def test_the_last_part_has_the_word() -> None:
    merged = merge([part("a", "b", time=1), part("b", "c", time=2)])
    assert [(row["row"], row["time"]) for row in merged["rows"]] == [("a", 1), ("b", 2), ("c", 2)]
    assert merged["date"] == "1"


def test_parts_of_two_commits_are_refused() -> None:
    with pytest.raises(ValueError, match="^commit: expected abc, got def"):
        merge([part("a"), part("b", commit="def")])


@pytest.mark.parametrize(("commit", "code"), [("abc", 0), ("def", 2)], ids=["one", "two"])
def test_command(tmp_path: Path, commit: str, code: int) -> None:
    paths = [tmp_path / "1.json", tmp_path / "2.json"]
    for path, found in zip(paths, (part("a"), part("b", commit=commit)), strict=True):
        path.write_text(json.dumps(found), encoding="utf-8")
    out = tmp_path / "all.json"
    assert main([*map(str, paths), "-o", str(out)]) == code
    assert out.exists() is (code == 0)
