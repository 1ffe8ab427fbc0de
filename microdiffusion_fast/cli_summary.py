"""What the commands print at their end: scores, a verdict, and how to get the result again."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_COLUMNS = {"psnr": ("PSNR dB", ".2f"), "ssim": ("SSIM", ".3f"), "dice": ("DICE", ".3f")}


def print_scores(
    scores: Mapping[str, Mapping[str, float]], misfits: Mapping[str, float] | None = None
) -> None:
    """Print methods against metrics on stdout, the best of each in bold, with the misfit
    `max |A x - y|` in grey levels where it is given.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    best = {key: max(score[key] for score in scores.values()) for key in _COLUMNS}
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("method")
    for title, _ in _COLUMNS.values():
        table.add_column(title, justify="right")
    if misfits:
        table.add_column("max|Ax-y|", justify="right")
    for method, score in scores.items():
        cells = []
        for key, (_, form) in _COLUMNS.items():
            cell = format(score[key], form)
            winner = len(scores) > 1 and score[key] == best[key]
            cells.append(f"[bold]{cell}[/bold]" if winner else cell)
        if misfits:
            cells.append(f"{misfits[method]:.2g}")
        table.add_row(method, *cells)
    Console(highlight=False).print(table)


def verdict(scores: Mapping[str, Mapping[str, float]]) -> str:
    """One line that says whether the reconstruction was worth it, and where it was not."""
    made, simple = scores["reconstruction"], scores["interpolation+consistency"]
    gain = made["psnr"] - simple["psnr"]
    worse = [key.upper() for key in ("psnr", "ssim", "dice") if made[key] < simple[key]]
    line = f"reconstruction: {gain:+.2f} dB PSNR against interpolation+consistency"
    return line + (f"; NOT better in {', '.join(worse)}" if worse else "")


def adaptation_line(adaptation: Mapping[str, Any], *, asked: bool = True) -> str:
    """One line on what became of the adaptation, and on what evidence.

    Args:
        adaptation: As in `Reconstruction.adaptation`.
        asked: Whether the weights were to be adapted at all, or only checked.
    """
    if "skipped" in adaptation:
        return f"adaptation: skipped, it {adaptation['skipped']}; the weights stay as they were"
    errors = adaptation.get("error", {})
    shipped, adapted = errors.get("as shipped"), errors.get("adapted")
    if not asked:
        words = "off"
    elif adaptation.get("accepted"):
        words = "accepted"
    elif shipped is not None and adapted is None:
        words = "not needed"
    else:
        words = "not accepted, the weights stay as they were"
    parts = [f"adaptation: {words}"]
    if shipped is not None:
        change = f"{shipped:.3f}" + ("" if adapted is None else f" before, {adapted:.3f} after")
        parts.append(f"squared error along z, 1 being interpolation: {change}")
    if adaptation.get("trust", 1) < 1:
        parts.append(f"what the network adds is scaled by {adaptation['trust']:g}")
    source = adaptation.get("blur", "")
    parts.append(f"axial blur {adaptation['axial_blur']:g} slices {source}".rstrip())
    return "; ".join(parts)


def print_noise(parameters: Mapping[str, Any]) -> None:
    """Print how far noisy projections were followed; nothing where they were followed exactly.

    Args:
        parameters: As `Reconstruction.parameters`.
    """
    ratio = parameters.get("noise_to_signal")
    if ratio is not None and parameters.get("steps") is None:  # in chains the weight falls
        weight = 1 / (1 + ratio)
        print(f"consistency: soft; what the network makes of a projection counts {1 - weight:.0%}")


def exact_line(exact: Mapping[str, Any]) -> str:
    """One line on an exact chain: how many steps it took, and what shows that they are enough.

    Args:
        exact: As `Reconstruction.parameters["exact"]`.
    """
    line = f"exact: the last {exact['steps']} of {exact['of']} steps; "
    if exact["difference"] is None:
        return line + f"by algebra they keep at most {exact['bound']:.1g} of the range, not probed"
    return line + f"two starts differ by at most {exact['difference']:.1g} of the range"


def command_line(command: str, arguments: list[str | Path], options: Mapping[str, Any]) -> str:
    """The line that runs a command again; options that are None or False are left out."""
    words = ["microdiffusion-fast", command, *(str(argument) for argument in arguments)]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(name)
        if isinstance(value, tuple):
            words += [f"{item:g}" for item in value]
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)


def print_rows(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, group: str
) -> None:
    """Print the rows of a sweep on stdout, the best of each group in bold.

    Args:
        rows: as in `experiments.Sweep`.
        columns: parameters to show before the method, with their titles.
        group: rows that share this column are compared, and lie together.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    for title in (*columns.values(), "method"):
        table.add_column(title)
    for title, _ in _COLUMNS.values():
        table.add_column(title, justify="right")
    for value in dict.fromkeys(row[group] for row in rows):
        together = [row for row in rows if row[group] == value]
        best = {key: max(_number(row[key]) for row in together) for key in _COLUMNS}
        for row in together:
            cells = ["" if row[name] is None else f"{row[name]}" for name in columns]
            cells.append(row["method"])
            for key, (_, form) in _COLUMNS.items():
                cell = format(_number(row[key]), form)
                cells.append(f"[bold]{cell}[/bold]" if _number(row[key]) == best[key] else cell)
            table.add_row(*cells, end_section=row is together[-1])
    Console(highlight=False).print(table)


def _number(value: float | None) -> float:
    # what is not finite has no number in JSON: the PSNR of a slice without any error
    return math.inf if value is None else value


def print_stack(output: Path, shape: Sequence[int]) -> None:
    """Say what stack of projections was written."""
    count, height, width = shape
    print(f"wrote {output}: {count} projections of {height} x {width} pixels")


def warn_no_voxel_size(path: Path) -> None:
    """Say that a result has no voxel size, because its input has none."""
    words = f"{path} states no voxel size, the result carries none (--voxel-size Z Y X sets it)"
    print(f"warning: {words}", file=sys.stderr, flush=True)
