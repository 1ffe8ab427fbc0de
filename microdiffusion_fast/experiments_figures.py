"""The figures of the two sweeps: images on top, one column a parameter; the curves below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microdiffusion_fast.experiments_curves import PLOT_HEIGHT, Line, Row, draw_curves, make_line
from microdiffusion_fast.experiments_cuts import Cuts
from microdiffusion_fast.report_style import (
    ACCENT,
    GAP,
    INK,
    LEFT,
    SOFT,
    Page,
    Volume,
    contrast,
    heading,
    new_page,
    scale_bar,
    show,
)

_TOP, _BETWEEN, _BOTTOM, _MARGIN = 1.3, 0.6, 0.62, 0.25
_WIDTH = 13.4  # room for three plots with the names of their lines, and for seven images
_COLUMNS, _WIDEST = 7, 2.4
COVERED = "PSNR and SSIM: means over the covered slices; DICE: of their volume."


@dataclass(frozen=True)
class Scene:
    """What is behind a figure and the same in all its columns.

    Attributes:
        truth: [Z, Y, X].
        cuts: which images of it are shown.
        unit: of the scale bars.
        title: headline.
        note: a line below it.
        scored: what the metrics are of.
    """

    truth: Volume
    cuts: Cuts
    unit: str
    title: str
    note: str
    scored: str = COVERED


@dataclass(frozen=True)
class _Column:
    title: str
    caption: str
    images: Mapping[str, Volume]
    colour: str = ACCENT


def draw_step_lengths(
    scene: Scene, rows: Sequence[Row], images: Mapping[int, Mapping[str, Volume]], *, method: str
) -> Page:
    """Draw the reconstructions of a method at every step length, and the metrics of all methods.

    Args:
        scene: the volume.
        rows: of `results.csv`.
        images: by step length, the cuts of what the method made.
        method: which one.

    Source: MicroDiffusion (arXiv 2403.10815), supplement, Figure 2.
    """
    own = {row["step_length"]: row for row in rows if row["method"] == method}
    columns = [
        _Column(
            f"step length {length}",
            f"{own[length]['speed_up']}x faster, {_psnr(own[length])}",
            images[length],
        )
        for length in _some(images)
    ]
    columns.append(_Column("truth", "every slice recorded", scene.cuts.take(scene.truth), INK))
    page, top = _draw_images(scene, columns)
    lines = step_length_lines(rows)
    draw_curves(page, top, lines, "step length = acquisition speed-up", sorted(images))
    return page


def step_length_lines(rows: Sequence[Row]) -> list[Line]:
    """The curves of a sweep over step lengths, one a method."""
    return [
        make_line([row for row in rows if row["method"] == name], "step_length")
        for name in dict.fromkeys(row["method"] for row in rows)
    ]


def draw_gammas(
    scene: Scene,
    rows: Sequence[Row],
    images: Mapping[float, Mapping[str, Volume]],
    *,
    method: str,
    schedule: str,
) -> Page:
    """Draw what a method makes at some gammas, and the metrics over gamma with the baselines.

    Args:
        scene: the volume.
        rows: of `results.csv`.
        images: by gamma, the cuts of what the method made.
        method: which one.
        schedule: with which gamma schedule; what was made consistent afterwards is drawn for this
            one only.

    Source: MicroDiffusion (arXiv 2403.10815), supplement, Figure 1.
    """
    own = {
        row["gamma"]: row
        for row in rows
        if (row["method"], row["gamma_schedule"]) == (method, schedule)
    }
    columns = [
        _Column(f"gamma {gamma:g}", _psnr(own[gamma]), images[gamma]) for gamma in _some(images)
    ]
    columns.append(_Column("truth", "", scene.cuts.take(scene.truth), INK))
    page, top = _draw_images(scene, columns)
    lines = gamma_lines(rows, method=method, schedule=schedule)
    draw_curves(page, top, lines, "gamma: weight of the prior in every blend", None)
    return page


def gamma_lines(rows: Sequence[Row], *, method: str, schedule: str) -> list[Line]:
    """The curves of a sweep over gammas: `method` with every schedule, the others with one."""
    kinds = list(dict.fromkeys(row["gamma_schedule"] for row in rows if row["gamma_schedule"]))
    lines = []
    for name in dict.fromkeys(row["method"] for row in rows):
        for kind in (None, *(kinds if name == method else [schedule])):
            found = [r for r in rows if (r["method"], r["gamma_schedule"]) == (name, kind)]
            if found:
                told = kind if name == method and len(kinds) > 1 else None
                lines.append(make_line(found, "gamma", schedule=told))
    return lines


def _psnr(row: Row) -> str:
    return "identical" if row["psnr"] is None else f"{row['psnr']:.1f} dB"


def _some(images: Mapping[Any, Any]) -> list[Any]:
    """As many parameters as there is room for beside the truth, the first and last among them."""
    values, room = sorted(images), _COLUMNS - 1
    if len(values) <= room:
        return values
    return [values[round(i * (len(values) - 1) / (room - 1))] for i in range(room)]


def _draw_images(scene: Scene, columns: Sequence[_Column]) -> tuple[Page, float]:
    """A page with the images, and where the room below them begins, in inches from the top."""
    rows = scene.cuts.rows
    panel = min((_WIDTH - LEFT - _MARGIN) / len(columns) - GAP, _WIDEST)
    heights = {
        name: min(max(panel * high / wide, 0.5), 1.6 * panel)
        for name, (_, (high, wide)) in rows.items()
    }
    images = sum(heights.values()) + len(heights) * GAP
    height = _TOP + images + _BETWEEN + PLOT_HEIGHT + _BOTTOM
    page = new_page(_WIDTH, height, panel_width=panel)
    page.headline(scene.title, f"{scene.note} {scene.scored}")
    whole = scene.cuts.take(scene.truth)
    top = _TOP
    for index, (name, (label, extent)) in enumerate(rows.items()):
        page.label(label, top, heights[name])
        # a slice of sparse tissue is dark but for a spot or two
        limits = contrast(whole[name], 99.8 if name.startswith("maximum") else 99.2)
        for place, column in enumerate(columns):
            axes = page.panel(place, top, heights[name])
            show(axes, column.images[name], extent, limits)
            if index == 0:
                inks = (column.colour, SOFT)
                heading(axes, column.title, column.caption, inks=inks, caption_size=7.5)
            if index < 2 and place == 0:
                scale_bar(axes, extent, scene.unit)
        top += heights[name] + GAP
    return page, top + _BETWEEN
