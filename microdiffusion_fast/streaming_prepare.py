"""What a streamed reconstruction finds out once, before its tiles: geometry, range and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .adaptation import AdaptOptions
from .adaptation import adapt as adapt_to
from .adaptation_check import follow_noise, noise_to_error
from .denoiser import Denoiser, load_denoiser, save_denoiser
from .errors import InputError
from .forward_model import AxialProjection
from .io_common import Image, load_json
from .io_scaled import Scaling
from .preset import unseen_noise
from .progress import ProgressCallback
from .projections import Projections, _merge, _stored
from .schedule import Consistency
from .store_shards import write_json
from .store_source import StoredStack
from .tile_survey import survey


def stack_geometry(
    stack: StoredStack,
    *,
    step_length: int | None,
    stride: int | None,
    weights: Sequence[float] | None,
    start: int | None,
    depth: int | None,
    voxel_size: Sequence[float] | None,
) -> Projections:
    """The geometry of a stored stack, by the rules of `Projections.from_any`.

    It comes as `Projections` whose images, 8 x 8 pixels that stand for those in the file, nobody
    looks at.
    """
    given = {
        "step_length": step_length,
        "stride": stride,
        "weights": weights,
        "start": start,
        "depth": depth,
    }
    stored, size, _ = _stored(Image(np.empty(0), extra=stack.extra))
    merged = _merge(given, stored)
    if merged["step_length"] is None:
        expected = "the number of slices in one projection (--step-length N)"
        raise InputError("step_length", expected, f"none given and none stored in {stack.path}")
    if min(stack.shape[1:]) < 8:
        raise InputError("projections", "at least 8 x 8 pixels", f"shape {stack.shape}")
    stand_in = torch.arange(64.0).view(1, 8, 8).expand(stack.shape[0], 8, 8)
    size = size if voxel_size is None else tuple(voxel_size)  # type: ignore[assignment]
    made = Projections(stand_in, **merged, voxel_size=size, source=str(stack.path))
    if size is None and stack.voxel_size is not None:
        z, y, x = stack.voxel_size
        return replace(made, voxel_size=(z / made.stride, y, x))
    return made


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is found out about a stack once, before its tiles, and kept for a resumed run.

    `pixels` were read for it.
    """

    denoiser: Denoiser
    low: float
    high: float
    axial_blur: float
    consistency: Consistency
    noise_to_signal: float | None
    evidence: dict[str, Any]
    pixels: int
    slice_noise: float = 0.0

    @classmethod
    def draft(cls, denoiser: Denoiser) -> Prepared:
        """What stands in for it in a plan, whose costs do not depend on what is found out."""
        return cls(denoiser, 0.0, 1.0, 0.0, "hard", None, {}, 0)

    def scaling(self, step_length: int) -> Scaling:
        """Of 16-bit integers that hold a volume with these projections.

        A slice is at most `step_length` times brighter than the mean of its window where none is
        darker than the background.
        """
        span = self.high - self.low
        return Scaling.spanning(self.low - span, self.low + step_length * span)

    def deviation_scaling(self) -> Scaling:
        """Likewise, of the uncertainty: from none to all of the range of the projections."""
        return Scaling.spanning(0.0, self.high - self.low)

    def save(self, folder: Path) -> None:
        """Keep it for a resumed run.

        Raises:
            InputError: the place cannot be written, or has no room.
        """
        from safetensors import SafetensorError

        values = {name: value for name, value in vars(self).items() if name != "denoiser"}
        try:
            save_denoiser(folder / "network.safetensors", self.denoiser)
            write_json(folder / "prepared.json", values)
        except (OSError, SafetensorError) as error:
            expected = "a place that can be written and has room"
            raise InputError("output", expected, f"{folder} ({error})") from error

    @classmethod
    def load(cls, folder: Path) -> Prepared | None:
        """What a run that was begun has found out, None where it has not.

        Raises:
            InputError: it cannot be read, or another version of this package wrote it.
        """
        if not (folder / "prepared.json").is_file():
            return None
        values = load_json(folder / "prepared.json")
        names = {field.name for field in fields(cls)} - {"denoiser"}
        if values.keys() != names:
            differing = ", ".join(sorted(values.keys() ^ names))
            expected = "a run that this version began (--fresh, resume=False, begins anew)"
            got = f"{folder / 'prepared.json'} of another version, which differs in {differing}"
            raise InputError("resume", expected, got)
        return cls(denoiser=load_denoiser(folder / "network.safetensors"), **values)


def prepare(
    stack: StoredStack,
    geometry: Projections,
    networks: Mapping[bool, Denoiser],
    *,
    axial_blur: float | None,
    consistency: Consistency | None,
    train: bool,
    stated: bool,
    options: AdaptOptions,
    seed: int,
    progress: bool,
    callback: ProgressCallback | None,
) -> Prepared:
    """Intensity range, noise and weights: functions of the stack and the seed, not of its tiles."""
    found = survey(stack, seed=seed, noise=stated)
    images = found.lesson
    operator = geometry.operator
    if len(images) < operator.count:  # a stack of its own
        operator = AxialProjection(
            (len(images) - 1) * operator.stride + operator.step_length,
            operator.step_length,
            stride=operator.stride,
            weights=operator.weights,
        )
    kind, noisy = follow_noise(images, consistency)
    network = networks[noisy]
    adapted = adapt_to(
        network,
        images,
        operator,
        voxel_size=geometry.voxel_size,
        axial_blur=axial_blur,
        train=train,
        options=options,
        seed=seed,
        progress=progress,
        callback=callback,
    )
    ratio = None
    if kind == "soft":
        ratio = noise_to_error(network, images, operator, adapted.axial_blur)
    return Prepared(
        adapted.denoiser,
        found.low,
        found.high,
        adapted.axial_blur,
        kind,
        ratio,
        adapted.record(),
        found.pixels,
        found.noise * unseen_noise(geometry.operator),
    )
