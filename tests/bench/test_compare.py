"""Two files of results: a change counts only beyond the noise, and by both measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.compare import compare, differences, main


def around(median: float, spread: float = 0.02) -> dict[str, float]:
    low, high = median * (1 - spread), median * (1 + spread)
    return {"median": median, "low": low, "high": high, "least": low}


def row(seconds: float, floor: float | None = None, spread: float = 0.02) -> dict[str, Any]:
    found = {"row": "step.given", "status": "measured", "seconds": around(seconds, spread)}
    return found if floor is None else found | {"times_floor": around(floor, spread)}


def results(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    about = {"device": "cpu", "gpu": None, "smoke": False}
    machine = {"processor": "one", "torch_threads": 2}
    return about | {"machine": machine, "rows": list(rows)} | changes


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        (row(1.0, 2.0), row(1.5, 3.0), "slower"),
        (row(1.0, 2.0), row(0.5, 1.0), "faster"),
        (row(1.0, 2.0), row(1.5, 2.0), "same"),
        (row(1.0, 2.0), row(1.0, 3.0), "same"),
        (row(1.0, 2.0, 0.4), row(1.5, 3.0, 0.4), "same"),
        (row(1.0, 2.0, 0.0), row(1.04, 2.08, 0.0), "same"),
        (row(1.0), row(1.5), "slower"),
    ],
    ids=[
        "both slower",
        "both faster",
        "only seconds: a busy machine",
        "only memcpy: its luck",
        "within the spread",
        "less than any change",
        "no roofline",
    ],
)
def test_answers(old: dict[str, Any], new: dict[str, Any], answer: str) -> None:
    (change,) = compare(results(old), results(new))
    assert change.answer == answer
    assert change.seconds == new["seconds"]["median"] / old["seconds"]["median"]


def test_rows_that_come_go_and_break() -> None:
    other = row(1.0) | {"row": "noise.volume"}
    assert [c.answer for c in compare(results(other), results(row(1.0)))] == ["new", "gone"]
    wrong = {"row": "step.given", "status": "wrong"}
    assert [c.answer for c in compare(results(row(1.0)), results(wrong))] == ["wrong"]


def test_other_conditions_are_named() -> None:
    elsewhere = results(machine={"processor": "two", "torch_threads": 2})
    assert differences(results(), elsewhere) == ["processor: one then, two now"]
    assert differences(results(), results()) == []


@pytest.mark.parametrize(("seconds", "code"), [(1.5, 1), (1.0, 0)], ids=["slower", "same"])
def test_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: float, code: int
) -> None:
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, value in zip(paths, (1.0, seconds), strict=True):
        path.write_text(json.dumps(results(row(value))), encoding="utf-8")
    assert main([str(path) for path in paths]) == code
    assert f"| step.given | {seconds:.2f} |" in capsys.readouterr().out
