"""Draws docs/quality.png from bench/results/quality.json: gains, and stated against actual error.

python docs/quality_figure.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
SHORT = {
    "vesselexpress_brain_100": "vessels",
    "trailmap_A_dev_130x128x128": "axons",
    "cellseg3d_nuclei_124": "nuclei",
}
COLOURS = {"vessels": "#c44e52", "axons": "#4c72b0", "nuclei": "#55a868", "simulated": "#8c8c8c"}


def main() -> None:
    """Writes the figure."""
    rows = json.loads((ROOT / "bench/results/quality.json").read_text())["rows"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), width_ratios=(3, 2))
    cases = list(dict.fromkeys(name.split(": ")[1] for name in rows))
    for index, (volume, short) in enumerate(SHORT.items()):
        gains = [rows[f"{volume}: {case}"]["gain"] for case in cases]
        places = [place + 0.26 * (index - 1) for place in range(len(cases))]
        left.barh(places, gains, height=0.24, color=COLOURS[short], label=short)
    left.set_yticks(range(len(cases)), cases)
    left.invert_yaxis()
    left.set_xlabel("gain over interpolation with consistency, dB")
    left.legend(frameon=False)
    for name, row in rows.items():
        volume, case = name.split(": ")
        if case != "default":
            continue
        short = SHORT.get(volume, "simulated")
        stated, error = (
            [100 * value for value in row["calibration"][k]] for k in ("stated", "error")
        )
        right.loglog(stated, error, "o-", ms=3, lw=1, color=COLOURS[short])
    right.plot((0.2, 30), (0.2, 30), color="black", lw=0.8)
    right.set_xlabel("stated standard deviation, % of the range")
    right.set_ylabel("root mean square error, % of the range")
    right.text(0.05, 0.93, "above the line: understated", transform=right.transAxes, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs/quality.png", dpi=110)


if __name__ == "__main__":
    main()
