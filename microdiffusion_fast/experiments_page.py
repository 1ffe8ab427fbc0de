"""The page of a sweep for a browser: pictures by parameter on a slider, curves and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from microdiffusion_fast.experiments_curves import METRICS, NAMES, Line, Row
from microdiffusion_fast.experiments_figures import Scene
from microdiffusion_fast.experiments_store import Cell
from microdiffusion_fast.report_html import Report
from microdiffusion_fast.report_html_images import picture
from microdiffusion_fast.report_html_parts import Curve, chart, legend, section, table, words
from microdiffusion_fast.report_html_volume import made
from microdiffusion_fast.report_style import TITLES, Volume, contrast

_BASELINE = "interpolation+consistency"
_FORMS = {"psnr": ".2f", "ssim": ".3f", "dice": ".3f"}
_CHART = (420, 280)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweeping:
    """What a sweep found, for its page.

    Attributes:
        parameter: what it is called.
        column: its name in the rows.
        found: every row of the table, with the cell that it is from.
        method: the one that is looked at.
        lines: of the curves.
        schedule: with which gamma schedule, where there is one.
    """

    parameter: str
    column: str
    found: Sequence[tuple[Row, Cell]]
    method: str
    lines: Sequence[Line]
    schedule: str | None = None

    def cell(self, method: str, value: float) -> tuple[Row, Cell] | None:
        """A method at a value of the parameter, or anywhere if it does not depend on it."""
        for row, cell in self.found:
            if row["method"] != method or row[self.column] not in (value, None):
                continue
            if row.get("gamma_schedule") in (self.schedule, None):
                return row, cell
        return None

    @property
    def values(self) -> list[float]:
        """The values of the parameter at which the method was run, rising."""
        own = (row[self.column] for row, _ in self.found if row["method"] == self.method)
        return sorted(set(own))


def sweep_report(scene: Scene, sweep: Sweeping, record: Mapping[str, Any]) -> Report:
    """Lay out the page.

    Args:
        scene: the volume.
        sweep: what was found.
        record: the contents of `metrics.json`.
    """
    pictures, captions = _pictures(scene, sweep)
    details = {
        "Settings": record["settings"],
        "Volume": {"file": record["input"], **record["volume"]},
        "Provenance": {"weights sha256": record["weights_sha256"], **record["versions"]},
        "Machine": record["machine"],
    }
    parts = {
        "curves": ("Curves", _curves(sweep)),
        "pictures": ("Pictures", pictures),
        "scores": ("Scores", _scores(sweep, scene.scored)),
        "made": ("How it was made", made(details, None, None)),
    }
    values = [words(value) for value in sweep.values]
    return Report(
        title=scene.title,
        lead=scene.note,
        tiles=_tiles(sweep),
        sections={name: title for name, (title, _) in parts.items()},
        body="".join(body for _, body in parts.values()),
        data={
            "choice": {"parameter": sweep.parameter, "values": values, "captions": captions},
        },
    )


def _tiles(sweep: Sweeping) -> list[tuple[str, str, str]]:
    found = []
    for value in sweep.values:
        own, base = sweep.cell(sweep.method, value), sweep.cell(_BASELINE, value)
        if own is not None and own[0]["psnr"] is not None:
            gain = ""
            if base is not None and base[0]["psnr"] is not None:
                gain = f"{own[0]['psnr'] - base[0]['psnr']:+.2f} dB over the baseline"
            found.append((f"{sweep.parameter} {value:g}", f"{own[0]['psnr']:.2f} dB", gain))
    return found


def _curves(sweep: Sweeping) -> str:
    drawn = []
    for key, title in METRICS.items():
        lines = []
        for line in sweep.lines:
            width = 2.4 if line.strong else 1.6
            values, label = line.values[key], TITLES.get(line.label, line.label)
            if line.places:
                points = list(zip(line.places, values, strict=True))
                lines.append(Curve(label, points, line.colour, width))
            else:
                lines.append(Curve(label, [(0.0, values[0])], line.colour, width, level=True))
        drawn.append(chart(lines, size=_CHART, across=sweep.parameter, along=title))
    note = "Every method from the same projections. A broken line does not depend on the parameter."
    return section(
        "curves", "Curves", f'<div class="charts">{"".join(drawn)}</div>{legend(lines)}', note
    )


def _pictures(scene: Scene, sweep: Sweeping) -> tuple[str, list[str]]:
    columns = [
        name for name in (_BASELINE, "inr", sweep.method) if sweep.cell(name, sweep.values[0])
    ]
    truth = scene.cuts.take(scene.truth)
    captions = []
    for value in sweep.values:
        rows = {name: sweep.cell(name, value) for name in columns}
        captions.append(
            " · ".join(
                f"{_name(name)} {_score(row[0], 'psnr')} dB" for name, row in rows.items() if row
            )
        )
    heads = "".join(
        f'<div class="head{mark}"><b>{escape(_name(name))}</b></div>'
        for name in columns
        for mark in (" best" if name == sweep.method else "",)
    )
    grid = [f'<div class="corner"></div>{heads}<div class="head"><b>truth</b></div>']
    for key, (label, (high, wide)) in scene.cuts.rows.items():
        limits = contrast(truth[key], 99.8 if key.startswith("maximum") else 99.2)
        shape = f'style="aspect-ratio:{wide / high:.4f}"'

        def image(data: Volume, alt: str, limits: Any = limits, shape: str = shape) -> str:
            return f'alt="{escape(alt)}" {shape} src="{picture(data, limits)}"'

        grid.append(f'<div class="row">{escape(label)}</div>')
        for name in columns:
            for number, value in enumerate(sweep.values):
                found = sweep.cell(name, value)
                if found is not None:
                    alt = f"{_name(name)}, {sweep.parameter} {value:g}: {label}"
                    hidden = " hidden" if number else ""
                    mark = f'data-value="{words(value)}"{hidden}'
                    grid.append(f"<img {mark} {image(found[1].images[key], alt)}>")
        grid.append(f"<img {image(truth[key], f'truth: {label}')}>")
    slider = (
        '<div class="where"><div class="slider">'
        f'<label for="parameter">{escape(sweep.parameter)}</label>'
        f'<input type="range" id="parameter" min="0" max="{len(sweep.values) - 1}" value="0">'
        '</div><output class="readout" id="readout" for="parameter" aria-live="polite"></output>'
        "</div>"
    )
    body = f'{slider}<div class="grid" style="--columns:{len(columns) + 1}">{"".join(grid)}</div>'
    note = (
        "The same slice, section and maxima at every value; slice and row were chosen from the "
        "truth alone. Black and white are the same in a row."
    )
    return section("pictures", "Pictures", body, note), captions


def _scores(sweep: Sweeping, caption: str) -> str:
    rows = [row for row, _ in sweep.found]
    named = [sweep.column] + (["gamma_schedule"] if "gamma_schedule" in rows[0] else [])
    lines = []
    for row in rows:
        cells = [escape(_name(row["method"]))]
        cells += ["" if row[name] is None else escape(words(row[name])) for name in named]
        lines.append([*cells, *(_score(row, key) for key in METRICS)])
    head = ["method", *(name.replace("_", " ") for name in named), *METRICS.values()]
    return section("scores", "Scores", table(head, lines, caption=caption))


def _score(row: Row, key: str) -> str:
    return "∞" if row[key] is None else format(row[key], _FORMS[key])


def _name(method: str) -> str:
    return NAMES.get(method, TITLES.get(method, method))
