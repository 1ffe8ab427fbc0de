"""The curves of a sweep: one plot a metric, side by side, every line with its name at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion_fast.report_style import (
    ACCENT,
    BEST,
    INK,
    LEFT,
    LINES,
    SOFT,
    Page,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

METRICS = {"psnr": "PSNR dB", "ssim": "SSIM", "dice": "DICE"}
COLOURS = {
    **{name: colour for name, (colour, _) in LINES.items() if name != BEST},
    "fourier-inr": "#e3b07c",
    "fast": ACCENT,
    "fast-chain": "#12324a",
    "fast-chain+consistency": "#6d8aa0",
    "paper": "#7b4fa3",
    "paper+consistency": "#b394cc",
}
# Of a chain whose gamma falls; a constant one has the colour of its method.
SCHEDULES = {"linear": "#2a9d8f", "cosine": "#5b6fd0", "late-release": "#c2477f"}
NAMES = {
    "inr": "INR",
    "fourier-inr": "INR (Fourier)",
    "fast": "fast preset",
    "fast-chain": "chain",
    "fast-chain+consistency": "chain, then consistent",
    "paper": "paper preset",
    "paper+consistency": "paper, then consistent",
}
PLOT_HEIGHT = 2.6
_STRONG = {"fast", "fast-chain", "paper"}
# Lines so light that they are no colour for letters.
_PALE = {"nearest", "interpolation", "interpolation+consistency"}
_NAMES_WIDTH = 1.55  # inches beside a plot
_NAMES_STEP = 0.145  # inches from one to the next


@dataclass(frozen=True)
class Line:
    """One method over the parameter; one that does not depend on it has no places.

    Attributes:
        label: its name at the right end.
        places: the parameter's values, rising.
        values: one a place, by metric; None where it is not finite.
        colour: of the line.
        ink: of its name.
        strong: whether it is what the figure is about.
    """

    label: str
    places: tuple[float, ...]
    values: Mapping[str, tuple[float | None, ...]]
    colour: str
    ink: str
    strong: bool


def make_line(rows: Sequence[Row], across: str, *, schedule: str | None = None) -> Line:
    """The line of one method.

    Args:
        rows: its own, of `results.csv`.
        across: the column of the parameter.
        schedule: name of the gamma schedule, where the figure tells several apart.
    """
    method: str = rows[0]["method"]
    strong = method in _STRONG
    ordered = sorted(rows, key=lambda row: row[across] or 0.0)
    places = () if ordered[0][across] is None else tuple(row[across] for row in ordered)
    colour = SCHEDULES.get(schedule or "", COLOURS[method])
    label = NAMES.get(method, method)
    return Line(
        label=label if schedule is None else f"{label}, {schedule}",
        places=places,
        values={key: tuple(row[key] for row in ordered) for key in METRICS},
        colour=colour,
        ink=SOFT if method in _PALE else colour,
        strong=strong and bool(places),
    )


def draw_curves(
    page: Page, top: float, lines: Sequence[Line], across: str, ticks: Sequence[float] | None
) -> None:
    """Fill the width of the page with the plots of the metrics.

    Args:
        page: where.
        top: inches from its upper edge.
        lines: methods, the most important last.
        across: label of the parameter.
        ticks: its values to mark, default chosen.
    """
    room = (page.width - LEFT - 0.25) / len(METRICS)
    places = [place for line in lines for place in line.places]
    margin = 0.04 * (max(places) - min(places)) or 0.5
    for index, (key, name) in enumerate(METRICS.items()):
        left = LEFT + index * room + 0.3
        axes = page.axes(left, top, room - 0.55 - _NAMES_WIDTH, PLOT_HEIGHT)
        plain_axes(axes, across, "")
        axes.set_title(name, fontsize=10, fontweight="bold", color=INK, loc="left", pad=6)
        ends = []
        for line in lines:
            values = [np.nan if value is None else value for value in line.values[key]]
            if line.places:
                _draw_line(axes, line, values)
            else:
                axes.axhline(values[0], color=line.colour, linewidth=1.2, zorder=1)
            if np.isfinite(values[-1]):
                ends.append((values[-1], line))
        axes.set_xlim(min(places) - margin, max(places) + margin)
        axes.margins(y=0.06)
        if ticks is not None:
            axes.set_xticks(list(ticks))
        _name_lines(axes, ends)


def _draw_line(axes: Axes, line: Line, values: Sequence[float]) -> None:
    axes.plot(
        line.places,
        values,
        color=line.colour,
        linewidth=2.0 if line.strong else 1.3,
        marker="o",
        markersize=4 if line.strong else 2.5,
        zorder=3 if line.strong else 2,
    )


def _name_lines(axes: Axes, ends: Sequence[tuple[float, Line]]) -> None:
    """Names at the right ends of the lines, moved apart where they would lie on each other."""
    bottom, top = axes.get_ylim()
    ordered = sorted(ends, key=lambda end: end[0])
    wanted = [(value - bottom) / (top - bottom) for value, _ in ordered]
    places = apart(wanted, _NAMES_STEP / PLOT_HEIGHT)
    for (_, line), own, place in zip(ordered, wanted, places, strict=True):
        across: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        axes.plot([1.0, 1.035], [own, place], color=line.colour, linewidth=0.7, **across)
        axes.text(
            1.045,
            place,
            line.label,
            transform=axes.transAxes,
            fontsize=7.5,
            color=line.ink,
            fontweight="bold" if line.strong else "normal",
            va="center",
        )


def apart(places: Sequence[float], step: float) -> list[float]:
    """Rising places moved to be at least `step` apart, crowded ones about their common middle."""
    groups: list[tuple[float, int]] = []  # middle, and how many
    for place in places:
        middle, count = place, 1
        while groups:
            before, more = groups[-1]
            if middle - before >= (count + more) * step / 2:
                break
            groups.pop()
            middle = (middle * count + before * more) / (count + more)
            count += more
        groups.append((middle, count))
    return [
        middle + (index - (count - 1) / 2) * step
        for middle, count in groups
        for index in range(count)
    ]
