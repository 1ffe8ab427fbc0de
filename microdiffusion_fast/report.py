"""One figure that shows what a reconstruction gained, and where it is still wrong.

Columns are methods, the truth last; rows are a slice far from the centre of its projection (where
depth is hardest), a section along the depth, the maximum projections along z and y, and the error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.metrics import GREY_LEVELS, intensity_window, psnr, to_grey_levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from microdiffusion_fast.forward_model import AxialProjection

Volume = NDArray[np.float32]

DPI = 150
TRUTH = "truth"
BEST = "reconstruction"
# What the columns are called, where that differs from the name in `metrics.json`.
TITLES = {"nearest": "projections", "inr": "INR"}
_INK, _SOFT, _ACCENT = "#1b1f24", "#6a737d", "#0b6e99"
_LINES = {
    "interpolation": ("#b0b7bf", 1.2),
    "interpolation+consistency": ("#7d8793", 1.4),
    "inr": ("#d9822b", 1.4),
    BEST: (_ACCENT, 2.0),
}
# Inches: a panel, the gaps, the margins.
_PANEL, _GAP, _LEFT, _RIGHT, _TOP, _BOTTOM, _STRIP = 2.2, 0.07, 0.42, 0.62, 1.22, 0.5, 2.0


@dataclass(frozen=True)
class _Row:
    """One row of panels: its label, how to cut a volume, its extent in micrometres or voxels."""

    label: str
    cut: Any
    height: float
    width: float
    bar: bool = False
    error: bool = False


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for name, volume in volumes.items():
        if volume.shape != truth.shape:
            raise InputError(name, f"shape {list(truth.shape)}", f"shape {list(volume.shape)}")
    window = intensity_window(truth) if intensity is None else intensity
    panels = {name: volumes[name] for name in columns if name in volumes}
    panels[TRUTH] = truth
    rows = _rows(truth, operator, voxel_size)
    heights = [min(max(_PANEL * row.height / row.width, 0.7), 1.6 * _PANEL) for row in rows]
    width = _LEFT + len(panels) * (_PANEL + _GAP) + _RIGHT
    height = _TOP + sum(heights) + len(rows) * _GAP + 0.62 + _STRIP + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    page = _Page(figure, width, height)
    page.headline(title, note)
    top = _TOP
    for index, (row, tall) in enumerate(zip(rows, heights, strict=True)):
        page.label(row.label, top, tall)
        images = {name: row.cut(volume) for name, volume in panels.items()}
        if row.error:
            spread = None if uncertainty is None else row.cut(uncertainty)
            _draw_errors(page, images, spread, row, top, tall, window)
        else:
            low, high = window if "maximum" not in row.label else _limits(images[TRUTH])
            for place, (name, image) in enumerate(images.items()):
                axes = page.panel(place, top, tall)
                _show(axes, image, row, cmap="gray", vmin=low, vmax=high)
                if index == 0:
                    _column_title(axes, name, scores.get(name))
                if row.bar and place == 0 and voxel_size is not None:
                    _scale_bar(axes, row)
        top += tall + _GAP
    top += 0.62
    split = 0.47 * (width - _LEFT)
    _draw_table(page.axes(_LEFT, top, split, _STRIP), scores)
    plot = page.axes(_LEFT + split + 0.75, top, width - _LEFT - split - 0.75 - _RIGHT, _STRIP)
    _draw_depth_plot(plot, volumes, truth, operator, window)
    target = Path(path)
    figure.savefig(target, dpi=DPI, format="png")
    return target


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


def _limits(image: Volume) -> tuple[float, float]:
    low, high = (float(v) for v in np.percentile(image, (0.5, 99.8)))
    return (low, high) if high > low else (low, low + 1.0)


@dataclass(frozen=True)
class _Page:
    """Places axes in inches from the top left: the panels keep their size on any page."""

    figure: Figure
    width: float
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def panel(self, column: int, top: float, height: float) -> Axes:
        return self.axes(_LEFT + column * (_PANEL + _GAP), top, _PANEL, height)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, words, **style)

    def headline(self, title: str, note: str) -> None:
        self.text(_LEFT, 0.3, title, fontsize=14, fontweight="bold", color=_INK, va="center")
        self.text(_LEFT, 0.53, note, fontsize=8.5, color=_SOFT, va="center")

    def label(self, words: str, top: float, height: float) -> None:
        style = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 8.5, "color": _SOFT}
        self.text(_LEFT - 0.16, top + height / 2, words, **style)


def _show(axes: Axes, image: Volume, row: _Row, **style: Any) -> Any:
    # Extent in physical units: an anisotropic voxel is drawn as long as it is.
    extent = (0, row.width, row.height, 0)
    drawn = axes.imshow(image, extent=extent, aspect="equal", interpolation="nearest", **style)
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return drawn


def _column_title(axes: Axes, name: str, score: Mapping[str, float] | None) -> None:
    caption = "" if score is None else f"{score['psnr']:.2f} dB,  SSIM {score['ssim']:.3f}"
    colour = _ACCENT if name == BEST else _INK
    # Offsets in points: tall panels must not push the words away.
    for words, lift, size, ink, weight in (
        (TITLES.get(name, name), 17, 11, colour, "bold"),
        (caption, 5, 8, _ACCENT if name == BEST else _SOFT, "normal"),
    ):
        axes.annotate(
            words,
            (0.5, 1.0),
            xycoords="axes fraction",
            xytext=(0, lift),
            textcoords="offset points",
            fontsize=size,
            color=ink,
            fontweight=weight,
            ha="center",
            va="bottom",
        )


def _scale_bar(axes: Axes, row: _Row) -> None:
    wanted = row.width / 4
    power = 10 ** math.floor(math.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    x, y = 0.05 * row.width, row.height - 0.06 * row.width
    axes.plot([x, x + length], [y, y], linewidth=2.5, color="white", solid_capstyle="butt")
    axes.text(
        x + length / 2,
        y - 0.025 * row.width,
        f"{length:g} µm",
        color="white",
        fontsize=7.5,
        ha="center",
        va="bottom",
    )


def _draw_errors(
    page: _Page,
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
    style = {"cmap": "magma", "vmin": 0.0, "vmax": limit}
    drawn = None
    for place, image in enumerate(errors.values()):
        drawn = _show(page.panel(place, top, tall), image, row, **style)
    place = len(errors)
    left = _LEFT + place * (_PANEL + _GAP)
    if uncertainty is not None:
        axes = page.panel(place, top, tall)
        factor = _brightening(uncertainty * scale, limit)
        _show(axes, uncertainty * (scale * factor), row, **style)
        words = "uncertainty (std. dev.)" + (f" x {factor:g}" if factor > 1 else "")
        box = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0}
        place_of: dict[str, Any] = {"va": "top", "transform": axes.transAxes, "bbox": box}
        axes.text(0.03, 0.97, words, color="white", fontsize=7.5, **place_of)
        left += _PANEL + _GAP
    bar = page.axes(left, top, 0.1, tall)
    if drawn is not None:
        page.figure.colorbar(drawn, cax=bar)
    bar.tick_params(labelsize=7.5, colors=_SOFT, length=2)
    bar.set_ylabel("grey levels of 255", fontsize=7.5, color=_SOFT)
    for side in bar.spines.values():
        side.set_visible(False)


def _brightening(values: Volume, limit: float) -> float:
    high = float(np.percentile(values, 99.5))
    steps = [1, 2, 5, 10, 20, 50, 100]
    return max((step for step in steps if 0 < step * high <= limit), default=1)


def _draw_table(axes: Axes, scores: Mapping[str, Mapping[str, float]]) -> None:
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(scores) + 1, 0)
    keys = {"psnr": ("PSNR dB", ".2f"), "ssim": ("SSIM", ".3f"), "dice": ("DICE", ".3f")}
    places = dict(zip(keys, (0.66, 0.83, 1.0), strict=True))
    axes.plot([0, 1], [1, 1], color=_INK, linewidth=0.8)
    axes.text(0, 0.5, "method", fontsize=9, color=_SOFT, va="center")
    for key, (name, _) in keys.items():
        axes.text(places[key], 0.5, name, fontsize=9, color=_SOFT, va="center", ha="right")
    best = {key: max(score[key] for score in scores.values()) for key in keys}
    for line, (method, score) in enumerate(scores.items()):
        y = line + 1.5
        colour = _ACCENT if method == BEST else _INK
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
    for name, (colour, thick) in _LINES.items():
        if name in volumes:
            values = psnr(grey, to_grey_levels(volumes[name], *window), per="slice")
            label = TITLES.get(name, name)
            axes.plot(values, color=colour, linewidth=thick, label=label)
    for index, (low, high) in enumerate(operator.windows):
        if index % 2 == 0:
            axes.axvspan(low - 0.5, high - 0.5, color="#f0f2f5", linewidth=0, zorder=0)
    axes.set_xlim(-0.5, truth.shape[0] - 0.5)
    axes.set_xlabel("slice z (bands: the projections)", fontsize=8.5, color=_SOFT)
    axes.set_ylabel("PSNR dB", fontsize=8.5, color=_SOFT)
    axes.tick_params(labelsize=8, colors=_SOFT, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c8ced6")
    axes.legend(fontsize=7.5, frameon=False, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
