"""Layers of napari, made and read without napari: geometry, place in space, files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from microdiffusion_fast import io
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.integrations import napari_layers
from microdiffusion_fast.integrations.napari_layers import Source, read_layers, result_layers
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.reconstruct import Reconstruction

UM = ("micrometer",) * 3


def stack(**options: Any) -> Projections:
    images = torch.rand((4, 10, 12), generator=torch.Generator().manual_seed(0))
    return Projections.from_any(
        images, **{"step_length": 3, "voxel_size": (0.5, 0.2, 0.3), **options}
    )


def layer_of(data: Any, attributes: dict[str, Any]) -> Any:
    """What an image layer of napari has of attributes, as far as they are read here."""
    shown = {
        "name": "stack",
        "data": data,
        "ndim": data.ndim,
        "rgb": False,
        "multiscale": False,
        "scale": (1.0, 1.0, 1.0),
        "translate": (0.0, 0.0, 0.0),
        "units": ("pixel",) * 3,
        "contrast_limits": [0.0, 1.0],
        "metadata": {},
    }
    return SimpleNamespace(**{**shown, **attributes})


@pytest.mark.parametrize("name", ["a.ome.tif", "a.tif", "a.ome.zarr", "a.npy"])
def test_geometry_travels_from_the_file(name: str, tmp_path: Path) -> None:
    written = stack(stride=2, start=1, depth=11, weights=[0.25, 0.5, 0.25])
    written.save(tmp_path / name)
    ((data, attributes, kind),) = read_layers(str(tmp_path / name))
    assert kind == "image" and attributes["name"] == "a"
    assert attributes["scale"] == pytest.approx((1.0, 0.2, 0.3))
    source = Source.of(layer_of(data, attributes))
    found = source.projections(3)
    for field in ("step_length", "stride", "start", "depth", "weights"):
        assert getattr(found, field) == getattr(written, field), field
    assert found.voxel_size == pytest.approx(written.voxel_size)
    assert torch.equal(found.images, written.images)
    # another step length: nothing of the stored geometry holds
    other = source.projections(2)
    assert (other.step_length, other.stride, other.start, other.depth) == (2, 2, 0, 8)


def test_units_become_micrometres() -> None:
    data = stack().images.numpy()
    nanometres = layer_of(data, {"scale": (900.0, 100.0, 100.0), "units": ("nanometer",) * 3})
    assert Source.of(nanometres).projections(3).voxel_size == pytest.approx((0.3, 0.1, 0.1))
    assert Source.of(layer_of(data, {})).projections(3).voxel_size is None
    # a scale without a unit still tells how the axes compare
    plain = layer_of(data, {"scale": (3.0, 0.5, 0.5)})
    assert Source.of(plain).projections(3).voxel_size == (1.0, 0.5, 0.5)
    seconds = layer_of(data, {"units": ("second", "micrometer", "micrometer")})
    with pytest.raises(InputError, match="'second' in stack"):
        Source.of(seconds).projections(3)


def test_multiscale_is_read_at_full_resolution() -> None:
    data = stack().images.numpy()
    levels = layer_of(data, {"data": [data, data[:, ::2, ::2]], "multiscale": True})
    assert Source.of(levels).data is data


@pytest.mark.parametrize("change", [{"ndim": 2}, {"ndim": 4}, {"rgb": True}])
def test_other_layers_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="^projections: expected a layer of grey images"):
        Source.of(layer_of(stack().images.numpy(), change))


def test_results_lie_where_the_projections_do() -> None:
    """An image is drawn in the middle of the slices that it is the mean of."""
    measured = stack(stride=2, start=1, depth=11)
    volume = np.zeros((11, 10, 12), np.float32)
    result = Reconstruction(
        volume=volume,
        prior=volume + 1,
        uncertainty=np.full_like(volume, 0.25),
        projections=measured,
        timings={},
        parameters={"seed": 3},
    )
    source = Source(
        "stack",
        measured.images.numpy(),
        scale=(1.0, 0.2, 0.3),
        translate=(7.0, 1.0, 2.0),
        units=UM,
        contrast_limits=(0.1, 0.9),
    )
    layers = result_layers(source, result)
    names = [attributes["name"] for _, attributes, _ in layers]
    assert names == ["stack prior", "stack uncertainty", "stack reconstruction"]
    for data, attributes, kind in layers:
        assert kind == "image" and data.shape == volume.shape
        assert attributes["scale"] == (0.5, 0.2, 0.3)
        assert attributes["units"] == UM
        assert attributes["metadata"]["microdiffusion_fast"]["parameters"] == {"seed": 3}
        z = attributes["translate"][0]
        for k in range(4):
            slices = [z + 0.5 * (1 + 2 * k + i) for i in range(3)]
            assert np.mean(slices) == pytest.approx(7.0 + k * 1.0)
        assert attributes["translate"][1:] == (1.0, 2.0)
    assert layers[0][1]["contrast_limits"] == layers[2][1]["contrast_limits"] == (0.1, 0.9)
    assert layers[1][1]["contrast_limits"] == pytest.approx((0.0, 0.25))


@pytest.mark.parametrize("kind", ["vessels", "neurites", "nuclei"])
def test_samples(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(napari_layers, "SAMPLE_SHAPE", (12, 16, 16))
    truth, projections = getattr(napari_layers, f"sample_{kind}")()
    source = Source.of(layer_of(projections[0], projections[1]))
    found = source.projections(source.geometry["step_length"])  # type: ignore[index]
    assert (found.step_length, found.depth) == (6, 12)
    residual = found.operator(torch.from_numpy(truth[0])) - found.images
    assert float(residual.abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
@pytest.mark.parametrize("unit", ["micrometer", "pixel"])
def test_written_layers_keep_their_size(name: str, unit: str, tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    facts = {"kind": "reconstruction", "parameters": {"seed": 1}}
    attributes = {
        "scale": np.array([0.5, 0.2, 0.2]),
        "units": (unit,) * 3,
        "metadata": {"microdiffusion_fast": facts},
    }
    path = str(tmp_path / name)
    assert napari_layers.write_image(path, data, attributes) == [path]
    image = io.read_volume(path)
    assert np.array_equal(image.data, data) and image.extra == facts
    assert image.voxel_size == (None if unit == "pixel" else pytest.approx((0.5, 0.2, 0.2)))


def test_reader_takes_one_path() -> None:
    assert napari_layers.get_reader(["a.ome.tif", "b.ome.tif"]) is None
    assert napari_layers.get_reader("a.ome.tif") is read_layers
