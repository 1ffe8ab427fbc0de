"""The page for a browser: whole, sound, small, and showing the values that it was given."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from microdiffusion_fast import metrics
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.report_html import render
from microdiffusion_fast.report_html_images import (
    MAX_PIXELS,
    MAX_SLICES,
    Thinning,
    averaged,
    make_sheet,
    picture,
)
from microdiffusion_fast.report_html_parts import Curve, chart, facts
from microdiffusion_fast.report_html_subject import Subject
from microdiffusion_fast.report_html_volume import volume_report

METHODS = ("nearest", "interpolation", "interpolation+consistency", "inr", "reconstruction")
VOID = {"meta", "input", "img", "rect", "path", "circle", "br"}
EVIL = "</script><script>alert(1)</script> & \"'"


def a_subject(shape: tuple[int, int, int] = (27, 24, 40), **more: Any) -> Subject:
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]]
    tube = np.exp(-((y - 12) ** 2 + (x - 8 - z) ** 2) / 8.0)
    truth = (1000 * tube).astype(np.float32)
    rng = np.random.default_rng(1)
    volumes = {
        name: (truth + rng.normal(0, 100 - 15 * i, shape)).astype(np.float32)
        for i, name in enumerate(METHODS)
    }
    options: dict[str, Any] = {
        "title": EVIL,
        "lead": "A tube.",
        "truth": truth,
        "volumes": volumes,
        "scores": {name: metrics.evaluate(v, truth).as_dict() for name, v in volumes.items()},
        "intensity": metrics.intensity_window(truth),
        "operator": AxialProjection(shape[0], 6),
        "uncertainty": np.abs(volumes["inr"] - truth),
        "voxel_size": (2.0, 0.5, 0.5),
        "details": {"Parameters": {"gamma": [0.5, 0.9], "inner": {"name": EVIL}}},
        "seconds": {"read": 1.25, "total": 3.5},
        "command": EVIL,
    }
    return Subject(**{**options, **more})


class Page(HTMLParser):
    """What a page is made of; complains about tags that do not fit."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    return render(volume_report(a_subject()))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_is_loaded_from_anywhere(html: str, page: Page) -> None:
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "data", "action", "srcset") and value is not None
    ]
    assert len(addresses) > 20
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in addresses)
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttp|<link|<iframe", html)


def test_only_its_own_script_may_run(html: str, page: Page) -> None:
    policy = next(tag["content"] for tag in page.all("meta") if "http-equiv" in tag)
    assert policy is not None and "default-src 'none'" in policy
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1 and "alert(1)" not in scripts[0]
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "alert(1)" in "".join(page.texts)  # as words
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_it_can_be_read_without_eyes(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert all("alt" in image for image in page.all("img"))
    assert all(canvas["aria-label"] for canvas in page.all("canvas"))
    assert all(drawn["aria-label"] for drawn in page.all("svg"))
    named = {label.get("for") for label in page.all("label")}
    for name in ("depth",):
        assert name in named
    assert len(page.all("h1")) == 1 and len(page.all("h2")) == 4
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))


def test_links_and_names_fit(page: Page) -> None:
    names = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    links = [str(link["href"])[1:] for link in page.all("a")]
    assert links and set(links) <= set(names)


def test_it_tells_the_scores(page: Page) -> None:
    subject, told = a_subject(), " ".join(page.texts)
    for score in subject.scores.values():
        assert f"{score['psnr']:.2f}" in told and f"{score['ssim']:.3f}" in told
    assert "inner: name" in told and "0.5, 0.9" in told


def test_the_data_says_where_slices_lie(html: str) -> None:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])["volumes"]
    subject = a_subject()
    assert data["shape"] == [27, 24, 40] and data["depth"] == 27 and data["step"] == 1
    assert set(data["sheets"]) == {
        *(name for name in METHODS if name != "interpolation"),
        "truth",
        "uncertainty",
        *(f"{name}-error" for name in ("interpolation+consistency", "inr", "reconstruction")),
    }
    name = "reconstruction"
    sheet = data["sheets"][name]
    uri = re.search(rf'id="sheet-{name}" src="([^"]+)"', html)
    assert uri is not None
    grey = decoded(uri[1])
    low, high = subject.intensity
    tall, broad = sheet["tile"]
    for z in range(27):
        row, column = divmod(sheet["index"][z], sheet["columns"])
        shown = grey[row * tall : row * tall + 24, column * broad : column * broad + 40]
        wanted = np.clip((subject.volumes[name][z] - low) / (high - low) * 255, 0, 255)
        assert np.abs(shown.astype(float) - wanted).mean() < 6  # what JPEG makes of noise
    assert data["psnr"]["reconstruction"][10] == pytest.approx(
        10 * math.log10(255**2 / error_of(subject, name, 10)), abs=1e-3
    )


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def error_of(subject: Subject, name: str, z: int) -> float:
    grey = [
        np.asarray(metrics.to_grey_levels(volume[z], *subject.intensity), np.float64)
        for volume in (subject.volumes[name], subject.truth)
    ]
    return float(np.mean((grey[0] - grey[1]) ** 2))


def test_the_same_page_twice(html: str) -> None:
    assert render(volume_report(a_subject())) == html


def test_without_operator_size_and_uncertainty() -> None:
    subject = a_subject(operator=None, voxel_size=None, uncertainty=None, seconds=None)
    html = render(volume_report(subject))
    Page(html)
    assert "bands: the projections" not in html and "sheet-uncertainty" not in html


def test_a_perfect_reconstruction_is_shown() -> None:
    subject = a_subject()
    volumes = {"reconstruction": subject.truth}
    scores = {"reconstruction": {"psnr": math.inf, "ssim": 1.0, "dice": 1.0}}
    html = render(volume_report(a_subject(volumes=volumes, scores=scores, uncertainty=None)))
    Page(html)
    assert "inf" in html


def test_large_volumes_stay_small() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((340, 128, 96), np.float32)
    volumes = {"reconstruction": truth + np.float32(0.01)}
    scores = {"reconstruction": {"psnr": 30.0, "ssim": 0.9, "dice": 0.8}}
    subject = a_subject(truth=truth, volumes=volumes, scores=scores, operator=None)
    subject = Subject(**{**vars(subject), "uncertainty": None, "intensity": (0.0, 1.0)})
    html = render(volume_report(subject))
    assert len(html) < 6e6  # noise is the worst there is
    assert "one slice in 3" in html


@given(
    st.tuples(st.integers(1, 2000), st.integers(8, 4000), st.integers(8, 4000)),
)
def test_thinning_keeps_to_its_budget(shape: tuple[int, int, int]) -> None:
    found = Thinning.of(shape)
    high, wide = (math.ceil(n / found.factor) for n in shape[1:])
    assert len(found.slices) * high * wide <= MAX_PIXELS
    assert len(found.slices) <= MAX_SLICES
    assert found.slices[0] == 0 and found.slices[-1] > shape[0] - 1 - found.step


def test_equal_neighbours_share_a_tile() -> None:
    volume = np.repeat(np.random.default_rng(0).random((3, 9, 13), np.float32), 4, axis=0)
    sheet = make_sheet(volume, (0.0, 1.0))
    assert sheet.index == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert sheet.tile == (16, 16)
    assert decoded(sheet.uri).size == 16 * 16 * math.ceil(3 / sheet.columns) * sheet.columns


def test_averages() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert averaged(image, 1) is image
    assert averaged(image, 2).tolist() == [[2.5, 4.5], [8.5, 10.5]]
    assert max(decoded(picture(np.zeros((1000, 20), np.float32), (0, 1))).shape) <= 480


def test_a_chart_leaves_gaps_and_draws_levels() -> None:
    lines = [
        Curve("a", [(0, 1.0), (1, None), (2, 3.0)], "red"),
        Curve("b", [(0, 2.0)], "blue", level=True),
    ]
    drawn = chart(lines, size=(200, 100), across="x", along="y")
    Page(drawn)
    assert re.search(r'd="M[\d. ]+M[\d. ]+"', drawn)  # no line across the gap
    assert "stroke-dasharray" in drawn
    Page(chart([Curve("flat", [(1, 5.0)], "red")], size=(200, 100), across="x", along="y"))


def test_facts_are_flat_and_plain() -> None:
    text = facts({"a_b": {"c": None}, "d": True, "e": [1, 2.5]})
    assert "a b: c" in text and ">none<" in text and ">yes<" in text and ">1, 2.5<" in text


def test_the_template_is_whole(repository: Path, html: str) -> None:
    assert "{{" not in html
    names = {path.name for path in (repository / "microdiffusion_fast/templates").iterdir()}
    assert names == {"report.html", "report.css", "report.js"}
