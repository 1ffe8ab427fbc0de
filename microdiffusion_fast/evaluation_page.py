"""The page of `evaluate`: one reconstruction against its truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from microdiffusion_fast import metrics
from microdiffusion_fast.cli_support import check_writable, naming
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io_common import Image
from microdiffusion_fast.io_output import prepare_output, staged
from microdiffusion_fast.provenance import provenance
from microdiffusion_fast.report_style import BEST, Volume

_ARGUMENT = "--report"


def check_report(path: Path, *, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Make sure that a page can be written, before anything is computed.

    Raises:
        InputError: naming `--report`.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(_ARGUMENT, "a name ending in .html", str(path))
    with naming(path=_ARGUMENT):
        target = prepare_output(path, overwrite=overwrite, store=False)
    check_writable(target.parent, _ARGUMENT)
    if any(source.resolve() == target for source in inputs):
        raise InputError(_ARGUMENT, "another file than the inputs", str(path))


def write_page(
    path: Path,
    made: tuple[Path, Image, Volume],
    known: tuple[Path, Image, Volume],
    scores: Mapping[str, float],
    window: str,
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        made: the reconstruction: its file, what the file says, and its values [Z, Y, X].
        known: the truth, likewise.
        scores: psnr, ssim and dice.
        window: of the SSIM.

    Raises:
        InputError: naming `--report`, where the place cannot be written.
    """
    from microdiffusion_fast.report_html import write_report
    from microdiffusion_fast.report_html_subject import Subject
    from microdiffusion_fast.report_html_volume import volume_report

    (recon, image, test), (truth, known_image, reference) = made, known
    size = image.voxel_size or known_image.voxel_size
    z, y, x = reference.shape
    stored = image.extra
    origin = provenance(seed=None, inputs={"reconstruction": test, "truth": reference})
    subject = Subject(
        title=f"{recon.name} against {truth.name}",
        lead=f"{z} x {y} x {x} voxels (z y x); SSIM with a {window} window.",
        truth=reference,
        volumes={BEST: test},
        scores={BEST: scores},
        intensity=metrics.intensity_window(reference),
        voxel_size=size,
        details={
            "Parameters of the reconstruction": stored.get("parameters", {}),
            "Provenance of the reconstruction": stored.get("provenance", {}),
            "Provenance of this page": {name: origin[name] for name in ("inputs", "versions")},
        },
    )
    report = volume_report(subject)
    with naming(path=_ARGUMENT), staged(path.resolve()) as part:
        write_report(part, report)
