"""pytest-benchmark for the suites: the fixture that measures a row, and results as one JSON."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from bench.harness import Measure, measure, measure_once
from bench.machine import describe

# A row takes what its slowest peer takes; the limit is for hangs.
TIMEOUT = 900
# Rows that failed their verification too, of which pytest-benchmark knows nothing.
ROWS = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture(name="measure")
def _measure(benchmark: Any, request: pytest.FixtureRequest) -> Iterator[Measure]:
    """`measure(row)`: see `bench.harness.measure`."""
    yield partial(measure, benchmark)
    _keep(benchmark, request.config)


@pytest.fixture(name="measure_once")
def _measure_once(benchmark: Any, request: pytest.FixtureRequest) -> Iterator[Measure]:
    """`measure_once(row)`: see `bench.harness.measure_once`."""
    yield partial(measure_once, benchmark)
    _keep(benchmark, request.config)


def _keep(benchmark: Any, config: pytest.Config) -> None:
    if "row" in benchmark.extra_info:
        config.stash.setdefault(ROWS, []).append(benchmark.extra_info["row"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(TIMEOUT))


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    return describe()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Replaces pytest-benchmark's report by ours: what was measured on, and the rows."""
    about = output_json["machine_info"]
    output_json.clear()
    output_json.update(about)
    output_json["rows"] = [_rounded(row) for row in config.stash.get(ROWS, [])]


def _rounded(value: Any) -> Any:
    """Five digits are more than repeat; the files stay small enough to read."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
