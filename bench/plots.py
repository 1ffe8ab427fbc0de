"""Plots of a file of results: the ratio to every peer, and the fraction of the copy roofline.

python -m bench.plots bench/results/cpu.json -o docs/bench
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.bars import CPU, CUDA

Json = dict[str, Any]


def speedups(results: Json) -> list[tuple[str, Json]]:
    """(label, spread of peer time over ours) of every peer that was measured."""
    return [
        (f"{row['row']}: {name}", peer["speedup"])
        for row in results["rows"]
        for name, peer in row.get("peers", {}).items()
        if "speedup" in peer
    ]


def rooflines(results: Json) -> list[tuple[str, float]]:
    """(row, fraction of the copy roofline) of every row that has one."""
    return [(row["row"], row["roofline"]) for row in results["rows"] if "roofline" in row]


def draw(results: Json, folder: Path) -> list[Path]:
    """Writes speedups.png and roofline.png into the folder; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "speedups.png", folder / "roofline.png"]
    bars = CUDA if results["device"] == "cuda" else CPU
    wanted = {f"{bar.row}: {bar.peer}": bar.limit for bar in bars if bar.kind == "speedup"}

    found = speedups(results)
    places = range(len(found))
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.22 * len(found)), layout="constrained")
    medians = [ratio["median"] for _, ratio in found]
    spread = [
        [max(r["median"] - r["low"], 0.0) for _, r in found],
        [max(r["high"] - r["median"], 0.0) for _, r in found],
    ]
    axes.errorbar(
        medians, places, xerr=spread, fmt="o", color="tab:blue", label="median, quartiles"
    )
    limits = [(wanted[label], i) for i, (label, _) in enumerate(found) if label in wanted]
    if limits:
        axes.plot(*zip(*limits, strict=True), "|", color="tab:red", markersize=14, label="bar")
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel=f"time of the peer / ours, {_conditions(results)}")
    axes.set_yticks(places, [label for label, _ in found], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(paths[0], dpi=120)

    shares = rooflines(results)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.26 * len(shares)), layout="constrained")
    axes.barh([name for name, _ in shares], [share for _, share in shares], color="tab:blue")
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set(xlabel=f"fraction of the copy roofline, {_conditions(results)}")
    axes.invert_yaxis()
    figure.savefig(paths[1], dpi=120)
    plt.close("all")
    return paths


def _conditions(results: Json) -> str:
    there = results["gpu"] or results["machine"]["processor"]
    threads = "" if results["gpu"] else f", {results['machine']['torch_threads']} threads"
    return f"{there}{threads}, {results['date'][:10]}, {(results['commit'] or 'no commit')[:9]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    for path in draw(json.loads(options.results.read_text(encoding="utf-8")), options.output):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
