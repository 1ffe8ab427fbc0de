"""Small files of every kind that is read, made by code: what the cases are changed from."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

DATA = np.random.default_rng(5).integers(0, 60_000, (4, 9, 10)).astype(np.uint16)
OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1" Creator="x">
<Image ID="Image:0" Name="v"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="10"
 SizeY="9" SizeC="1" SizeZ="4" SizeT="1" PhysicalSizeX="0.3" PhysicalSizeXUnit="µm"
 PhysicalSizeY="300" PhysicalSizeYUnit="nm" PhysicalSizeZ="1.5" PhysicalSizeZUnit="µm">
<Channel ID="Channel:0:0" SamplesPerPixel="1"/>
<TiffData IFD="0" PlaneCount="4" FirstZ="0" FirstC="0" FirstT="0">
<UUID FileName="case.tif">urn:uuid:1</UUID></TiffData>
<Plane TheZ="0" TheC="0" TheT="0" DeltaT="0.5" PositionX="1"/></Pixels></Image>
<StructuredAnnotations><MapAnnotation ID="Annotation:0" Namespace="microdiffusion_fast"><Value>
<M K="json">{"kind": "projections", "step_length": 6}</M></Value></MapAnnotation>
</StructuredAnnotations></OME>"""
IMAGEJ = """ImageJ=1.54f
images=4
slices=4
hyperstack=true
unit=micron
spacing=1.5
loop=false
min=0.0
max=65535.0
finterval=0.1
"""


def tiff() -> list[bytes]:
    """Plain, ImageJ, OME and BigTIFF; strips and tiles; raw and compressed."""
    import tifffile

    from microdiffusion_fast.io import write_volume

    found = []
    ij = {"axes": "ZYX", "spacing": 2, "unit": "um"}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "case.tif")
        forms: list[dict[str, Any]] = [
            {},
            {"byteorder": ">", "bigtiff": True},
            {"compression": "zlib"},
            {"compression": "lzma", "rowsperstrip": 3},
            {"tile": (16, 16)},
            {"ome": True, "metadata": {"axes": "TZCYX"}, "shaped": True},
            {"imagej": True, "resolution": (3.0, 3.0), "metadata": ij},
            {"ome": True, "compression": "zlib", "metadata": {"axes": "ZYX"}},
        ]
        for form in forms:
            shaped = form.pop("shaped", False)
            data = DATA.reshape(1, 4, 1, 9, 10) if shaped else DATA
            tifffile.imwrite(path, data, photometric="minisblack", **form)
            found.append(path.read_bytes())
        found += [described_tiff(path, text) for text in (OME, IMAGEJ)]
        for suffix in (".tif", ".ome.tif"):
            made = write_volume(
                Path(name, f"w{suffix}"), DATA, voxel_size=(1, 2, 3), metadata={"kind": "x", "a": 1}
            )
            found.append(made.read_bytes())
    return found


def described_tiff(path: Path, description: str) -> bytes:
    """A whole stack with any description, such as OME-XML."""
    import tifffile

    text = description.encode("utf-8", "replace")
    with tifffile.TiffWriter(path) as file:
        for number, plane in enumerate(DATA):
            said = {} if number else {"description": text}
            file.write(plane, photometric="minisblack", metadata=None, contiguous=False, **said)
    return path.read_bytes()


def npy() -> list[bytes]:
    """Versions 1 to 3 of the header, both orders of memory and of bytes."""
    import io

    found = []
    arrays = (DATA, np.asfortranarray(DATA), DATA.astype(">f4"), DATA.astype("i1"))
    for version in ((1, 0), (2, 0), (3, 0)):
        for array in arrays:
            file = io.BytesIO()
            np.lib.format.write_array(file, array, version=version)
            found.append(file.getvalue())
    return found


def npy_sidecar() -> bytes:
    """What lies beside an array: shape, type, voxel size, metadata."""
    from microdiffusion_fast.io import write_volume

    with tempfile.TemporaryDirectory() as name:
        path = write_volume(Path(name, "v.npy"), DATA, voxel_size=(1, 2, 3), metadata={"kind": "x"})
        return path.with_name("v.npy.json").read_bytes()


def geometry() -> bytes:
    """The sidecar of saved projections."""
    from microdiffusion_fast.projections import Projections

    images = torch.from_numpy(DATA.astype(np.float32))
    with tempfile.TemporaryDirectory() as name:
        stack = Projections(images, step_length=3, stride=2, weights=(0.25, 0.5, 0.25))
        path = stack.save(Path(name, "v.npy"))
        side = json.loads(path.with_name("v.npy.json").read_text())
    return json.dumps(side | {"dtype": DATA.dtype.name, "voxel_size": [1, 2, 3]}).encode()


def zarr_stores() -> list[dict[str, bytes]]:
    """Stores as {file: content}: NGFF 0.5 and 0.4, plain arrays of v2 and v3, shards, codecs."""
    import zarr
    from numcodecs import Blosc, Delta, GZip, Zlib  # type: ignore[import-untyped]
    from zarr.codecs import BloscCodec, GzipCodec, TransposeCodec

    from microdiffusion_fast.io import write_volume

    small, found = (2, 9, 10), []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_volume(root / "a.zarr", DATA, voxel_size=(1, 2, 3), metadata={"kind": "x"})
        axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
        scale = [{"type": "scale", "scale": [2.0, 0.5, 0.5]}]
        image = {"version": "0.4", "axes": axes}
        image["datasets"] = [{"path": "0", "coordinateTransformations": scale}]
        group = zarr.open_group(root / "b.zarr", mode="w", zarr_format=2)
        group.attrs["multiscales"] = [image]
        made = group.create_array("0", shape=DATA.shape, dtype="u2", chunks=small)
        made[...] = DATA
        plain: dict[str, dict[str, Any]] = {
            "c": {"zarr_format": 2, "compressors": Zlib(), "filters": [Delta("u2")]},
            "d": {"zarr_format": 2, "compressors": Blosc()},
            "e": {"zarr_format": 2, "compressors": GZip()},
            "f": {"shards": (4, 9, 10)},
            "g": {"compressors": GzipCodec(), "filters": TransposeCodec(order=(2, 1, 0))},
            "h": {"compressors": BloscCodec()},
        }
        for letter, options in plain.items():
            zarr.create_array(root / f"{letter}.zarr", data=DATA, chunks=small, **options)
        for store in sorted(root.iterdir()):
            files = sorted(path for path in store.rglob("*") if path.is_file())
            found.append({str(path.relative_to(store)): path.read_bytes() for path in files})
    return found


def checkpoints() -> list[bytes]:
    """The local and the published denoiser, as small as they get, with and without a checksum."""
    from microdiffusion_fast.denoiser import Denoiser, save_denoiser
    from microdiffusion_fast.inr import FourierOptions
    from microdiffusion_fast.paper_recipe import PaperTraining
    from microdiffusion_fast.paper_training import train_paper
    from microdiffusion_fast.paper_unet import PaperConfig
    from microdiffusion_fast.projections import Projections

    with tempfile.TemporaryDirectory() as name:
        local, paper = Path(name, "local.safetensors"), Path(name, "paper.safetensors")
        save_denoiser(local, Denoiser(tiny()))
        network = PaperConfig(
            channels=4, multipliers=(1,), blocks=1, groups=2, position_features=2, image_features=4
        )
        inr = FourierOptions(features=4, width=4, steps=1)
        stack = Projections(torch.rand(3, 16, 16), step_length=2)
        train_paper(
            stack,
            paper,
            config=PaperTraining(steps=1, batch=2, inr=inr, network=network),
            progress=False,
        )
        found = [local.read_bytes(), paper.read_bytes()]
    return found + [without_checksum(content) for content in found]


def states() -> list[bytes]:
    """A training state of the smallest network, with and without a checksum."""
    from microdiffusion_fast.tensor_files import write_tensors

    state = training_state()
    loss = sum(parameter.sum() for parameter in state.module.parameters())
    loss.backward()  # type: ignore[union-attr]
    state.optimiser.step()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "net.state.safetensors")
        write_tensors(path, state.tensors(), {"step": "1", "recipe": json.dumps({"seed": 0})})
        content = path.read_bytes()
    return [content, without_checksum(content)]


def configs() -> list[bytes]:
    """Settings of two commands, of every type of TOML."""
    reconstruct = [
        "[reconstruct]",
        "step_length = 6",
        "steps = 'exact'",
        "gamma = [0.1, 0.2]",
        "voxel_size = [1.0, 0.5, 0.5]",
        'preset = "fast"',
        "adapt = false",
        "tol = 1e-3",
        'denoiser = "net.safetensors"',
    ]
    sweep = ["[sweep.gamma]", "seed = 0x1", "", *reconstruct[:2]]
    return ["\n".join(lines).encode() + b"\n" for lines in (reconstruct, sweep)]


def tiny() -> Any:
    """The smallest local denoiser."""
    from microdiffusion_fast.denoiser import DenoiserConfig

    return DenoiserConfig(encoder_widths=(2, 2, 2), head_width=2, head_blocks=1, embedding=2)


def training_state() -> Any:
    """A state to be loaded into."""
    from microdiffusion_fast.denoiser import Denoiser
    from microdiffusion_fast.training_state import TrainingState

    denoiser = Denoiser(tiny())
    return TrainingState(denoiser, torch.optim.AdamW(denoiser.parameters(), lr=1e-3))


def split_safetensors(content: bytes) -> tuple[Any, bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_safetensors(header: Any, data: bytes) -> bytes:
    """The inverse of `split_safetensors`."""
    text = json.dumps(header).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + data


def without_checksum(content: bytes) -> bytes:
    """As files were before they had one: changes get past it."""
    header, data = split_safetensors(content)
    header["__metadata__"].pop("sha256")
    return join_safetensors(header, data)
