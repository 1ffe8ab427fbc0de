"""Between files, simulations and reconstructions on one side and layers of napari on the other.

Layers are passed as napari's `(data, attributes, "image")`; nothing here imports napari. What a
file says of itself travels in `metadata["microdiffusion_fast"]` of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io_common import NAMESPACE, micrometres_per

if TYPE_CHECKING:
    from microdiffusion_fast.projections import Projections
    from microdiffusion_fast.reconstruct import Reconstruction

LayerData = tuple[Any, dict[str, Any], str]
Scale = tuple[float, float, float]

MICROMETRES = ("micrometer",) * 3
SAMPLE_SHAPE = (36, 96, 96)
SAMPLE_STEP_LENGTH = 6
SAMPLE_VOXEL = (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Source:
    """What a reconstruction needs of the layer with the projections, and its results inherit.

    Attributes:
        name: of the layer.
        data: images [K, Y, X], an array of any kind.
        scale: (z, y, x) from one image, row and column to the next, in `units`.
        translate: (z, y, x) of the first voxel, in `units`.
        units: names of the units of the three axes; "pixel" where nothing is known.
        contrast_limits: the intensities shown as black and white.
        geometry: `step_length`, `stride`, `start`, `weights` and `depth` from the file, or empty.
    """

    name: str
    data: Any
    scale: Scale = (1.0, 1.0, 1.0)
    translate: Scale = (0.0, 0.0, 0.0)
    units: tuple[str, ...] = ("pixel",) * 3
    contrast_limits: tuple[float, float] | None = None
    geometry: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, layer: Any) -> Source:
        """The source that an image layer of napari is.

        Raises:
            InputError: the layer is no stack of grey images.
        """
        if layer.ndim != 3 or getattr(layer, "rgb", False):
            got = f"{layer.ndim} axes" + (" of RGB" if getattr(layer, "rgb", False) else "")
            raise InputError("projections", "a layer of grey images [K, Y, X]", got)
        limits = layer.contrast_limits
        return cls(
            name=layer.name,
            data=layer.data[0] if layer.multiscale else layer.data,
            scale=_triple(layer.scale),
            translate=_triple(layer.translate),
            units=tuple(str(unit) for unit in layer.units),
            contrast_limits=(float(limits[0]), float(limits[1])),
            geometry=geometry_of(layer.metadata),
        )

    @property
    def spacing(self) -> Scale | None:
        """The scale in micrometres; as it stands where only the unit is unknown; None for neither.

        Raises:
            InputError: a unit that is no length.
        """
        lengths = [micrometres_per(unit, Path(self.name)) for unit in self.units]
        if all(length is None for length in lengths):
            return None if self.scale == (1.0, 1.0, 1.0) else self.scale
        pairs = zip(self.scale, lengths, strict=True)
        return _triple([size * (1.0 if length is None else length) for size, length in pairs])

    def projections(self, step_length: int) -> Projections:
        """The validated stack; the geometry of the file holds if its step length is this one.

        Raises:
            InputError: images, geometry or units that cannot be reconstructed.
        """
        from microdiffusion_fast.projections import Projections

        stored = dict(self.geometry or {})
        if stored.get("step_length") != step_length:
            stored = {}
        stride = stored.get("stride") or step_length
        spacing = self.spacing
        return Projections.from_any(
            np.asarray(self.data),
            step_length=step_length,
            stride=stride,
            weights=stored.get("weights"),
            start=stored.get("start"),
            depth=stored.get("depth"),
            voxel_size=spacing and (spacing[0] / stride, *spacing[1:]),
        )


def geometry_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The geometry that a layer's metadata holds; empty where it holds none."""
    known = metadata.get(NAMESPACE)
    if not isinstance(known, Mapping) or known.get("kind") != "projections":
        return {}
    names = ("step_length", "stride", "start", "weights", "depth")
    return {name: known[name] for name in names if known.get(name) is not None}


def result_layers(source: Source, result: Reconstruction) -> list[LayerData]:
    """Prior, uncertainty (if there is one) and volume, where the projections lie in space."""
    stack = result.projections
    scale = (source.scale[0] / stack.stride, *source.scale[1:])
    # An image stands in the middle of its window of slices.
    above = (stack.start + (stack.step_length - 1) / 2) * scale[0]
    shared = {
        "scale": scale,
        "translate": (source.translate[0] - above, *source.translate[1:]),
        "units": source.units,
    }

    def layer(kind: str, data: np.ndarray, **attributes: Any) -> LayerData:
        facts = {"kind": kind, "parameters": result.parameters}
        named = {"name": f"{source.name} {kind}", "metadata": {NAMESPACE: facts}}
        return data, {**shared, **named, **attributes}, "image"

    limits = source.contrast_limits
    shown = {} if limits is None else {"contrast_limits": limits}
    layers = [layer("prior", result.prior, visible=False, **shown)]
    if result.uncertainty is not None:
        spread = result.uncertainty
        # the brightest thousandth is left to saturate
        high = float(np.quantile(spread, 0.999)) or 1.0
        layers.append(
            layer(
                "uncertainty",
                spread,
                visible=False,
                colormap="magma",
                contrast_limits=(0.0, high),
            )
        )
    return [*layers, layer("reconstruction", result.volume, **shown)]


def read_layers(path: str | Path) -> list[LayerData]:
    """The stack in a file as a layer with voxel size, and geometry where projections state it.

    Raises:
        InputError: see `read_volume`.
    """
    from microdiffusion_fast.io import read_volume

    image = read_volume(path)
    name = Path(path).name.split(".")[0]
    attributes: dict[str, Any] = {"name": name, "metadata": {NAMESPACE: image.extra}}
    if image.voxel_size is not None:
        attributes |= {"scale": image.voxel_size, "units": MICROMETRES}
    return [(image.data, attributes, "image")]


def get_reader(path: str | Sequence[str]) -> Callable[[str], list[LayerData]] | None:
    """napari's reader hook: one file or store at a time."""
    return read_layers if isinstance(path, str) else None


def write_image(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """napari's writer hook: one image layer, with its voxel size and what is known of it.

    Raises:
        InputError: data that are no stack, or units that are no lengths.
    """
    from microdiffusion_fast.io import write_volume

    units = [str(unit) for unit in attributes.get("units", ())] or ["pixel"] * 3
    lengths = [micrometres_per(unit, Path(path)) for unit in units]
    size = None
    if len(lengths) == 3 and all(lengths):
        size = [s * f for s, f in zip(attributes["scale"], lengths, strict=True) if f]
    facts = attributes.get("metadata", {}).get(NAMESPACE)
    # napari has asked before it hands over a path that exists
    written = write_volume(
        path, np.asarray(data), voxel_size=size, overwrite=True, metadata=facts or None
    )
    return [str(written)]


def sample_vessels() -> list[LayerData]:
    """Projections of simulated vessels, and the volume behind them."""
    return _sample("vessels")


def sample_neurites() -> list[LayerData]:
    """Projections of simulated neurites, and the volume behind them."""
    return _sample("neurites")


def sample_nuclei() -> list[LayerData]:
    """Projections of simulated nuclei, and the volume behind them."""
    return _sample("nuclei")


def _sample(kind: str) -> list[LayerData]:
    from microdiffusion_fast.simulate import simulate_projections, simulate_volume

    volume = simulate_volume(kind, SAMPLE_SHAPE)
    stack = simulate_projections(volume, step_length=SAMPLE_STEP_LENGTH, voxel_size=SAMPLE_VOXEL)
    z, y, x = SAMPLE_VOXEL
    facts = {"kind": "projections", "step_length": stack.step_length, "stride": stack.stride}
    above = (stack.step_length - 1) / 2 * z
    truth = {
        "name": f"{kind} truth",
        "scale": SAMPLE_VOXEL,
        "translate": (-above, 0.0, 0.0),
        "units": MICROMETRES,
        "visible": False,
    }
    projections = {
        "name": kind,
        "scale": (stack.stride * z, y, x),
        "units": MICROMETRES,
        "metadata": {NAMESPACE: facts},
    }
    return [(volume, truth, "image"), (stack.images.numpy(), projections, "image")]


def _triple(values: Sequence[float]) -> Scale:
    z, y, x = (float(value) for value in values)
    return z, y, x
