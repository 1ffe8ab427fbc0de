"""The widget of the napari plugin: choose a layer, reconstruct it, see prior and uncertainty."""

from __future__ import annotations

from microdiffusion_fast.integrations import require

require("napari", "napari", "qtpy")

import threading
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Layer
from napari.qt.threading import create_worker
from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.integrations.napari_layers import (
    Source,
    geometry_of,
    read_layers,
    result_layers,
)
from microdiffusion_fast.progress import Cancelled, ProgressEvent, format_seconds

if TYPE_CHECKING:
    from microdiffusion_fast.reconstruct import Reconstruction

__all__ = ["ReconstructWidget"]

_MOST = 2**31 - 1


class ReconstructWidget(QWidget):
    """Reconstructs the volume behind a layer of projections, in a thread of its own.

    Args:
        napari_viewer: whose layers are offered, and who receives the results.
    """

    progressed = Signal(object)  # a ProgressEvent, from the worker's thread into this one

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self._cancel = threading.Event()
        self._source: Source | None = None  # of the run
        self._chosen: Any = None  # whose step length was taken
        self._build()
        layers = napari_viewer.layers
        layers.events.inserted.connect(self._on_inserted)
        layers.events.removed.connect(self._list_layers)
        layers.events.reordered.connect(self._list_layers)
        self.progressed.connect(self._on_progress)
        self._list_layers()

    def _build(self) -> None:
        self.layer = QComboBox()
        self.layer.currentIndexChanged.connect(self._on_layer)
        self.open = QPushButton("Open projections…")
        self.open.setToolTip("TIFF, OME-TIFF or NPY; drop a Zarr store on the viewer")
        self.open.clicked.connect(self._on_open)
        self.step_length = QSpinBox(minimum=2, maximum=10_000, value=6)
        self.step_length.setToolTip("Slices that the microscope averages into one image")
        self.step_length.valueChanged.connect(self._describe)
        self.facts = QLabel()
        self.facts.setWordWrap(True)
        self.adapt = QCheckBox("train on this stack first")
        self.adapt.setChecked(True)
        self.adapt.setToolTip("Slower; kept only if a check along z says that it is better")
        self.blur = QDoubleSpinBox(minimum=-0.1, maximum=20.0, singleStep=0.1, decimals=1)
        self.blur.setToolTip("Sigma in slices by which the volume is softer along z than across")
        self.blur.setSpecialValueText("unknown")
        self.blur.setValue(self.blur.minimum())
        self.seed = QSpinBox(minimum=0, maximum=_MOST)
        self.run = QPushButton("Reconstruct")
        self.run.clicked.connect(self.start)
        self.stop = QPushButton("Cancel")
        self.stop.clicked.connect(self.cancel)
        self.stop.setEnabled(False)
        self.bar = QProgressBar()
        self.bar.setValue(0)
        self.status = QLabel()
        self.status.setWordWrap(True)

        form = QFormLayout()
        form.addRow("Projections", self.layer)
        form.addRow("", self.open)
        form.addRow("Step length (slices)", self.step_length)
        form.addRow("", self.facts)
        form.addRow("Adaptation", self.adapt)
        form.addRow("Axial blur (slices)", self.blur)
        form.addRow("Seed", self.seed)
        buttons = QHBoxLayout()
        buttons.addWidget(self.run)
        buttons.addWidget(self.stop)
        column = QVBoxLayout(self)
        column.addLayout(form)
        column.addLayout(buttons)
        column.addWidget(self.bar)
        column.addWidget(self.status)
        column.addStretch()

    def start(self) -> None:
        """Reconstructs the chosen layer; the results come as layers."""
        layer = self.layer.currentData()
        if layer is None or not self.run.isEnabled():
            return
        try:
            source = Source.of(layer)
        except InputError as error:
            self.status.setText(str(error))
            return
        self._cancel, self._source = threading.Event(), source
        # Nobody is left to receive results where napari has removed the widget.
        self.destroyed.connect(self._cancel.set)
        blur = self.blur.value()
        options = {
            "step_length": self.step_length.value(),
            "adapt": self.adapt.isChecked(),
            "axial_blur": None if blur < 0 else blur,
            "seed": self.seed.value(),
        }
        self._working(True)
        self.status.setText("")
        report = self.progressed.emit
        worker = create_worker(_reconstruct, source, options, self._cancel, report)
        # Methods of a QObject, not functions: Qt drops them with the widget.
        worker.returned.connect(self._on_result)
        worker.finished.connect(self._on_finished)
        worker.start()

    def cancel(self) -> None:
        """Ends the run at its next unit of work."""
        self._cancel.set()
        self.status.setText("cancelling…")

    def closeEvent(self, event: Any) -> None:
        """Closing ends the run."""
        self._cancel.set()
        super().closeEvent(event)

    def _on_finished(self) -> None:
        self._working(False)

    def _working(self, busy: bool) -> None:
        self.run.setEnabled(not busy)
        self.stop.setEnabled(busy)
        if not busy:
            self.bar.setRange(0, 1)
            self.bar.reset()

    def _list_layers(self, event: Any = None) -> None:
        chosen = self.layer.currentData()
        self.layer.blockSignals(True)
        self.layer.clear()
        images = [v for v in self.viewer.layers if isinstance(v, Image)]
        offered = [v for v in images if v.ndim == 3 and not v.rgb]
        for layer in offered:
            layer.events.name.disconnect(self._list_layers)
            layer.events.name.connect(self._list_layers)
            self.layer.addItem(layer.name, layer)
        if chosen not in offered:
            # The last that says it holds projections, else the last.
            known = [v for v in offered if geometry_of(v.metadata)]
            chosen = (known or offered or [None])[-1]
        self.layer.setCurrentIndex(offered.index(chosen) if chosen is not None else -1)
        self.layer.blockSignals(False)
        self._on_layer()

    def _on_inserted(self, event: Any) -> None:
        self._list_layers()
        if geometry_of(event.value.metadata):
            self.layer.setCurrentIndex(self.layer.findText(event.value.name))

    def _on_layer(self, index: int = 0) -> None:
        layer = self.layer.currentData()
        self.run.setEnabled(layer is not None and not self.stop.isEnabled())
        if layer is not None and layer is not self._chosen:
            stored = geometry_of(layer.metadata)
            self.step_length.setValue(stored.get("step_length", self.step_length.value()))
        self._chosen = layer
        self._describe()

    def _describe(self, value: int = 0) -> None:
        """What the volume will be, in one line."""
        layer = self.layer.currentData()
        if layer is None:
            self.facts.setText("Open projections, or a sample from the File menu.")
            return
        step = self.step_length.value()
        stored = geometry_of(layer.metadata)
        known = stored.get("step_length") == step
        stride = stored.get("stride", step) if known else step
        count = layer.data.shape[0] if not layer.multiscale else layer.data[0].shape[0]
        depth = stored.get("depth") if known else None
        slices = depth or (stored.get("start", 0) if known else 0) + (count - 1) * stride + step
        words = "step length from the file; " if known else ""
        try:
            spacing = Source.of(layer).spacing
        except InputError as error:
            self.facts.setText(str(error))
            return
        size = "no voxel size"
        if spacing is not None:
            z, y, x = spacing[0] / stride, *spacing[1:]
            unit = "" if str(layer.units[0]) == "pixel" else " µm"
            size = f"voxel {z:.3g} x {y:.3g} x {x:.3g}{unit} (z, y, x)"
        self.facts.setText(f"{words}{count} images, {slices} slices; {size}")

    def _on_open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, "Open projections", "", "Stacks (*.tif *.tiff *.npy);;All files (*)"
        )
        if path:
            self.load(path)

    def load(self, path: str) -> None:
        """Adds the stack of a file as a layer, with voxel size and step length where known."""
        try:
            layers = read_layers(path)
        except InputError as error:
            self.status.setText(str(error))
            return
        for data in layers:
            layer = self.viewer.add_layer(Layer.create(*data))
            self.layer.setCurrentIndex(self.layer.findText(layer.name))

    def _on_progress(self, event: ProgressEvent) -> None:
        if self._cancel.is_set():
            return
        self.bar.setRange(0, event.total or 0)
        self.bar.setValue(event.done)
        self.status.setText(f"{event.stage} {event.note}".strip())

    def _on_result(self, result: Reconstruction | str) -> None:
        if isinstance(result, str):
            self.status.setText(result)
            return
        assert self._source is not None
        for data in result_layers(self._source, result):
            self.viewer.add_layer(Layer.create(*data))
        weights = "adapted" if result.adaptation["accepted"] else "shipped"
        self.status.setText(f"{weights} weights, {format_seconds(result.timings['total'])}")


def _reconstruct(
    source: Source, options: dict[str, Any], cancel: threading.Event, report: Any
) -> Reconstruction | str:
    """In the worker's thread: the result, or in words why there is none."""
    from microdiffusion_fast.reconstruct import reconstruct

    def advance(event: ProgressEvent) -> bool:
        if cancel.is_set():
            return False
        report(event)
        return True

    try:
        step_length = options.pop("step_length")
        return reconstruct(source.projections(step_length), callback=advance, **options)
    except Cancelled:
        return "cancelled"
    except InputError as error:
        return str(error)
