"""How the figures of this package look: colours, panels of known size, and what lies on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Volume = NDArray[np.float32]

DPI = 150
TRUTH = "truth"
BEST = "reconstruction"
# What the methods are called, where that differs from the name in `metrics.json`.
TITLES = {"nearest": "projections", "inr": "INR"}
INK, SOFT, ACCENT = "#1b1f24", "#6a737d", "#0b6e99"
# Colour and width of the line of a method, the same in every figure.
LINES = {
    "nearest": ("#d3d8de", 1.2),
    "interpolation": ("#b0b7bf", 1.2),
    "interpolation+consistency": ("#7d8793", 1.4),
    "inr": ("#d9822b", 1.4),
    BEST: (ACCENT, 2.0),
}
# Inches: a panel, the gaps, the margins.
PANEL, GAP, LEFT, RIGHT = 2.2, 0.07, 0.42, 0.62


@dataclass(frozen=True)
class Page:
    """Places axes in inches from the top left: the panels keep their size on any page."""

    figure: Figure
    width: float
    height: float
    panel_width: float = PANEL

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def panel(self, column: int, top: float, height: float) -> Axes:
        left = LEFT + column * (self.panel_width + GAP)
        return self.axes(left, top, self.panel_width, height)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, words, **style)

    def headline(self, title: str, note: str) -> None:
        self.text(LEFT, 0.3, title, fontsize=14, fontweight="bold", color=INK, va="center")
        self.text(LEFT, 0.53, note, fontsize=8.5, color=SOFT, va="center")

    def label(self, words: str, top: float, height: float) -> None:
        style = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 8.5, "color": SOFT}
        self.text(LEFT - 0.16, top + height / 2, words, **style)


def new_page(width: float, height: float, *, panel_width: float = PANEL) -> Page:
    """A white page of that size in inches, without a window system behind it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return Page(figure, width, height, panel_width)


def save(page: Page, path: Path) -> Path:
    """Write the page as PNG or PDF, by the suffix; the same page gives the same bytes."""
    kind = path.suffix[1:]
    metadata = {"CreationDate": None} if kind == "pdf" else None
    page.figure.savefig(path, dpi=DPI, format=kind, metadata=metadata)
    return path


def show(
    axes: Axes,
    image: Volume,
    extent: tuple[float, float],
    limits: tuple[float, float],
    *,
    cmap: str = "gray",
) -> Any:
    """Draw an image [rows, columns] whose extent (height, width) is in micrometres or voxels: an
    anisotropic voxel is drawn as long as it is.
    """
    height, width = extent
    drawn = axes.imshow(
        image,
        extent=(0, width, height, 0),
        aspect="equal",
        interpolation="nearest",
        cmap=cmap,
        vmin=limits[0],
        vmax=limits[1],
    )
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return drawn


def heading(
    axes: Axes, title: str, caption: str, *, inks: tuple[str, str], caption_size: float = 8
) -> None:
    """A title and a caption above a panel, in their colours."""
    # Offsets in points: tall panels must not push the words away.
    for words, lift, size, ink, weight in (
        (title, 17, 11.0, inks[0], "bold"),
        (caption, 5, caption_size, inks[1], "normal"),
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


def contrast(image: Volume, brightest: float = 99.8) -> tuple[float, float]:
    """The intensities to show black and white, so that the brightest pixels, beyond that
    percentile, do not decide.
    """
    low, high = (float(v) for v in np.percentile(image, (0.5, brightest)))
    return (low, high) if high > low else (low, low + 1.0)


def bar_length(width: float) -> float:
    """A round length, about a quarter of the width."""
    wanted = width / 4
    power = 10.0 ** math.floor(math.log10(wanted))
    return max(step * power for step in (1, 2, 5) if step * power <= wanted)


def scale_bar(axes: Axes, extent: tuple[float, float], unit: str = "µm") -> None:
    """A bar of a round length, about a quarter of the width."""
    from matplotlib.patheffects import withStroke

    height, width = extent
    length = bar_length(width)
    x, y = 0.05 * width, height - 0.06 * width
    edge = [withStroke(linewidth=1.6, foreground="black")]  # bright tissue may lie behind it
    bar: dict[str, Any] = {"color": "white", "path_effects": edge}
    axes.plot([x, x + length], [y, y], linewidth=2.5, solid_capstyle="butt", **bar)
    axes.text(
        x + length / 2,
        y - 0.025 * width,
        f"{length:g} {unit}",
        fontsize=7.5,
        ha="center",
        va="bottom",
        **bar,
    )


def plain_axes(axes: Axes, across: str, along: str) -> None:
    """Axes of a curve: two quiet lines and their labels."""
    axes.set_xlabel(across, fontsize=8.5, color=SOFT)
    axes.set_ylabel(along, fontsize=8.5, color=SOFT)
    axes.tick_params(labelsize=8, colors=SOFT, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c8ced6")
