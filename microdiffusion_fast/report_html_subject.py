"""What the page of a reconstruction is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microdiffusion_fast.report_style import BEST, TITLES, TRUTH, Volume

if TYPE_CHECKING:
    from microdiffusion_fast.forward_model import AxialProjection

BASELINE = "interpolation+consistency"
UNCERTAINTY = "uncertainty"
REMARKS = {
    "nearest": "every slice is the image that covers it",
    "interpolation": "linear, between the centres of the projections",
    BASELINE: "with the smallest change that explains the projections: the baseline, as it is free",
    "inr": "the neural prior, fitted to the projections",
    BEST: "what this package makes of them",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What a page is about.

    Attributes:
        title: headline.
        lead: a sentence or two below it.
        truth: [Z, Y, X].
        volumes: reconstructions [Z, Y, X] by method, in the units of the truth.
        scores: psnr, ssim and dice by method.
        intensity: the intensities shown black and white, the grey levels 0 and 255.
        operator: the projection that was inverted; None where it is not known.
        uncertainty: standard deviation [Z, Y, X].
        voxel_size: (z, y, x) in micrometres.
        misfits: `max |A x - y|` in grey levels, by method.
        details: what the result came from, by heading.
        seconds: of the stages; the total last.
        command: the line that makes the result again.
    """

    title: str
    lead: str
    truth: Volume
    volumes: Mapping[str, Volume]
    scores: Mapping[str, Mapping[str, float]]
    intensity: tuple[float, float]
    operator: AxialProjection | None = None
    uncertainty: Volume | None = None
    voxel_size: tuple[float, float, float] | None = None
    misfits: Mapping[str, float] | None = None
    details: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float] | None = None
    command: str | None = None

    @property
    def size(self) -> tuple[float, float, float]:
        """(z, y, x) of the volume in micrometres, or in voxels of unknown size."""
        sides = zip(self.truth.shape, self.voxel_size or (1.0, 1.0, 1.0), strict=True)
        depth, high, wide = (n * side for n, side in sides)
        return depth, high, wide

    @property
    def columns(self) -> dict[str, Volume]:
        """Volumes to look at, the truth after the methods."""
        spread = {} if self.uncertainty is None else {UNCERTAINTY: self.uncertainty}
        known = [name for name in REMARKS if name in self.volumes and name != "interpolation"]
        others = [name for name in self.volumes if name not in REMARKS]
        methods = {name: self.volumes[name] for name in (*known, *others)}
        return {**methods, TRUTH: self.truth, **spread}


def title_of(name: str) -> str:
    """What a method is called on the page."""
    return TITLES.get(name, name)
