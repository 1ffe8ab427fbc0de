"""The arithmetic of the benchmark's harness, and that it takes no wrong result for a figure."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import harness
from bench.conftest import _rounded
from bench.figures import ratios, roofline, spread
from bench.harness import Contender, Row, Unavailable, measure
from bench.memory import peak_extra_bytes, poisoned_memory


class Runner:
    """Stands for pytest-benchmark's fixture: the same hooks, and times that we choose."""

    def __init__(self, seconds: list[float]) -> None:
        self.extra_info: dict[str, Any] = {}
        self.group = ""
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=seconds))

    def pedantic(self, target: Any, setup: Any, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            target()


def row(run: Any, **options: Any) -> Row:
    options = {"exact": lambda: torch.ones(4), "tolerance": 1e-6, "rounds": 3} | options
    return Row("suite.row", "about", "size", Contender(run), **options)


def test_spread_has_quartiles() -> None:
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found == {"median": 3.0, "low": 2.0, "high": 4.0, "least": 1.0}


@pytest.mark.parametrize("values", [[2.0], [2.0, 4.0]], ids=["one", "two"])
def test_spread_of_few_values_is_their_range(values: list[float]) -> None:
    found = spread(values)
    assert (found["low"], found["high"]) == (values[0], values[-1])


def test_ratios_are_taken_within_rounds() -> None:
    # The machine is four times as slow in the second round; the ratio is 3 in each.
    ours = {0: 1.0, 1: 4.0, 2: 2.0}
    theirs = {0: 3.0, 1: 12.0, 2: 6.0}
    found = ratios(theirs, ours)
    assert (found["low"], found["median"], found["high"]) == (3.0, 3.0, 3.0)
    assert found["of_least"] == 3.0


def test_a_peer_of_few_rounds_is_held_against_our_median() -> None:
    # Round 0 was unlucky for ours alone; a slow peer of that round must not gain by it.
    found = ratios({0: 20.0}, {0: 8.0, 1: 2.0, 2: 2.0})
    assert found["median"] == 10.0


def test_roofline_is_the_inverse_of_the_time_over_the_memcpy() -> None:
    found = roofline(8e9, {0: 4.0, 1: 4.0, 2: 4.0}, {0: 2.0, 1: 2.0, 2: 2.0})
    assert found["times_floor"]["median"] == 2.0
    assert (found["roofline"], found["gb_per_s"], found["memcpy_gb_per_s"]) == (0.5, 2.0, 4.0)


def test_rounds_of_a_slow_peer_are_spread_evenly() -> None:
    contender = Contender(lambda: None, rounds=3)
    assert harness._rounds_of(contender, 9) == {1, 4, 7}
    assert harness._rounds_of(contender, 2) == {0, 1}
    assert harness._rounds_of(Contender(lambda: None), 4) == {0, 1, 2, 3}


def test_a_row_reports_ours_and_every_peer() -> None:
    def missing() -> Contender:
        raise ImportError("No module named 'nowhere'")

    def unavailable() -> Contender:
        raise Unavailable("skipped today")

    def broken() -> Contender:
        raise RuntimeError("boom")

    peers = {
        "same": lambda: Contender(lambda: torch.full((4,), 1.5)),
        "other": lambda: Contender(lambda: None, same=False),
        "missing": missing,
        "unavailable": unavailable,
        "broken": broken,
    }
    runner = Runner([1.0, 2.0, 3.0])
    record = measure(runner, row(lambda: torch.ones(4), peers=peers, floor_bytes=1e4))
    assert runner.extra_info["row"] is record
    assert (record["status"], record["error"], record["rounds"]) == ("measured", 0.0, 3)
    assert record["seconds"]["median"] == 2.0
    assert record["peers"]["same"]["difference"] == record["peers"]["same"]["error"] == 0.5
    assert record["peers"]["same"]["rounds"] == 3
    assert record["peers"]["other"]["error"] is None
    assert record["peers"]["other"]["speedup"]["median"] > 0
    statuses = {name: peer["status"] for name, peer in record["peers"].items()}
    assert statuses["missing"] == "not installed: No module named 'nowhere'"
    assert statuses["unavailable"] == "skipped today"
    assert statuses["broken"] == "failed: RuntimeError: boom"
    json.dumps(record)


def test_inputs_are_fresh_before_every_call() -> None:
    state = torch.zeros(4)

    def run() -> torch.Tensor:
        return state.add_(1)

    contender = Contender(run, prepare=state.zero_)
    twin = {"twin": lambda: Contender(run, prepare=state.zero_)}
    ours = Row("a.b", "", "", contender, twin, exact=lambda: torch.ones(4), rounds=2)
    assert measure(Runner([1.0, 1.0]), ours)["peers"]["twin"]["difference"] == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: torch.full((4,), 1.1),
        lambda: torch.full((4,), float("nan")),
        lambda: torch.empty(4),
        lambda: torch.ones(3),
    ],
    ids=["off", "NaN", "never written", "shape"],
)
def test_a_wrong_result_is_no_figure(wrong: Any) -> None:
    runner = Runner([1.0] * 3)
    with pytest.raises(AssertionError):
        measure(runner, row(wrong))
    assert runner.extra_info["row"]["status"] == "wrong"
    assert "seconds" not in runner.extra_info["row"]


def test_equal_infinities_agree() -> None:
    infinite = torch.tensor([float("inf"), 1.0])
    assert harness._difference(infinite, infinite) == 0.0
    assert harness._difference(infinite, -infinite) == float("inf")


def test_poison_is_taken_away_again() -> None:
    before = torch.get_deterministic_debug_mode()
    with poisoned_memory():
        assert torch.empty(8).isnan().all()
    assert torch.get_deterministic_debug_mode() == before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts memory")
def test_peak_memory_sees_what_numpy_takes_and_gives_back() -> None:
    size = 64 << 20
    peak = peak_extra_bytes(lambda: np.ones(size, np.uint8).sum(), torch.device("cpu"))
    assert peak is not None and 0.9 * size < peak < 1.5 * size
    nothing = peak_extra_bytes(lambda: None, torch.device("cpu"))
    assert nothing is not None and nothing < size // 16


def test_results_are_rounded_to_five_digits() -> None:
    assert _rounded({"a": [1.2345678, 3], "b": "c"}) == {"a": [1.2346, 3], "b": "c"}
