"""Where a page shows a volume: planes along all axes, the depth on a slider."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from microdiffusion_fast.metrics import GREY_LEVELS, psnr, to_grey_levels
from microdiffusion_fast.report import brightening, hardest_slice
from microdiffusion_fast.report_html_images import Sheet, Thinning, make_sheet
from microdiffusion_fast.report_html_parts import LEFT, RIGHT, Curve, chart, legend, section
from microdiffusion_fast.report_html_subject import BASELINE, UNCERTAINTY, Subject, title_of
from microdiffusion_fast.report_style import ACCENT, BEST, LINES, TRUTH, bar_length

# Columns that are there when the page opens.
SHOWN = (BASELINE, BEST, TRUTH, UNCERTAINTY)
# Errors of these can be looked at.
WITH_ERROR = (BASELINE, "inr", BEST)
_CHART = (1100, 250)


Curves = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Sheets:
    """Volumes and errors of a page.

    Attributes:
        found: the sheet of each, and whether it is drawn in colour.
        captions: words under the title of a column.
        error: words on the scale of the errors.
    """

    found: Mapping[str, tuple[Sheet, bool]]
    captions: Mapping[str, str]
    error: str


def viewer(subject: Subject) -> tuple[str, dict[str, Any]]:
    """The section, and what the script needs for it."""
    thinning = Thinning.of(subject.truth.shape)
    sheets, curves = _sheets(subject, thinning), _curves(subject)
    return _slices(subject, thinning, sheets, curves), _data(subject, thinning, sheets, curves)


def _sheets(subject: Subject, thinning: Thinning) -> Sheets:
    scale = GREY_LEVELS / (subject.intensity[1] - subject.intensity[0])
    shown = {name: thinning.take(volume) for name, volume in subject.columns.items()}
    named = [name for name in WITH_ERROR if name in shown]
    if not named:
        named = [name for name in shown if name not in (TRUTH, UNCERTAINTY)]
    errors = {name: np.abs(shown[name] - shown[TRUTH]) * scale for name in named}
    limit = max(float(np.percentile(np.stack(list(errors.values())), 99.5)), 1e-6)
    found: dict[str, tuple[Sheet, bool]] = {}
    captions = {TRUTH: "every slice, recorded or simulated"}
    for name, volume in shown.items():
        if name == UNCERTAINTY:
            factor = brightening(volume * scale, limit)
            found[name] = make_sheet(volume * scale * factor, (0.0, limit)), True
            captions[name] = f"std. dev.; full scale {limit / factor:.3g} of 255"
            continue
        found[name] = make_sheet(volume, subject.intensity), False
        if name in subject.scores:
            score = subject.scores[name]
            captions[name] = f"{score['psnr']:.2f} dB, SSIM {score['ssim']:.3f}"
    for name, error in errors.items():
        found[f"{name}-error"] = make_sheet(error, (0.0, limit)), True
    return Sheets(found, captions, f"full scale {limit:.3g} of 255 grey levels")


def _curves(subject: Subject) -> dict[str, list[float | None]]:
    """PSNR of every slice, by method; None where it is infinite."""
    grey = to_grey_levels(subject.truth, *subject.intensity)
    found = {}
    for name, volume in subject.volumes.items():
        values = psnr(grey, to_grey_levels(volume, *subject.intensity), per="slice")
        numbers = [float(value) for value in np.asarray(values)]
        found[name] = [value if math.isfinite(value) else None for value in numbers]
    return found


def _slices(
    subject: Subject,
    thinning: Thinning,
    sheets: Sheets,
    curves: Curves,
) -> str:
    depth, high, wide = subject.size
    columns = list(subject.columns)
    opened = [name for name in columns if name in SHOWN] if BEST in columns else columns
    ratios = {"xy": wide / high, "xz": wide / depth, "yz": high / depth}
    heads = "".join(
        f'<div class="head{" best" if name == BEST else ""}" data-column="{escape(name)}">'
        f"<b>{escape(title_of(name))}</b><span>{escape(sheets.captions.get(name, ''))}</span></div>"
        for name in columns
    )
    rows = [f'<div class="corner"></div>{heads}']
    for view, ratio in ratios.items():
        shape = f'style="aspect-ratio:{ratio:.4f}"'
        cells = "".join(
            f'<canvas data-column="{escape(name)}" data-view="{view}" role="img" '
            f'aria-label="{escape(title_of(name))}, {view}" {shape}></canvas>'
            for name in columns
        )
        rows.append(f'<div class="row" data-view="{view}">{view}</div>{cells}')
    boxes = "".join(
        f'<label><input type="checkbox" name="column" value="{escape(name)}"'
        f"{' checked' if name in opened else ''}>{escape(title_of(name))}</label>"
        for name in columns
    )
    controls = (
        '<div class="controls"><fieldset><legend>Show</legend>'
        '<label><input type="radio" name="mode" value="intensity" checked>intensity</label>'
        '<label><input type="radio" name="mode" value="error">error '
        f"({escape(sheets.error)})</label></fieldset>"
        f"<fieldset><legend>Columns</legend>{boxes}</fieldset>"
        '<label>Brightness<input type="range" id="brightness" min="-1" max="3" step="0.1" '
        'value="0"></label>'
        '<label><input type="checkbox" id="lines" checked>crosshair</label></div>'
    )
    slider = (
        '<div class="slider"><label for="depth">Depth</label>'
        f'<input type="range" id="depth" min="0" max="{len(thinning.slices) - 1}" step="1">'
        '<button type="button" id="play" aria-pressed="false">Play</button></div>'
        '<output class="readout" id="readout" for="depth" aria-live="polite"></output>'
    )
    pictures = "".join(
        f'<img id="sheet-{escape(name)}" src="{sheet.uri}" alt="">'
        for name, (sheet, _) in sheets.found.items()
    )
    note = (
        "Drag the slider, or click and drag in a picture: all columns show the same place. "
        f"Shown are {thinning.words}, in 8 bits and as JPEG; scores are of the full data."
    )
    body = (
        "<noscript><p>The slices need JavaScript, which this browser does not run here; the rest "
        "of the page does not.</p></noscript>"
        f'{controls}<div class="where">{slider}</div>'
        f'<div class="grid" style="--columns:{len(opened)}">{"".join(rows)}</div>'
        f"{_depth_plot(subject, curves)}"
        f'<div class="sheets" aria-hidden="true">{pictures}</div>'
    )
    return section("slices", "Slice by slice", body, note)


def _depth_plot(subject: Subject, curves: Curves) -> str:
    order = [name for name in LINES if name in curves and name != "nearest"]
    order += [name for name in curves if name not in LINES]
    lines = []
    for name in order:
        colour, width = LINES.get(name, (ACCENT, 2.0))
        points = list(enumerate(curves[name]))
        lines.append(Curve(title_of(name), points, colour, width))
    windows = [] if subject.operator is None else subject.operator.windows
    drawn = chart(
        lines,
        size=_CHART,
        across="slice z" + (" (bands: the projections)" if windows else ""),
        along="PSNR dB",
        bands=[(low - 0.5, high - 0.5) for low, high in windows][::2],
        limits=(-0.5, subject.truth.shape[0] - 0.5),
        whole=True,
    )
    return f'<div class="plot">{drawn}<div class="cursor"></div></div>{legend(lines)}'


def _data(
    subject: Subject,
    thinning: Thinning,
    sheets: Sheets,
    curves: Curves,
) -> dict[str, Any]:
    truth, operator = subject.truth, subject.operator
    count = len(thinning.slices)
    high, wide = (math.ceil(n / thinning.factor) for n in truth.shape[1:])
    contrasts = truth.std(axis=(1, 2))
    z = int(np.argmax(contrasts)) if operator is None else hardest_slice(truth, operator)
    y, x = (int(np.argmax(truth.std(axis=axes))) for axes in ((0, 2), (0, 1)))
    length = bar_length(subject.size[2])
    unit = "voxels" if subject.voxel_size is None else "µm"
    main = [name for name in (BASELINE, BEST) if name in curves] or list(curves)
    shown = {name: {**sheet.record, "hot": hot} for name, (sheet, hot) in sheets.found.items()}
    return {
        "shape": [count, high, wide],
        "depth": truth.shape[0],
        "slices": thinning.slices,
        "step": thinning.step,
        "factor": thinning.factor,
        "spacing": subject.voxel_size[0] if subject.voxel_size else 1.0,
        "unit": "µm" if subject.voxel_size else "",
        "bar": {"length": length, "width": subject.size[2], "label": f"{length:g} {unit}"},
        "start": {
            "z": min(round(z / thinning.step), count - 1),
            "y": min(y // thinning.factor, high - 1),
            "x": min(x // thinning.factor, wide - 1),
        },
        "sheets": shown,
        "psnr": {title_of(name): curves[name] for name in main},
        "centres": [] if operator is None else operator.centres.tolist(),
        # Where the axes of the plot begin and end, in percent of its width.
        "plot": [100 * LEFT / _CHART[0], 100 * (1 - RIGHT / _CHART[0])],
        "magma": _magma(),
    }


def _magma() -> list[list[int]]:
    from matplotlib import colormaps

    colours = colormaps["magma"](np.arange(256), bytes=True)
    return [[int(part) for part in colour[:3]] for colour in colours]
