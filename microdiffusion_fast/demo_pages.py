"""What a demo shows: the figure, and the page for a browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microdiffusion_fast.demo_methods import Volume
from microdiffusion_fast.projections import Projections


@dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """What there is to show.

    Attributes:
        name: of the volume.
        truth: [Z, Y, X].
        volumes: reconstructions [Z, Y, X] by method.
        scores: psnr, ssim and dice by method.
        misfits: `max |A x - y|` in grey levels, by method.
        projections: what the methods saw.
        uncertainty: standard deviation [Z, Y, X]; None for one sample.
        window: intensities of the grey levels 0 and 255.
    """

    name: str
    truth: Volume
    volumes: Mapping[str, Volume]
    scores: Mapping[str, Mapping[str, float]]
    misfits: Mapping[str, float]
    projections: Projections
    uncertainty: Volume | None
    window: tuple[float, float]

    @property
    def title(self) -> str:
        """The headline of figure and page."""
        count, length = len(self.projections.images), self.projections.step_length
        return f"{self.name}: depth from {count} projections of {length} slices"

    @property
    def size(self) -> str:
        """Shape and voxel size, in words."""
        size = self.projections.voxel_size
        cells = "voxels of unknown size" if size is None else "voxels of {:g} x {:g} x {:g} µm"
        z, y, x = self.truth.shape
        return f"{z} x {y} x {x} {cells.format(*(size or ()))} (z y x)."


def draw_figure(path: Path, results: Results) -> None:
    """Draw all methods into one PNG."""
    from microdiffusion_fast.report import draw_report

    words = "PSNR and SSIM: means over the covered slices; DICE: of their volume."
    draw_report(
        path,
        volumes=results.volumes,
        truth=results.truth,
        scores=results.scores,
        operator=results.projections.operator,
        intensity=results.window,
        uncertainty=results.uncertainty,
        voxel_size=results.projections.voxel_size,
        title=results.title,
        note=f"{results.size} {words}",
    )


def write_page(
    path: Path, results: Results, record: Mapping[str, Any], command: str | None
) -> None:
    """Write the page for a browser.

    Args:
        path: the HTML file.
        results: what it shows.
        record: the contents of `metrics.json`: what it tells.
        command: the line that makes the same results again.
    """
    from microdiffusion_fast.report_html import write_report
    from microdiffusion_fast.report_html_subject import Subject
    from microdiffusion_fast.report_html_volume import volume_report

    details = {
        "Parameters": record["parameters"],
        "Simulation of the projections": {**record["input"], **record["simulation"]},
        "Adaptation": record["adaptation"],
        "Provenance": record["provenance"],
        "Machine": record["machine"],
    }
    subject = Subject(
        title=results.title,
        lead=f"{results.size} Every method saw the same projections; all are compared with the "
        "volume that was projected.",
        truth=results.truth,
        volumes=results.volumes,
        scores=results.scores,
        intensity=results.window,
        operator=results.projections.operator,
        uncertainty=results.uncertainty,
        voxel_size=results.projections.voxel_size,
        misfits=results.misfits,
        details=details,
        seconds=record["seconds"],
        command=command,
    )
    write_report(path, volume_report(subject))
