"""Progress: what is printed where, and how a callback stops a loop."""

from __future__ import annotations

import io
import sys

import pytest

from microdiffusion_fast import progress
from microdiffusion_fast.progress import Cancelled, Progress, ProgressEvent, format_seconds


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_a_line_every_30_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("fit INR", total=100) as p:
        for _ in range(100):
            clock.now += 1
            p.advance(note="loss 0.01")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "fit INR: 30/100 steps, 1 min 10 s left, loss 0.01",
        "fit INR: 60/100 steps, 40 s left, loss 0.01",
        "fit INR: 90/100 steps, 10 s left, loss 0.01",
        "fit INR: 100/100 steps, done, in 1 min 40 s, loss 0.01",
    ]


def test_a_short_stage_is_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("sample", total=3) as p:
        for _ in range(3):
            clock.now += 1.5
            p.advance()
    assert capsys.readouterr() == ("", "")


def test_unknown_total_has_no_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("read", unit="plane") as p:
        clock.now += 31
        p.advance(7)
        assert p.seconds_left is None
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["read: 7 planes", "read: 7 planes, done, in 31 s"]


def test_a_failed_stage_is_not_called_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError), Progress("fit INR", total=10) as p:
        clock.now += 6
        p.advance()
        raise ValueError
    assert capsys.readouterr().err == "fit INR: 1/10 step, stopped, in 6.0 s\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_disabled_prints_nothing_and_calls_back(
    terminal: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    events: list[ProgressEvent] = []
    with Progress("fit INR", total=2, enabled=False, callback=events.append) as p:
        clock.now += 100
        p.advance(note="a")
        p.advance()
    assert stream.getvalue() == ""
    # A note stays until the next one.
    assert events == [ProgressEvent("fit INR", 1, 2, "a"), ProgressEvent("fit INR", 2, 2, "a")]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("fit INR", total=40) as p:
        p.advance(30, note="loss 0.01")
    # Stopped early, and finished all the same.
    assert "fit INR" in stream.getvalue() and "100%" in stream.getvalue()
    assert "loss 0.01" in stream.getvalue()


def test_the_callback_cancels(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def stop_at_three(event: ProgressEvent) -> bool:
        seen.append(event.done)
        return event.done < 3

    with (
        pytest.raises(Cancelled, match=r"fit INR.*3/10 steps"),
        Progress("fit INR", total=10, callback=stop_at_three) as p,
    ):
        for _ in range(10):
            p.advance()
    assert seen == [1, 2, 3]


def test_a_callback_without_an_answer_goes_on() -> None:
    with Progress("fit INR", total=2, enabled=False, callback=lambda event: None) as p:
        p.advance()
        p.advance()
        assert p.done == 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.9, "60 s"),
        (59.96, "1 min 00 s"),
        (125.4, "2 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (8000, "2 h 13 min"),
    ],
)
def test_format_seconds(seconds: float, words: str) -> None:
    assert format_seconds(seconds) == words
