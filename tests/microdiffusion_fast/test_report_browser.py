"""The page in a real browser: it opens from a file, without a network, and does what it says.

Speaks to Chromium's own pipe, so that no package is needed but the browser.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from microdiffusion_fast import metrics
from microdiffusion_fast.experiments import sweep_step_length
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.report_html import write_report
from microdiffusion_fast.report_html_subject import Subject
from microdiffusion_fast.report_html_volume import volume_report
from microdiffusion_fast.simulate import simulate_volume

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
SECONDS = 60


class Browser:
    """One headless Chromium with one page."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        theirs, self._out = os.pipe()
        self._in, ours = os.pipe()

        def to_its_numbers() -> None:
            os.dup2(theirs, 13)  # out of the way first: one of them may be 3 or 4
            os.dup2(ours, 14)
            os.dup2(13, 3)
            os.dup2(14, 4)

        self._process = subprocess.Popen(
            [
                BROWSER,
                "--headless",
                "--no-sandbox",  # which needs a user that is not root
                "--disable-gpu",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
            ],
            preexec_fn=to_its_numbers,  # the numbers are Chromium's
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(ours)
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer; what happens meanwhile is kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            while b"\0" not in self._rest:
                part = os.read(self._in, 1 << 20)
                assert part, "the browser has gone"
                self._rest += part
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)
        raise TimeoutError(method)

    def open(self, path: Path, *, width: int = 1200) -> None:
        """Show a file, and wait until its script says that it is ready."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        # Not from a page that is ready already.
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.as_uri())
        until = time.monotonic() + SECONDS
        while self.value("document.documentElement?.dataset?.ready") != "yes":
            assert time.monotonic() < until, self.events
            time.sleep(0.05)
        self.settle()

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        twice = "requestAnimationFrame(() => requestAnimationFrame(() => done(1)))"
        self.value(f"new Promise((done) => {twice})")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)
        self.settle()

    def picture(self) -> np.ndarray:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))

    def faults(self) -> list[Any]:
        """What went wrong, and what was asked of any network."""
        bad = [
            event
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (
                event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"
            )
        ]
        asked = [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return bad + [url for url in asked if not url.startswith(("file:", "data:", "about:"))]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return simulate_volume("vessels", (24, 32, 40), seed=5) * np.float32(900)


@pytest.fixture(scope="module")
def path(truth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    volumes = {
        name: (truth + rng.normal(0, level, truth.shape)).astype(np.float32)
        for name, level in (("interpolation+consistency", 60), ("reconstruction", 20))
    }
    subject = Subject(
        title="A tube",
        lead="In a browser.",
        truth=truth,
        volumes=volumes,
        scores={name: metrics.evaluate(v, truth).as_dict() for name, v in volumes.items()},
        intensity=metrics.intensity_window(truth),
        operator=AxialProjection(24, 6),
        uncertainty=np.abs(volumes["reconstruction"] - truth),
        voxel_size=(2.0, 0.5, 0.5),
        details={"Parameters": {"gamma": 0.1}},
    )
    file = tmp_path_factory.mktemp("page") / "report.html"
    return write_report(file, volume_report(subject))


def canvas(browser: Browser, column: str, view: str = "xy") -> np.ndarray:
    """The grey levels that a canvas shows, [rows, columns, 3]."""
    found = browser.value(
        f"""(() => {{
          const canvas = document.querySelector(
            'canvas[data-column="{column}"][data-view="{view}"]');
          const context = canvas.getContext("2d");
          const image = context.getImageData(0, 0, canvas.width, canvas.height);
          return [canvas.width, canvas.height, Array.from(image.data)];
        }})()"""
    )
    wide, high, values = found
    return np.asarray(values, np.uint8).reshape(high, wide, 4)[:, :, :3]


def test_the_slider_shows_the_slices(browser: Browser, path: Path, truth: np.ndarray) -> None:
    browser.open(path)
    browser.value("document.getElementById('lines').click()")
    browser.value("document.getElementById('depth').focus()")
    browser.press("Home")
    low, high = metrics.intensity_window(truth)
    for z in (0, 1):
        assert f"z = {z} of 24 ({2 * z:.1f} µm)" in browser.value("readout.textContent")
        shown = canvas(browser, "truth")[:, :, 0].astype(float)
        wanted = np.clip((truth[z] - low) / (high - low), 0, 1) * 255
        assert abs(shown.mean() - wanted.mean()) < 3
        rows = np.arange(32) * shown.shape[0] // 32 + shown.shape[0] // 64
        columns = np.arange(40) * shown.shape[1] // 40 + shown.shape[1] // 80
        there = shown[np.ix_(rows, columns)]
        assert np.corrcoef(there[:24].ravel(), wanted[:24].ravel())[0, 1] > 0.98
        browser.press("ArrowRight")
    browser.press("End")
    assert "z = 23 of 24" in browser.value("readout.textContent")
    assert browser.faults() == []


def test_sections_keep_their_proportions(browser: Browser, path: Path) -> None:
    browser.open(path)
    xy, xz, yz = (canvas(browser, "truth", view) for view in ("xy", "xz", "yz"))
    assert xy.shape[1] == xz.shape[1] == yz.shape[1]
    assert xy.shape[0] / xy.shape[1] == pytest.approx(32 / 40, abs=0.01)
    assert xz.shape[0] / xz.shape[1] == pytest.approx(24 * 2.0 / (40 * 0.5), abs=0.02)


def test_a_click_moves_all_views(browser: Browser, path: Path) -> None:
    browser.open(path)
    box = browser.value(
        """(() => { const canvas = document.querySelector('canvas[data-view="xz"]');
        canvas.scrollIntoView({block: "center", behavior: "instant"});
        const box = canvas.getBoundingClientRect(); return [box.left, box.top, box.width,
        box.height]; })()"""
    )
    left, top, width, height = box
    place = {"x": left + 0.26 * width, "y": top + 0.51 * height, "button": "left", "clickCount": 1}
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, **place)
    browser.settle()
    labels = browser.value("[...document.querySelectorAll('#slices .row')].map(e => e.textContent)")
    assert labels[0] == "xy at z = 12" and labels[2] == "yz at x = 10"


def test_errors_are_in_colour_and_columns_can_go(browser: Browser, path: Path) -> None:
    browser.open(path)
    browser.value("document.getElementById('lines').click()")
    browser.settle()
    grey = canvas(browser, "reconstruction")
    assert np.ptp(grey.astype(int), axis=2).max() == 0 or grey[:-30].std(axis=2).max() == 0
    browser.value("document.querySelector('input[value=error]').click()")
    browser.settle()
    assert np.ptp(canvas(browser, "reconstruction").astype(int), axis=2).max() > 50
    assert np.ptp(canvas(browser, "truth").astype(int), axis=2).max() == 0
    visible = "document.querySelectorAll('#slices canvas:not([hidden])').length"
    before = browser.value(visible)
    browser.value("document.querySelector('input[value=truth]').click()")
    assert browser.value(visible) == before - 3
    assert browser.faults() == []


@pytest.mark.parametrize("width", [1200, 380], ids=["desktop", "phone"])
def test_nothing_sticks_out(width: int, browser: Browser, path: Path) -> None:
    browser.open(path, width=width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.picture().std() > 10  # not an empty page


def test_the_page_of_a_sweep(browser: Browser, truth: np.ndarray, tmp_path: Path) -> None:
    sweep_step_length(
        truth, tmp_path / "out", step_lengths=[2, 4], adapt=False, inr_steps=2, progress=False
    )
    browser.open(tmp_path / "out" / "report.html")
    visible = "[...document.querySelectorAll('img[data-value]:not([hidden])')].map(i => i.alt)"
    first = browser.value(visible)
    assert first and all("step length 2:" in alt for alt in first)
    browser.value("document.getElementById('parameter').focus()")
    browser.press("ArrowRight")
    second = browser.value(visible)
    assert len(second) == len(first) and all("step length 4:" in alt for alt in second)
    assert "step length 4" in browser.value("readout.textContent")
    assert browser.faults() == []
