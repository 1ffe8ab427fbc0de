"""The napari plugin without a screen: the manifest, and the widget from a layer to its results."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("napari", reason="needs microdiffusion-fast[napari]")
pytest.importorskip("pytestqt", reason="needs pytest-qt")

from napari.components import ViewerModel
from npe2 import PluginManager, PluginManifest
from qtpy.QtCore import QThreadPool

from microdiffusion_fast.inr import INROptions
from microdiffusion_fast.integrations import napari as plugin
from microdiffusion_fast.integrations import napari_layers
from microdiffusion_fast.simulate import simulate_projections, simulate_volume

MILLISECONDS = 60_000


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Small projections and the volume behind them, as layers."""
    monkeypatch.setattr(napari_layers, "SAMPLE_SHAPE", (18, 24, 24))
    monkeypatch.setattr(napari_layers, "SAMPLE_VOXEL", (0.5, 0.25, 0.25))
    return napari_layers.sample_vessels()


@pytest.fixture
def widget(qtbot: Any, sample: list[Any]) -> plugin.ReconstructWidget:
    """The widget beside a viewer that has the sample; no canvas, which wants OpenGL."""
    viewer = ViewerModel()
    made = plugin.ReconstructWidget(viewer)
    qtbot.addWidget(made)
    for data in sample:
        viewer.add_layer(plugin.Layer.create(*data))
    return made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short fit of the prior."""
    module = importlib.import_module("microdiffusion_fast.preset_fast")
    monkeypatch.setattr(module, "INROptions", functools.partial(INROptions, steps=40))


def finish(qtbot: Any, widget: plugin.ReconstructWidget) -> None:
    qtbot.waitUntil(lambda: widget.run.isEnabled(), timeout=MILLISECONDS)


def test_manifest(repository: Path) -> None:
    manifest = PluginManifest.from_file(repository / "microdiffusion_fast" / "napari.yaml")
    assert manifest.name == "microdiffusion-fast"
    for command in manifest.contributions.commands:
        module, _, name = command.python_name.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), command.id
    assert {item.key for item in manifest.contributions.sample_data} == {
        "vessels",
        "neurites",
        "nuclei",
    }


@pytest.fixture
def registered(repository: Path) -> None:
    """The plugin as napari finds it once the package is installed."""
    plugins = PluginManager.instance()
    if "microdiffusion-fast" not in plugins:
        manifest = repository / "microdiffusion_fast" / "napari.yaml"
        plugins.register(PluginManifest.from_file(manifest))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["saved.ome.tif", "saved.ome.zarr"])
def test_through_the_menus(name: str, sample: list[Any], tmp_path: Path) -> None:
    """Open a sample, save a layer, open it again: what napari's menus do."""
    viewer = ViewerModel()
    viewer.open_sample("microdiffusion-fast", "vessels")
    layer = viewer.layers["vessels"]
    assert np.array_equal(layer.data, sample[1][0])
    path = str(tmp_path / name)
    assert layer.save(path, plugin="microdiffusion-fast") == [path]
    (again,) = viewer.open(path, plugin="microdiffusion-fast")
    assert np.array_equal(again.data, layer.data)
    assert again.scale == pytest.approx([3.0, 0.25, 0.25])
    assert [str(unit) for unit in again.units] == ["micrometer"] * 3
    assert napari_layers.geometry_of(again.metadata)["step_length"] == 6


def test_layers_are_offered(widget: plugin.ReconstructWidget) -> None:
    """Projections that say so come first; what is no stack of grey images is not offered."""
    viewer = widget.viewer
    assert widget.layer.currentText() == "vessels"
    assert widget.step_length.value() == 6
    assert widget.facts.text() == (
        "step length from the file; 3 images, 18 slices; voxel 0.5 x 0.25 x 0.25 µm (z, y, x)"
    )
    viewer.add_image(np.zeros((4, 5)), name="one image")
    viewer.add_image(np.zeros((4, 5, 6, 3)), rgb=True, name="colour")
    viewer.add_labels(np.zeros((4, 5, 6), dtype=int), name="labels")
    items = [widget.layer.itemText(i) for i in range(widget.layer.count())]
    assert items == ["vessels truth", "vessels"]
    viewer.layers["vessels"].name = "mine"
    assert widget.layer.currentText() == "mine"
    widget.step_length.setValue(4)
    assert widget.facts.text().startswith("3 images, 12 slices")
    viewer.add_image(np.zeros((4, 5, 6)), name="another")
    assert (widget.layer.currentText(), widget.step_length.value()) == ("mine", 4)
    viewer.layers.clear()
    assert not widget.run.isEnabled()
    assert widget.facts.text().startswith("Open projections")


@pytest.mark.usefixtures("quick")
def test_from_a_layer_to_its_results(qtbot: Any, widget: plugin.ReconstructWidget) -> None:
    widget.adapt.setChecked(False)
    seen: list[Any] = []
    widget.progressed.connect(seen.append)
    widget.run.click()
    assert not widget.run.isEnabled() and widget.stop.isEnabled()
    finish(qtbot, widget)
    layers = widget.viewer.layers
    assert [layer.name for layer in layers] == [
        "vessels truth",
        "vessels",
        "vessels prior",
        "vessels uncertainty",
        "vessels reconstruction",
    ]
    for layer in list(layers)[2:]:
        assert layer.data.shape == (18, 24, 24)
        assert layer.scale == pytest.approx([0.5, 0.25, 0.25])
        assert [str(unit) for unit in layer.units] == ["micrometer"] * 3
        # the truth and its reconstruction overlay
        assert layer.translate == pytest.approx(layers["vessels truth"].translate)
    assert {event.stage for event in seen} >= {"fit INR", "sample"}
    assert widget.status.text().startswith("shipped weights")
    assert layers["vessels uncertainty"].data.max() > 0
    volume = layers["vessels reconstruction"].data
    truth = layers["vessels truth"].data
    flat = np.repeat(layers["vessels"].data, 6, axis=0)
    assert ((volume - truth) ** 2).mean() < ((flat - truth) ** 2).mean()
    # the results are no projections: the choice stays
    assert widget.layer.currentText() == "vessels"


def test_cancel(qtbot: Any, widget: plugin.ReconstructWidget) -> None:
    with qtbot.waitSignal(widget.progressed, timeout=MILLISECONDS):
        widget.run.click()
    widget.stop.click()
    assert widget.status.text() == "cancelling…"
    finish(qtbot, widget)
    assert widget.status.text() == "cancelled"
    assert len(widget.viewer.layers) == 2
    assert not widget.stop.isEnabled()


def test_closing_ends_the_run(qtbot: Any, widget: plugin.ReconstructWidget) -> None:
    with qtbot.waitSignal(widget.progressed, timeout=MILLISECONDS):
        widget.run.click()
    widget.close()
    finish(qtbot, widget)
    assert len(widget.viewer.layers) == 2


def test_a_removed_widget_ends_its_run(qtbot: Any, sample: list[Any]) -> None:
    """As when napari removes the dock: the C++ side is gone before the thread ends."""
    viewer = ViewerModel()
    widget = plugin.ReconstructWidget(viewer)
    viewer.add_layer(plugin.Layer.create(*sample[1]))
    with qtbot.waitSignal(widget.progressed, timeout=MILLISECONDS):
        widget.run.click()
    cancel = widget._cancel
    with qtbot.waitSignal(widget.destroyed, timeout=MILLISECONDS):
        widget.deleteLater()
    assert cancel.is_set()
    assert QThreadPool.globalInstance().waitForDone(MILLISECONDS)
    qtbot.wait(50)  # an exception in a slot fails the test here
    assert len(viewer.layers) == 1


def test_what_cannot_be_reconstructed_is_said(qtbot: Any, widget: plugin.ReconstructWidget) -> None:
    widget.viewer.add_image(np.full((3, 8, 8), np.nan), name="empty", contrast_limits=(0, 1))
    widget.layer.setCurrentIndex(widget.layer.findText("empty"))
    widget.run.click()
    finish(qtbot, widget)
    assert "expected finite" in widget.status.text()


def test_opening_a_file(widget: plugin.ReconstructWidget, tmp_path: Path) -> None:
    volume = simulate_volume("nuclei", (12, 16, 16))
    stack = simulate_projections(volume, step_length=4, voxel_size=(1.0, 0.5, 0.5))
    stack.save(tmp_path / "measured.tif")
    widget.load(str(tmp_path / "measured.tif"))
    assert widget.layer.currentText() == "measured"
    assert widget.step_length.value() == 4
    assert widget.viewer.layers["measured"].scale == pytest.approx([4.0, 0.5, 0.5])
    widget.load(str(tmp_path / "absent.tif"))
    assert "does not exist" in widget.status.text()
