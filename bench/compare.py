"""Two files of results side by side: what got faster, what got slower beyond the noise.

    python -m bench.compare old.json new.json

Prints, for every row, the new time over the old one, in seconds and in units of the memcpy that
ran beside it. A row counts as slower only if both say so, each by more than the spread of its
rounds: the first alone may be a busy machine, the second a memcpy that had luck. Exits with 1 if
a row got slower, or is no longer there or no longer right.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Json = dict[str, Any]
Answer = Literal["faster", "slower", "same", "new", "gone", "wrong"]

# Less than this is no change on any machine we know, however quiet.
LEAST_CHANGE = 1.05
# What decides whether seconds can be compared at all.
MACHINE = ("device", "gpu", "smoke")


@dataclass(frozen=True)
class Change:
    """A row in both files: new over old, None where there is nothing to compare."""

    row: str
    seconds: float | None
    floor: float | None
    answer: Answer


def compare(old: Json, new: Json) -> list[Change]:
    """One change for every row of either, in the order of the new file."""
    before = {row["row"]: row for row in old["rows"]}
    after = {row["row"]: row for row in new["rows"]}
    names = [*after, *(name for name in before if name not in after)]
    return [_compare(name, before.get(name), after.get(name)) for name in names]


def _compare(name: str, old: Json | None, new: Json | None) -> Change:
    if new is None:
        return Change(name, None, None, "gone")
    if new["status"] != "measured":
        return Change(name, None, None, "wrong")
    if old is None or old["status"] != "measured":
        return Change(name, None, None, "new")
    pairs = [
        (old[key], new[key]) for key in ("seconds", "times_floor") if key in old and key in new
    ]
    answer: Answer = "same"
    if all(_above(a, b) for a, b in pairs):
        answer = "slower"
    elif all(_above(b, a) for a, b in pairs):
        answer = "faster"
    changes = [b["median"] / a["median"] for a, b in pairs]
    return Change(name, changes[0], changes[1] if len(changes) > 1 else None, answer)


def _above(low: Json, high: Json) -> bool:
    """Whether `high` lies above `low` by more than both their quartiles and the least change."""
    return high["low"] > low["high"] and high["median"] > LEAST_CHANGE * low["median"]


def differences(old: Json, new: Json) -> list[str]:
    """What makes the seconds of two files incomparable."""
    pairs = [(name, old.get(name), new.get(name)) for name in MACHINE]
    pairs += [
        (name, old["machine"].get(name), new["machine"].get(name))
        for name in ("processor", "torch_threads")
    ]
    return [f"{name}: {a} then, {b} now" for name, a, b in pairs if a != b]


def table(changes: Sequence[Change]) -> str:
    lines = ["| row | seconds, new / old | of memcpy, new / old | |", "|---|---|---|---|"]
    for change in changes:
        ratios = ("-" if r is None else f"{r:.2f}" for r in (change.seconds, change.floor))
        lines.append(f"| {change.row} | {' | '.join(ratios)} | {change.answer} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    paths = parser.parse_args(arguments)
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (paths.old, paths.new))
    for line in differences(old, new):
        print(f"not the same conditions: {line}")
    changes = compare(old, new)
    print(table(changes))
    return 1 if any(change.answer in ("slower", "gone", "wrong") for change in changes) else 0


if __name__ == "__main__":
    sys.exit(main())
