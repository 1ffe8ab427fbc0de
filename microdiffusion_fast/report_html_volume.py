"""The page of a reconstruction whose truth is known: slices, maxima, scores and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from microdiffusion_fast.report_html import Report
from microdiffusion_fast.report_html_images import picture
from microdiffusion_fast.report_html_parts import bars, facts, section, table
from microdiffusion_fast.report_html_subject import (
    BASELINE,
    REMARKS,
    UNCERTAINTY,
    Subject,
    title_of,
)
from microdiffusion_fast.report_html_viewer import viewer
from microdiffusion_fast.report_style import BEST, contrast

_SCORES = {"psnr": ("PSNR dB", ".2f"), "ssim": ("SSIM", ".3f"), "dice": ("DICE", ".3f")}


def volume_report(subject: Subject) -> Report:
    """Lay out the page of a reconstruction."""
    slices, data = viewer(subject)
    parts = {
        "slices": ("Slice by slice", slices),
        "maxima": ("Maximum projections", _maxima(subject)),
        "scores": ("Scores", _scores(subject)),
        "made": ("How it was made", made(subject.details, subject.seconds, subject.command)),
    }
    return Report(
        title=subject.title,
        lead=subject.lead,
        tiles=_tiles(subject),
        sections={name: title for name, (title, _) in parts.items()},
        body="".join(body for _, body in parts.values()),
        data={"volumes": data},
    )


def _tiles(subject: Subject) -> list[tuple[str, str, str]]:
    best, base = subject.scores.get(BEST), subject.scores.get(BASELINE)
    if best is None:
        best = next(iter(subject.scores.values()))
    found = []
    for key, (label, form) in _SCORES.items():
        gain = "" if base is None else f"{best[key] - base[key]:+{form}} over the baseline"
        found.append((label, format(best[key], form), gain))
    if subject.operator is not None:
        images, depth = len(subject.operator.windows), subject.truth.shape[0]
        remark = f"for {depth} slices: {depth / images:.3g} times fewer"
        found.append(("images recorded", str(images), remark))
    if subject.seconds:
        found.append(("time", f"{subject.seconds['total']:.0f} s", "all stages"))
    return found


def _maxima(subject: Subject) -> str:
    depth, high, wide = subject.size
    names = [name for name in subject.columns if name != UNCERTAINTY]
    heads = "".join(
        f'<div class="head{" best" if name == BEST else ""}"><b>{escape(title_of(name))}</b></div>'
        for name in names
    )
    rows = [f'<div class="corner"></div>{heads}']
    for axis, letter, ratio in (
        (0, "z", wide / high),
        (1, "y", wide / depth),
        (2, "x", high / depth),
    ):
        limits = contrast(subject.truth.max(axis=axis))
        cells = "".join(
            f'<img alt="{escape(title_of(name))}: maximum along {letter}" '
            f'style="aspect-ratio:{ratio:.4f}" '
            f'src="{picture(subject.columns[name].max(axis=axis), limits)}">'
            for name in names
        )
        rows.append(f'<div class="row">along {letter}</div>{cells}')
    note = "The brightest voxel of every line of sight. Black and white are the same in a row."
    grid = f'<div class="grid" style="--columns:{len(names)}">{"".join(rows)}</div>'
    return section("maxima", "Maximum projections", grid, note)


def _scores(subject: Subject) -> str:
    best = {key: max(score[key] for score in subject.scores.values()) for key in _SCORES}
    head = ["method", *(label for label, _ in _SCORES.values())]
    if subject.misfits:
        head.append("max |Ax - y|")
    rows, strong = [], None
    for number, (name, score) in enumerate(subject.scores.items()):
        remark = f"<small>{escape(REMARKS[name])}</small>" if name in REMARKS else ""
        cells = [f"{escape(title_of(name))}{remark}"]
        for key, (_, form) in _SCORES.items():
            cell = format(score[key], form)
            top = len(subject.scores) > 1 and score[key] == best[key]
            cells.append(f"<b>{cell}</b>" if top else cell)
        if subject.misfits:
            cells.append(f"{subject.misfits[name]:.2g}")
        rows.append(cells)
        strong = number if name == BEST else strong
    caption = (
        "PSNR and SSIM are means over the slices"
        + (" that a projection covers" if subject.operator is not None else "")
        + ", DICE is of their volume, by Otsu's threshold; in grey levels of 255 between the 0.1 "
        "and 99.9 percentiles of the truth."
    )
    if len(rows) > 1:
        caption += " The best of each is bold."
    if subject.misfits:
        caption += " The last column is how far a volume is from explaining the measurement."
    return section("scores", "Scores", table(head, rows, caption=caption, strong=strong))


def made(
    details: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float] | None,
    command: str | None,
) -> str:
    """The section on where a result came from.

    Args:
        details: records by heading.
        seconds: of the stages; totals are left out.
        command: the line that makes it again.
    """
    parts = []
    if command:
        parts.append(f"<h3>The same again</h3><pre><code>{escape(command)}</code></pre>")
    if seconds:
        stages = {name: time for name, time in seconds.items() if not name.endswith("total")}
        parts.append(f"<h3>Time</h3>{bars(stages, 's')}")
    for heading, record in details.items():
        if record:
            parts.append(f"<h3>{escape(heading)}</h3>{facts(record)}")
    return section("made", "How it was made", "".join(parts))
