"""Bars: what holds, what misses, and what was not measured at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.bars import CPU, CUDA, Bar, judge, main, table


def results(*rows: dict[str, Any], device: str = "cpu", smoke: bool = False) -> dict[str, Any]:
    return {"device": device, "smoke": smoke, "rows": list(rows)}


def measured(name: str, **figures: Any) -> dict[str, Any]:
    return {"row": name, "status": "measured", "error": 0.0, **figures}


def speedup(median: float, **more: Any) -> dict[str, Any]:
    return {"status": "measured", "speedup": {"median": median}, **more}


GIVEN = measured(
    "step.given",
    times_floor={"median": 1.6},
    roofline=0.625,
    peers={
        "torch.compile, out of place": speedup(3.0),
        "as published": {"status": "not installed: nowhere"},
    },
)


def test_holds_misses_and_not_measured() -> None:
    found = {
        (v.bar.kind, v.bar.peer): v for v in judge(results(GIVEN)) if v.bar.row == "step.given"
    }
    floor, compiled = found["floor", ""], found["speedup", "torch.compile, out of place"]
    assert (floor.answer, floor.figure) == ("misses", "1.60x memcpy")
    assert (compiled.answer, compiled.figure) == ("holds", "3.0x")  # at the bar is over it
    published = found["speedup", "as published"]
    assert (published.answer, published.figure) == ("not measured", "not installed: nowhere")


def test_a_row_that_is_not_there_is_not_measured() -> None:
    assert {verdict.answer for verdict in judge(results())} == {"not measured"}


def test_a_row_that_failed_its_verification_misses() -> None:
    wrong = {"row": "metrics.sums", "status": "wrong", "error": 0.5}
    answers = {v.answer for v in judge(results(wrong)) if v.bar.row == "metrics.sums"}
    assert answers == {"misses"}


@pytest.mark.parametrize(
    ("bar", "row", "figure", "holds"),
    [
        (Bar("r", "floor", 1.5), {"times_floor": {"median": 1.5}}, 1.5, True),
        (Bar("r", "roofline", 0.85), {"roofline": 0.84}, 0.84, False),
        (Bar("r", "speedup", 3, "p"), {"peers": {"p": speedup(2.9)}}, 2.9, False),
        (Bar("r", "cost", 1.15, "p"), {"peers": {"p": speedup(0.8)}}, 1.25, False),
        (Bar("r", "cost", 1.15, "p"), {"peers": {"p": speedup(1.0)}}, 1.0, True),
        (Bar("r", "difference", 1e-6, "p"), {"peers": {"p": {"difference": 0.0}}}, 0.0, True),
        (Bar("r", "sampling", 3.0), {"stages": {"sampling": 3.5}}, 3.5, False),
    ],
    ids=["floor", "roofline", "speedup", "cost over", "cost even", "difference", "sampling"],
)
def test_figures(bar: Bar, row: dict[str, Any], figure: float, holds: bool) -> None:
    found = bar.figure(measured("r", **row))
    assert found == pytest.approx(figure)
    assert found is not None and bar.holds(found) is holds


@pytest.mark.parametrize("kind", ["floor", "roofline", "speedup", "cost", "difference", "sampling"])
def test_a_figure_that_is_missing_is_none(kind: Any) -> None:
    assert Bar("r", kind, 1.0, "p").figure(measured("r")) is None


def test_the_device_of_the_results_chooses_the_bars() -> None:
    assert [v.bar for v in judge(results(device="cpu"))] == list(CPU)
    assert [v.bar for v in judge(results(device="cuda"))] == list(CUDA)


def test_the_table_has_a_line_for_every_bar() -> None:
    lines = table(judge(results(GIVEN))).splitlines()
    assert len(lines) == 2 + len(CPU)
    assert lines[2] == "| step.given | - | 1.60x memcpy | <= 1.50x memcpy | misses |"


@pytest.mark.parametrize(
    ("found", "code", "says"),
    [
        (results(GIVEN), 1, "1 misses"),
        (results(GIVEN | {"times_floor": {"median": 1.4}}), 0, "0 misses"),
        (results(GIVEN, smoke=True), 0, "no bars are judged"),
    ],
    ids=["a miss", "no miss", "smoke"],
)
def test_exit_code(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    found: dict[str, Any],
    code: int,
    says: str,
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    assert main([str(path)]) == code
    assert says in capsys.readouterr().out
