"""Makes docs/napari.png: the widget beside a reconstruction of the sample of vessels.

Needs the napari extra and a display with OpenGL; without a screen:
`xvfb-run -s "-screen 0 1400x900x24" python docs/napari_figure.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import napari
from npe2 import PluginManager, PluginManifest
from PIL import Image
from qtpy.QtWidgets import QApplication

import microdiffusion_fast

FOLDER = Path(__file__).resolve().parent
COLOURS = 128


def main() -> None:
    """Opens the sample as a user does, reconstructs it and takes the picture."""
    manifest = Path(microdiffusion_fast.__file__).with_name("napari.yaml")
    plugins = PluginManager.instance()
    if "microdiffusion-fast" not in plugins:
        plugins.register(PluginManifest.from_file(manifest))
    viewer = napari.Viewer()
    viewer.window.resize(1300, 760)
    viewer.open_sample("microdiffusion-fast", "vessels")
    _, widget = viewer.window.add_plugin_dock_widget("microdiffusion-fast", "Reconstruct a volume")
    widget.adapt.setChecked(False)  # a matter of minutes
    widget.start()
    while not widget.run.isEnabled():
        QApplication.processEvents()
        time.sleep(0.05)
    show_side_by_side(viewer)
    for _ in range(20):
        QApplication.processEvents()
    picture = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)[..., :3])
    picture.quantize(COLOURS).save(FOLDER / "napari.png", optimize=True)
    viewer.close()


def show_side_by_side(viewer: napari.Viewer) -> None:
    """What was measured, the truth, what was made of the one, and how sure that is: maxima along
    y, z downwards.
    """
    layers = viewer.layers
    for layer in layers:
        layer.visible = layer.name != "vessels prior"
        layer.projection_mode = "max"
    layers.move(layers.index("vessels"), 0)
    layers.move(layers.index("vessels prior"), 0)
    layers.move(layers.index("vessels uncertainty"), len(layers))
    viewer.dims.order = (1, 0, 2)
    viewer.dims.thickness = (0.0, 40.0, 0.0)
    viewer.grid.enabled = True
    viewer.grid.shape = (4, 1)
    viewer.grid.stride = 1
    viewer.scale_bar.visible = True
    viewer.reset_view()


if __name__ == "__main__":
    main()
