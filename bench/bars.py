"""The bars of the benchmark, and whether a file of results holds them.

    python -m bench.bars bench/results/cpu.json

Prints row, figure, bar, holds or misses; exits with 1 on a miss. A row or peer that was not
measured is listed as such and is no miss; one that failed its verification is.
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
Kind = Literal["floor", "roofline", "speedup", "cost", "difference", "sampling"]

# kind -> (how the figure reads, whether more is better)
KINDS: dict[Kind, tuple[str, bool]] = {
    "floor": ("{:.2f}x memcpy", False),
    "roofline": ("{:.0%} of copy", True),
    "speedup": ("{:.1f}x", True),
    "cost": ("{:.2f}x the time", False),
    "difference": ("{:.1e} off", False),
    "sampling": ("{:.2f} s", False),
}


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        row: name of the row that it judges.
        kind: "floor": time over that of a memcpy of the floor bytes; "roofline": its inverse;
            "speedup": a peer's time over ours; "cost": ours over a peer's; "difference": ours from
            a peer's result; "sampling": seconds of that stage.
        limit: at most, or for "roofline" and "speedup" at least.
        peer: the peer, where the kind has one.
    """

    row: str
    kind: Kind
    limit: float
    peer: str = ""

    def figure(self, row: Json) -> float | None:
        """The figure that this bar is about, None where it was not measured."""
        if self.kind == "sampling":
            return row.get("stages", {}).get("sampling")
        if self.kind == "floor":
            return row.get("times_floor", {}).get("median")
        if self.kind == "roofline":
            return row.get("roofline")
        peer = row.get("peers", {}).get(self.peer, {})
        if self.kind == "difference":
            return peer.get("difference")
        speedup = peer.get("speedup", {}).get("median")
        return 1 / speedup if speedup and self.kind == "cost" else speedup

    def holds(self, figure: float) -> bool:
        return figure >= self.limit if KINDS[self.kind][1] else figure <= self.limit

    def text(self, figure: float) -> str:
        return KINDS[self.kind][0].format(figure)

    @property
    def wanted(self) -> str:
        return f"{'>=' if KINDS[self.kind][1] else '<='} {self.text(self.limit)}"


CPU = (
    Bar("step.given", "floor", 1.5),
    Bar("step.given", "speedup", 3, "torch.compile, out of place"),
    Bar("step.given", "speedup", 30, "as published"),
    Bar("step.drawn", "speedup", 3, "torch.compile"),
    Bar("step.drawn", "speedup", 15, "torch eager"),
    Bar("step.drawn", "speedup", 10, "diffusers DDPM"),
    Bar("step.drawn", "speedup", 10, "diffusers DDIM, eta 1"),
    Bar("step.drawn", "speedup", 10, "diffusers DPM++, stochastic"),
    Bar("step.ddim", "speedup", 10, "diffusers DDIM"),
    Bar("step.dpm++", "speedup", 10, "diffusers DPM++"),
    Bar("step.consistent-given", "cost", 1.15, "ours without consistency"),
    Bar("step.consistent-drawn", "cost", 1.15, "ours without consistency"),
    Bar("metrics.sums", "floor", 1.3),
    Bar("metrics.sums", "speedup", 10, "scikit-image PSNR"),
    Bar("metrics.sums", "speedup", 30, "torchmetrics PSNR"),
    Bar("metrics.overlap", "speedup", 15, "scikit-image"),
    Bar("metrics.overlap-dark", "cost", 1.3, "ours on uniform data"),
    Bar("metrics.overlap-constant", "cost", 1.3, "ours on uniform data"),
    Bar("ssim.uniform-3d", "speedup", 60, "scikit-image"),
    Bar("ssim.uniform-3d", "difference", 1e-6, "scikit-image"),
    Bar("ssim.gaussian-3d", "speedup", 30, "pytorch-msssim"),
    Bar("ssim.slices", "speedup", 20, "scikit-image"),
    Bar("hash.points", "speedup", 8, "torch eager"),
    Bar("hash.points", "speedup", 1.5, "torch.compile"),
    Bar("hash.grid", "speedup", 3, "ours at random points"),
    Bar("inr.step", "speedup", 5, "torch eager"),
    Bar("unet.float32", "speedup", 3, "materialised attention"),
    Bar("unet.float32", "difference", 1e-4, "materialised attention"),
    Bar("exact.shipped", "speedup", 100, "all steps"),
    Bar("exact.shipped", "difference", 2e-6, "all steps"),
)
CUDA = (
    Bar("step.given", "roofline", 0.85),
    Bar("step.drawn", "roofline", 0.80),
    Bar("metrics.sums", "roofline", 0.85),
    Bar("ssim.gaussian-3d", "speedup", 4, "fused-ssim"),
    Bar("hash.points", "speedup", 1, "tiny-cuda-nn"),
    Bar("hash.points-half", "speedup", 1, "tiny-cuda-nn"),
    Bar("hash.grid", "speedup", 3, "tiny-cuda-nn"),
    Bar("chain.128x128x124", "sampling", 3.0),
)


@dataclass(frozen=True)
class Verdict:
    """How one bar came out."""

    bar: Bar
    figure: str
    answer: Literal["holds", "misses", "not measured"]


def judge(results: Json) -> list[Verdict]:
    """The bars for the device of these results, in order."""
    rows = {row["row"]: row for row in results["rows"]}
    bars = CUDA if results["device"] == "cuda" else CPU
    return [_judge(bar, rows.get(bar.row)) for bar in bars]


def _judge(bar: Bar, row: Json | None) -> Verdict:
    if row is None:
        return Verdict(bar, "", "not measured")
    if row["status"] != "measured":
        return Verdict(bar, f"wrong, error {row.get('error')}", "misses")
    figure = bar.figure(row)
    if figure is None:
        why = row.get("peers", {}).get(bar.peer, {}).get("status", "") if bar.peer else ""
        return Verdict(bar, why, "not measured")
    return Verdict(bar, bar.text(figure), "holds" if bar.holds(figure) else "misses")


def table(verdicts: Sequence[Verdict]) -> str:
    """Markdown: row, figure, bar, answer."""
    lines = ["| row | against | figure | bar | |", "|---|---|---|---|---|"]
    for verdict in verdicts:
        bar = verdict.bar
        cells = (bar.row, bar.peer or "-", verdict.figure or "-", bar.wanted, verdict.answer)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bars", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    results = json.loads(parser.parse_args(arguments).results.read_text(encoding="utf-8"))
    if results["smoke"]:
        print("a smoke run: its sizes say nothing about speed, so no bars are judged")
        return 0
    verdicts = judge(results)
    print(table(verdicts))
    counts = {answer: 0 for answer in ("holds", "misses", "not measured")}
    for verdict in verdicts:
        counts[verdict.answer] += 1
    print("\n" + ", ".join(f"{count} {answer}" for answer, count in counts.items()))
    return 1 if counts["misses"] else 0


if __name__ == "__main__":
    sys.exit(main())
