"""One figure that shows what a reconstruction gained, and where it is still wrong.

Columns are methods, the truth last; rows are a slice far from the centre of its projection (where
depth is hardest), a section along the depth, the maximum projections along z and y, and the error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.metrics import GREY_LEVELS, intensity_window, psnr, to_grey_levels
from microdiffusion_fast.report_style import (
    ACCENT,
    BEST,
    GAP,
    INK,
    LEFT,
    LINES,
    PANEL,
    RIGHT,
    SOFT,
    TITLES,
    TRUTH,
    Page,
    Volume,
    contrast,
    heading,
    new_page,
    plain_axes,
    save,
    scale_bar,
    show,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from microdiffusion_fast.forward_model import AxialProjection

# Inches: the margins above and below, the plots.
_TOP, _BOTTOM, _STRIP = 1.22, 0.5, 2.0


@dataclass(frozen=True)
class _Row:
    """One row of panels: its label, how to cut a volume, its extent in micrometres or voxels."""

    label: str
    cut: Any
    height: float
    width: float
    bar: bool = False
    error: bool = False

    @property
    def extent(self) -> tuple[float, float]:
        return self.height, self.width


def draw_report(
    path: str | os.PathLike[str],
    *,
    volumes: Mapping[str, Volume],
    truth: Volume,
    scores: Mapping[str, Mapping[str, float]],
    operator: AxialProjection,
    columns: tuple[str, ...] = ("nearest", "interpolation", "inr", BEST),
    intensity: tuple[float, float] | None = None,
    uncertainty: Volume | None = None,
    voxel_size: tuple[float, float, float] | None = None,
    title: str = "",
    note: str = "",
) -> Path:
    """Draw the volumes of all methods against the truth into one PNG.

    Args:
        path: The PNG to write.
        volumes: Reconstructions [Z, Y, X] by method, in the intensity units of the truth.
        truth: The volume that was projected, [Z, Y, X].
        scores: psnr, ssim and dice by method, for the table; the best of each is bold.
        operator: The projection that was inverted; it says which slices are far from a centre.
        columns: Which methods get a column of images.
        intensity: The intensities shown black and white; default `intensity_window(truth)`.
        uncertainty: Standard deviation [Z, Y, X] of the reconstruction.
        voxel_size: (z, y, x) in micrometres: sections keep their proportions, and a scale bar.
        title: Headline of the figure.
        note: A line below it.

    Raises:
        InputError: If a volume has not the shape of the truth, or the truth is constant.
    """
    for name, volume in volumes.items():
        if volume.shape != truth.shape:
            raise InputError(name, f"shape {list(truth.shape)}", f"shape {list(volume.shape)}")
    window = intensity_window(truth) if intensity is None else intensity
    panels = {name: volumes[name] for name in columns if name in volumes}
    panels[TRUTH] = truth
    rows = _rows(truth, operator, voxel_size)
    heights = [min(max(PANEL * row.height / row.width, 0.7), 1.6 * PANEL) for row in rows]
    width = LEFT + len(panels) * (PANEL + GAP) + RIGHT
    height = _TOP + sum(heights) + len(rows) * GAP + 0.62 + _STRIP + _BOTTOM
    page = new_page(width, height)
    page.headline(title, note)
    top = _TOP
    for index, (row, tall) in enumerate(zip(rows, heights, strict=True)):
        page.label(row.label, top, tall)
        images = {name: row.cut(volume) for name, volume in panels.items()}
        if row.error:
            spread = None if uncertainty is None else row.cut(uncertainty)
            _draw_errors(page, images, spread, row, top, tall, window)
        else:
            limits = window if "maximum" not in row.label else contrast(images[TRUTH])
            for place, (name, image) in enumerate(images.items()):
                axes = page.panel(place, top, tall)
                show(axes, image, row.extent, limits)
                if index == 0:
                    _column_title(axes, name, scores.get(name))
                if row.bar and place == 0 and voxel_size is not None:
                    scale_bar(axes, row.extent)
        top += tall + GAP
    top += 0.62
    split = 0.47 * (width - LEFT)
    _draw_table(page.axes(LEFT, top, split, _STRIP), scores)
    plot = page.axes(LEFT + split + 0.75, top, width - LEFT - split - 0.75 - RIGHT, _STRIP)
    _draw_depth_plot(plot, volumes, truth, operator, window)
    return save(page, Path(path))


def hardest_slice(truth: Volume, operator: AxialProjection) -> int:
    """Index of the slice with the most contrast among those farthest from a projection's centre.

    Chosen from the truth and the geometry alone, so that it favours no method. Only slices between
    two centres count: beyond the last one nothing can be interpolated.
    """
    slices = np.arange(truth.shape[0])
    centres = operator.centres.numpy()
    distance = np.abs(slices[:, None] - centres[None, :]).min(axis=1)
    inside = operator.covered.numpy() & (slices >= centres[0]) & (slices <= centres[-1])
    if not inside.any():
        inside = np.ones(len(slices), dtype=bool)
    candidates = slices[inside & (distance >= distance[inside].max() - 0.01)]
    return int(candidates[np.argmax(truth[candidates].std(axis=(1, 2)))])


def _rows(
    truth: Volume, operator: AxialProjection, voxel_size: tuple[float, float, float] | None
) -> list[_Row]:
    dz, dy, dx = voxel_size or (1.0, 1.0, 1.0)
    depth, high, wide = (n * d for n, d in zip(truth.shape, (dz, dy, dx), strict=True))
    z = hardest_slice(truth, operator)
    y = int(np.argmax(truth.std(axis=(0, 2))))
    return [
        _Row(f"xy, slice z = {z}", lambda v: v[z], high, wide, bar=True),
        _Row(f"xz, row y = {y}", lambda v: v[:, y], depth, wide, bar=True),
        _Row("maximum along z", lambda v: v.max(axis=0), high, wide),
        _Row("maximum along y", lambda v: v.max(axis=1), depth, wide),
        _Row(f"|error|, row y = {y}", lambda v: v[:, y], depth, wide, error=True),
    ]


def _column_title(axes: Axes, name: str, score: Mapping[str, float] | None) -> None:
    caption = "" if score is None else f"{score['psnr']:.2f} dB,  SSIM {score['ssim']:.3f}"
    inks = (ACCENT, ACCENT) if name == BEST else (INK, SOFT)
    heading(axes, TITLES.get(name, name), caption, inks=inks)


def _draw_errors(
    page: Page,
    images: Mapping[str, Volume],
    uncertainty: Volume | None,
    row: _Row,
    top: float,
    tall: float,
    window: tuple[float, float],
) -> None:
    """The error of each method, and the uncertainty beneath the truth, on one scale.

    An uncertainty far below the errors is brightened by a factor that is written on it.
    """
    scale = GREY_LEVELS / (window[1] - window[0])
    errors = {
        name: np.abs(image - images[TRUTH]) * scale
        for name, image in images.items()
        if name != TRUTH
    }
    limit = max(float(np.percentile(np.stack(list(errors.values())), 99.5)), 1e-6)
    drawn = None
    for place, image in enumerate(errors.values()):
        drawn = show(page.panel(place, top, tall), image, row.extent, (0.0, limit), cmap="magma")
    place = len(errors)
    left = LEFT + place * (PANEL + GAP)
    if uncertainty is not None:
        axes = page.panel(place, top, tall)
        factor = brightening(uncertainty * scale, limit)
        shown = uncertainty * (scale * factor)
        show(axes, shown, row.extent, (0.0, limit), cmap="magma")
        words = "uncertainty (std. dev.)" + (f" x {factor:g}" if factor > 1 else "")
        box = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0}
        place_of: dict[str, Any] = {"va": "top", "transform": axes.transAxes, "bbox": box}
        axes.text(0.03, 0.97, words, color="white", fontsize=7.5, **place_of)
        left += PANEL + GAP
    bar = page.axes(left, top, 0.1, tall)
    if drawn is not None:
        page.figure.colorbar(drawn, cax=bar)
    bar.tick_params(labelsize=7.5, colors=SOFT, length=2)
    bar.set_ylabel("grey levels of 255", fontsize=7.5, color=SOFT)
    for side in bar.spines.values():
        side.set_visible(False)


def brightening(values: Volume, limit: float) -> float:
    """The largest round factor, up to 100, that keeps values within a limit."""
    high = float(np.percentile(values, 99.5))
    steps = [1, 2, 5, 10, 20, 50, 100]
    return max((step for step in steps if 0 < step * high <= limit), default=1)


def _draw_table(axes: Axes, scores: Mapping[str, Mapping[str, float]]) -> None:
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(scores) + 1, 0)
    keys = {"psnr": ("PSNR dB", ".2f"), "ssim": ("SSIM", ".3f"), "dice": ("DICE", ".3f")}
    places = dict(zip(keys, (0.66, 0.83, 1.0), strict=True))
    axes.plot([0, 1], [1, 1], color=INK, linewidth=0.8)
    axes.text(0, 0.5, "method", fontsize=9, color=SOFT, va="center")
    for key, (name, _) in keys.items():
        axes.text(places[key], 0.5, name, fontsize=9, color=SOFT, va="center", ha="right")
    best = {key: max(score[key] for score in scores.values()) for key in keys}
    for line, (method, score) in enumerate(scores.items()):
        y = line + 1.5
        colour = ACCENT if method == BEST else INK
        axes.text(0, y, TITLES.get(method, method), fontsize=10, color=colour, va="center")
        for key, (_, form) in keys.items():
            weight = "bold" if score[key] == best[key] else "normal"
            style: dict[str, Any] = {"fontsize": 10, "color": colour, "fontweight": weight}
            axes.text(places[key], y, format(score[key], form), va="center", ha="right", **style)


def _draw_depth_plot(
    axes: Axes,
    volumes: Mapping[str, Volume],
    truth: Volume,
    operator: AxialProjection,
    window: tuple[float, float],
) -> None:
    """PSNR slice by slice, over the windows of the projections."""
    grey = to_grey_levels(truth, *window)
    for name, (colour, thick) in LINES.items():
        if name in volumes and name != "nearest":
            values = psnr(grey, to_grey_levels(volumes[name], *window), per="slice")
            label = TITLES.get(name, name)
            axes.plot(values, color=colour, linewidth=thick, label=label)
    for index, (low, high) in enumerate(operator.windows):
        if index % 2 == 0:
            axes.axvspan(low - 0.5, high - 0.5, color="#f0f2f5", linewidth=0, zorder=0)
    axes.set_xlim(-0.5, truth.shape[0] - 0.5)
    plain_axes(axes, "slice z (bands: the projections)", "PSNR dB")
    axes.legend(fontsize=7.5, frameon=False, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
