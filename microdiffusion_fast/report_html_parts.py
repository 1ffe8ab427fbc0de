"""The pieces a page is put together from: tables, lists of facts and curves, as HTML and SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Curve:
    """A line in a chart; values that are None leave a gap.

    Attributes:
        label: its name in the legend.
        points: (x, y) from left to right; one alone is a level across the chart.
        colour: of the stroke.
        width: of the stroke, in pixels.
    """

    label: str
    points: Sequence[tuple[float, float | None]]
    colour: str
    width: float = 1.6
    level: bool = False


def section(name: str, title: str, body: str, note: str = "") -> str:
    """A part of the page with its heading; `name` is what a link goes to."""
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{words}{body}</section>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, strong: int | None = None
) -> str:
    """A table of HTML cells: the first column names the row, the others are numbers.

    Args:
        head: titles of the columns, plain text.
        rows: cells as HTML.
        caption: for those who do not see the page, and those who do.
        strong: the row that the page is about.
    """
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = []
    for number, (first, *rest) in enumerate(rows):
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        mark = ' class="strong"' if number == strong else ""
        lines.append(f'<tr{mark}><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts(record: Mapping[str, Any]) -> str:
    """Names and values; what lies deeper has its way there as its name."""
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(words(value))}</dd></div>"
        for name, value in _flat(record)
    )
    return f'<dl class="facts">{lines}</dl>'


def words(value: Any) -> str:
    """A plain value for a reader."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(words(item) for item in value) or "none"
    return str(value)


def _flat(record: Mapping[str, Any], way: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in record.items():
        label = f"{way}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            found += _flat(value, f"{label}: ")
        else:
            found.append((label, value))
    return found


def bars(values: Mapping[str, float], unit: str) -> str:
    """Amounts of one unit, longest bar the largest."""
    most = max(values.values(), default=0.0) or 1.0
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>"
        f'<span class="bar" style="width:{100 * value / most:.1f}%"></span>'
        f"<span>{value:.2f} {escape(unit)}</span></dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="bars">{lines}</dl>'


def legend(curves: Sequence[Curve]) -> str:
    """The names of the lines of a chart."""
    items = "".join(
        f'<li><i style="background:{curve.colour}"></i>{escape(curve.label)}</li>'
        for curve in curves
    )
    return f'<ul class="legend">{items}</ul>'


# Pixels of a chart's own scale around the place of its lines.
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 24, 40


def chart(
    curves: Sequence[Curve],
    *,
    size: tuple[int, int],
    across: str,
    along: str,
    bands: Sequence[tuple[float, float]] = (),
    limits: tuple[float, float] | None = None,
    whole: bool = False,
) -> str:
    """Lines over one another as SVG.

    Args:
        curves: the most important last.
        size: (width, height) in the chart's own pixels.
        across, along: what the axes are.
        bands: intervals to shade.
        limits: of the horizontal axis; default the reach of the points.
        whole: whether the horizontal axis has whole numbers only.
    """
    wide, high = size
    places = [x for curve in curves if not curve.level for x, _ in curve.points]
    values = [y for curve in curves for _, y in curve.points if y is not None]
    low, top = (min(values, default=0.0), max(values, default=1.0))
    rest = 0.06 * (top - low) or 0.5
    low, top = low - rest, top + rest
    left, right = limits or (min(places, default=0.0), max(places, default=1.0))
    if right <= left:
        left, right = left - 1, right + 1

    def at(x: float, y: float) -> tuple[float, float]:
        inner = wide - LEFT - RIGHT, high - TOP - BOTTOM
        along_x, along_y = (x - left) / (right - left), (top - y) / (top - low)
        return LEFT + along_x * inner[0], TOP + along_y * inner[1]

    floor = high - BOTTOM
    parts = []
    for begin, end in bands:
        a, b = at(begin, low)[0], at(end, low)[0]
        parts.append(
            f'<rect class="band" x="{a:.1f}" y="{TOP}" width="{b - a:.1f}" height="{floor - TOP}"/>'
        )
    for value in _ticks(low, top, 5):
        y = at(left, value)[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{wide - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(left, right, 10, whole=whole):
        x = at(value, low)[0]
        parts.append(f'<text x="{x:.1f}" y="{floor + 17}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{wide - RIGHT}"/>')
    middle = (LEFT + wide - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{high - 5}" text-anchor="middle" class="label">'
        f"{escape(across)}</text>"
    )
    for curve in curves:
        parts.append(_stroke(curve, at, (left, right)))
    names = ", ".join(curve.label for curve in curves)
    return (
        f'<svg class="chart" viewBox="0 0 {wide} {high}" role="img" '
        f'aria-label="{escape(f"{along} over {across}: {names}")}">'
        f'<text x="{LEFT}" y="{TOP - 9}" class="label">{escape(along)}</text>'
        f"{''.join(parts)}</svg>"
    )


def _stroke(curve: Curve, at: Any, ends: tuple[float, float]) -> str:
    style = f'fill="none" stroke="{curve.colour}" stroke-width="{curve.width}"'
    if curve.level:
        value = curve.points[0][1]
        if value is None:
            return ""
        (a, y), (b, _) = at(ends[0], value), at(ends[1], value)
        return f'<path {style} stroke-dasharray="5 4" d="M{a:.1f} {y:.1f}H{b:.1f}"/>'
    way, pen = [], "M"
    for x, value in curve.points:
        if value is None:
            pen = "M"
            continue
        a, b = at(x, value)
        way.append(f"{pen}{a:.1f} {b:.1f}")
        pen = "L"
    path = f'<path {style} stroke-linejoin="round" d="{"".join(way)}"/>'
    if len(curve.points) > 16:
        return path
    dots = [at(x, y) for x, y in curve.points if y is not None]
    return path + "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{curve.colour}"/>' for a, b in dots
    )


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers within the limits, at most so many."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    if whole:
        step = max(step, 1.0)
    first = math.ceil(low / step)
    return [round(n * step, 10) for n in range(first, math.floor(high / step) + 1)]
