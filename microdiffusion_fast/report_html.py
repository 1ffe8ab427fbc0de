"""One page that shows a result: self-contained, without a network, in any browser.

The frame that all pages share; `report_html_volume` and `report_html_sweep` fill it. The template's
parts are data of the package. The page forbids itself every connection (its content security
policy), and the only script that runs is the one whose hash it states.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from microdiffusion_fast.cli_support import to_json

CAUTION = (
    "What the projections do not hold is inferred: plausible and consistent with the measurement, "
    "not certain. Look at the uncertainty, and do not measure single voxels."
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page says.

    Attributes:
        title: its headline.
        lead: one or two sentences under it.
        tiles: (name, number, remark) of what matters most.
        sections: name and title of every part, for the links.
        body: the parts, HTML.
        data: for the script, JSON values.
    """

    title: str
    lead: str
    tiles: Sequence[tuple[str, str, str]]
    sections: Mapping[str, str]
    body: str
    data: Mapping[str, Any] = field(default_factory=dict)


def render(report: Report) -> str:
    """The page. The same report gives the same characters."""
    script = _part("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in report.tiles
    )
    links = "".join(
        f'<a href="#{name}">{escape(title)}</a>' for name, title in report.sections.items()
    )
    # "</script>" within a string would end the block.
    data = json.dumps(to_json(report.data), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "title": escape(report.title),
        "lead": escape(report.lead),
        "tiles": f'<dl class="tiles">{tiles}</dl>',
        "links": links,
        "sections": report.body,
        "caution": escape(CAUTION),
        "generator": escape(_generator()),
        "style": _part("report.css"),
        "script": script,
        "script-hash": f"sha256-{digest}",
        "data": data,
    }
    # In one pass: what is put in is never searched for names.
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda found: parts[found[1]], _part("report.html"))


def write_report(path: Path, report: Report) -> Path:
    """Write the page as UTF-8."""
    path.write_text(render(report), encoding="utf-8")
    return path


def _generator() -> str:
    from microdiffusion_fast.info import versions

    return f"microdiffusion_fast {versions()['microdiffusion_fast']}"


def _part(name: str) -> str:
    file = resources.files("microdiffusion_fast").joinpath("templates", name)
    return file.read_text(encoding="utf-8")
