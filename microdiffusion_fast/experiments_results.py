"""What a sweep leaves: its rows, tables, figure and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microdiffusion_fast.cli_support import to_json
from microdiffusion_fast.experiments_figures import Scene
from microdiffusion_fast.experiments_methods import Entry
from microdiffusion_fast.experiments_page import Sweeping, sweep_report
from microdiffusion_fast.experiments_store import Cell, Store, write_csv, write_file, write_json
from microdiffusion_fast.info import machine, weights
from microdiffusion_fast.provenance import versions
from microdiffusion_fast.report_html import render
from microdiffusion_fast.report_style import Page, save


@dataclass(frozen=True)
class Sweep:
    """What a sweep leaves.

    Attributes:
        folder: holds results.csv, results.json, metrics.json, figure.png, figure.pdf, report.html
            and cells/.
        rows: one for every method at every parameter, as in results.csv.
        metrics: the contents of `metrics.json`: the rows, and the seconds, machine and versions.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    metrics: dict[str, Any]


def identity_of(
    experiment: str, volume: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What all cells of a sweep share; see `Store`."""
    version = versions()["microdiffusion_fast"]
    return {
        "experiment": experiment,
        "version": version,
        "volume": dict(volume),
        "settings": dict(settings),
    }


def rows_of(
    entries: Sequence[Entry], cells: Mapping[str, Cell]
) -> list[tuple[dict[str, Any], Cell]]:
    """The rows of the table, each with the cell that it is from."""
    found = [(entry, cells[entry.name]) for entry in entries]
    return [
        ({**to_json(entry.at), "method": entry.method, **cell.scores}, cell)
        for entry, cell in found
    ]


def finish(store: Store, name: str, scene: Scene, shown: Sweeping, page: Page) -> Sweep:
    """Write tables, figure and page; what differs from run to run is in `metrics.json` and on the
    page.

    Args:
        store: folder of the sweep.
        name: of the volume.
        scene, shown: for the page.
        page: the figure.
    """
    rows = [dict(row) for row, _ in shown.found]
    for suffix in ("png", "pdf"):
        write_file(store.folder / f"figure.{suffix}", lambda part: save(page, part))
    write_csv(store.folder / "results.csv", rows)
    write_json(store.folder / "results.json", {**store.identity, "rows": rows})
    record = {
        **store.identity,
        "input": name,
        "shape": store.identity["volume"]["shape"],
        "rows": [{**row, **cell.notes} for row, cell in shown.found],
        "seconds": sum(cell.notes.get("seconds", 0.0) for _, cell in shown.found),
        "weights_sha256": weights()["sha256"],
        "versions": versions(),
        "machine": machine(),
    }
    plain = to_json(record)
    html = render(sweep_report(scene, shown, plain))
    write_file(store.folder / "report.html", lambda part: part.write_text(html, encoding="utf-8"))
    write_json(store.folder / "metrics.json", plain)
    return Sweep(store.folder, tuple(rows), plain)
