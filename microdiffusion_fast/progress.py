"""Progress with time left for every long loop: a bar on a terminal, a line every 30 s elsewhere.

Progress goes to stderr, so that what a command prints on stdout stays clean for pipes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

LINE_SECONDS = 30.0  # between two lines where there is no terminal
QUIET_SECONDS = 5.0  # a stage shorter than this leaves no line behind


class Cancelled(RuntimeError):
    """Raised out of a long loop when its callback returned False."""


@dataclass(frozen=True)
class ProgressEvent:
    """What a progress callback receives after each step.

    Attributes:
        stage: What is being done, such as "fit INR".
        done: Units finished so far.
        total: Units in the whole stage, None where it is not known in advance.
        note: A short remark on the latest unit, such as a loss; may be empty.
    """

    stage: str
    done: int
    total: int | None
    note: str = ""


ProgressCallback = Callable[[ProgressEvent], "bool | None"]


def format_seconds(seconds: float) -> str:
    """A duration as people read it: "8.4 s", "2 min 05 s", "1 h 12 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """One stage of a long computation, as a context manager that shows how far it is.

    A terminal gets a bar with the time left. Anything else gets one line every 30 s, and one at the
    end if the stage took more than 5 s. With `enabled=False` nothing is ever printed, while
    `callback` still sees every step. Stages must not be nested on a terminal.

    Args:
        stage: What is being done.
        total: Number of units, None where unknown (then no time left is shown).
        enabled: Whether to print at all.
        callback: Called with a `ProgressEvent` after each `advance`; returning False cancels.
        unit: Name of one unit, for the lines.

    Raises:
        Cancelled: From `advance`, when the callback returned False.
    """

    def __init__(
        self,
        stage: str,
        total: int | None = None,
        *,
        enabled: bool = True,
        callback: ProgressCallback | None = None,
        unit: str = "step",
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.enabled, self.callback = enabled, callback
        self.done, self.note = 0, ""
        self._bar: Any = None
        self._task: Any = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._started = self._last_line = time.monotonic()
        if self.enabled and sys.stderr.isatty():
            self._bar = _make_bar()
            self._task = self._bar.add_task(self.stage, total=self.total, note="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            if kind is None:
                # A stage that stopped early is finished all the same: no bar is left at 40 %.
                done = max(self.done, 1)
                self._bar.update(self._task, completed=done, total=done)
            self._bar.stop()
            self._bar = None
        elif self.enabled and self.elapsed > QUIET_SECONDS:
            self._say("done" if kind is None else "stopped", f"in {format_seconds(self.elapsed)}")

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._started

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end, None while it cannot be told."""
        if self.total is None or self.done <= 0:
            return None
        return self.elapsed * max(self.total - self.done, 0) / self.done

    def advance(self, units: int = 1, *, note: str | None = None) -> None:
        """Counts finished units, shows them, and asks the callback whether to go on.

        Raises:
            Cancelled: If the callback returned False.
        """
        self.done += units
        if note is not None:
            self.note = note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self.note)
        elif self.enabled and time.monotonic() - self._last_line >= LINE_SECONDS:
            left = self.seconds_left
            self._say("" if left is None else f"{format_seconds(left)} left")
            self._last_line = time.monotonic()
        if self.callback is not None:
            event = ProgressEvent(self.stage, self.done, self.total, self.note)
            if self.callback(event) is False:
                raise Cancelled(f"{self.stage}: cancelled by the callback at {self._count()}")

    def _count(self) -> str:
        of_total = "" if self.total is None else f"/{self.total}"
        return f"{self.done}{of_total} {self.unit}{'' if self.done == 1 else 's'}"

    def _say(self, *parts: str) -> None:
        words = ", ".join(part for part in (self._count(), *parts, self.note) if part)
        print(f"{self.stage}: {words}", file=sys.stderr, flush=True)


def _make_bar() -> Any:
    from rich import progress as rich
    from rich.console import Console

    return rich.Progress(
        rich.TextColumn("{task.description:<18}"),
        rich.BarColumn(bar_width=32),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
        rich.TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True),
    )
