"""TIFF: what other programs see and write, and files that are cut, hostile or no stack."""

from __future__ import annotations

import logging
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from microdiffusion_fast import io_tiff
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume, write_volume

DATA = np.random.default_rng(5).integers(0, 60_000, (6, 16, 18)).astype(np.uint16)
VOXEL_SIZE = (1.3, 0.45, 0.3)
METADATA = {"kind": "projections", "step_length": 6}


def refused(path: Path | str, got: str, **options: Any) -> InputError:
    """Assert that reading gives one clear line that names the path argument and says `got`."""
    with pytest.raises(InputError, match=got) as caught:
        read_volume(path, **options)
    assert caught.value.argument == "path"
    assert str(caught.value).startswith("path: expected ")
    return caught.value


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tif_is_an_imagej_hyperstack(tmp_path: Path, dtype: str) -> None:
    path = write_volume(tmp_path / "v.tif", DATA.astype(dtype), voxel_size=VOXEL_SIZE)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_imagej
        tags = tif.imagej_metadata
        assert tags is not None
        assert (tags["slices"], tags["spacing"], tags["unit"]) == (6, 1.3, "um")
        page = tif.pages.first
        numerator, denominator = page.tags.valueof("XResolution")
        assert numerator / denominator == pytest.approx(1 / 0.3, rel=1e-6)
        numerator, denominator = page.tags.valueof("YResolution")
        assert numerator / denominator == pytest.approx(1 / 0.45, rel=1e-6)
        np.testing.assert_array_equal(tif.asarray(), DATA.astype(dtype))


def test_ome_tif_states_physical_sizes(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.ome.tif", DATA, voxel_size=VOXEL_SIZE)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome
        assert tif.series[0].axes == "ZYX"
        text = tif.ome_metadata
    assert text is not None
    for axis, size in zip("ZYX", VOXEL_SIZE, strict=True):
        assert f'PhysicalSize{axis}="{size}" PhysicalSize{axis}Unit="µm"' in text


def test_large_tif_becomes_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_tiff, "CLASSIC_BYTES", 100)
    for suffix in (".tif", ".ome.tif"):
        path = tmp_path / f"v{suffix}"
        write_volume(path, DATA, voxel_size=VOXEL_SIZE, metadata=METADATA)
        with tifffile.TiffFile(path) as tif:
            assert tif.is_bigtiff
        image = read_volume(path)
        np.testing.assert_array_equal(image.data, DATA)
        assert image.voxel_size == pytest.approx(VOXEL_SIZE)
        assert image.extra == METADATA


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("micron", 1.0), ("\\u00B5m", 1.0), ("nm", 1e-3), ("mm", 1e3), ("cm", 1e4), ("inch", 25_400)],
)
def test_imagej_units(tmp_path: Path, unit: str, factor: float) -> None:
    path = tmp_path / "v.tif"
    tifffile.imwrite(
        path,
        DATA,
        imagej=True,
        resolution=(1 / 0.3, 1 / 0.5),
        metadata={"axes": "ZYX", "spacing": -2.0, "unit": unit},
    )
    expected = (2.0 * factor, 0.5 * factor, 0.3 * factor)
    assert read_volume(path).voxel_size == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tags", [{"spacing": 2.0, "unit": "pixel"}, {"unit": "um"}, {}])
def test_imagej_without_a_whole_voxel_size(tmp_path: Path, tags: dict[str, Any]) -> None:
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, DATA, imagej=True, metadata={"axes": "ZYX", **tags})
    assert read_volume(path).voxel_size is None


@pytest.mark.parametrize(("unit", "factor"), [("nm", 1e-3), ("Å", 1e-4), ("mm", 1e3), (None, 1.0)])
def test_ome_units(tmp_path: Path, unit: str | None, factor: float) -> None:
    path = tmp_path / "v.ome.tif"
    tags: dict[str, Any] = {"axes": "ZYX"}
    for axis, size in zip("ZYX", (3.0, 2.0, 1.5), strict=True):
        tags[f"PhysicalSize{axis}"] = size
        if unit:
            tags[f"PhysicalSize{axis}Unit"] = unit
    tifffile.imwrite(path, DATA, metadata=tags)
    expected = (3.0 * factor, 2.0 * factor, 1.5 * factor)
    assert read_volume(path).voxel_size == pytest.approx(expected)


def test_ome_with_lateral_sizes_only(tmp_path: Path) -> None:
    path = tmp_path / "v.ome.tif"
    tifffile.imwrite(
        path, DATA, metadata={"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3}
    )
    assert read_volume(path).voxel_size is None


@pytest.mark.parametrize("axes", ["TCZYX", "CZYX", "ZCYX"])
def test_singleton_time_and_channel_are_dropped(tmp_path: Path, axes: str) -> None:
    shape = [{"Z": 6, "Y": 16, "X": 18}.get(axis, 1) for axis in axes]
    path = tmp_path / "v.ome.tif"
    tifffile.imwrite(path, DATA.reshape(shape), metadata={"axes": axes})
    np.testing.assert_array_equal(read_volume(path).data, DATA)


@pytest.mark.parametrize(
    "options",
    [{}, {"metadata": None}, {"byteorder": ">"}, {"compression": "zlib"}, {"bigtiff": True}],
    ids=["QYX", "IYX", "big-endian", "zlib", "bigtiff"],
)
def test_plain_stacks_are_zyx(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, DATA.astype("int16"), **options)
    image = read_volume(path)
    np.testing.assert_array_equal(image.data, DATA.astype("int16"))
    assert image.data.dtype.isnative


def test_ome_file_renamed_after_writing(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "a.ome.tif", DATA, voxel_size=VOXEL_SIZE)
    path = path.rename(tmp_path / "b.tif")
    assert read_volume(path).voxel_size == VOXEL_SIZE


@pytest.mark.parametrize(
    ("shape", "options", "got"),
    [
        ((16, 18), {}, "2D"),
        ((1, 16, 18), {"metadata": {"axes": "ZYX"}}, "2D"),
        ((16, 18), {"ome": True}, "2D"),
        ((2, 3, 16, 18), {}, "4D"),
        ((2, 3, 16, 18), {"imagej": True, "metadata": {"axes": "TZYX"}}, "4D"),
        ((2, 3, 16, 18), {"ome": True, "metadata": {"axes": "CZYX"}}, "4D"),
        ((3, 16, 18), {"ome": True, "metadata": {"axes": "TYX"}}, "TYX"),
        ((3, 16, 18), {"imagej": True, "metadata": {"axes": "CYX"}}, "CYX"),
        ((16, 18, 3), {"photometric": "rgb"}, "RGB"),
        ((4, 16, 18, 3), {"photometric": "rgb"}, "RGB"),
        ((4, 16, 18, 3), {"photometric": "rgb", "ome": True, "metadata": {"axes": "ZYXS"}}, "RGB"),
        ((4, 16, 18, 3), {"photometric": "rgb", "imagej": True}, "RGB"),
    ],
)
def test_tiff_that_is_no_stack(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], got: str
) -> None:
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, np.ones(shape, np.uint8), **({"photometric": "minisblack"} | options))
    refused(path, got)


def test_tiff_of_two_images(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "v.tif") as tif:
        tif.write(DATA)
        tif.write(DATA[:, :8])
    refused(tmp_path / "v.tif", "2 images")


def _pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as tif:
        for plane in DATA:
            tif.write(plane, metadata=None, contiguous=False)


WRITERS: dict[str, Callable[[Path], object]] = {
    "ome": lambda path: tifffile.imwrite(path, DATA, ome=True, metadata={"axes": "ZYX"}),
    "ome zlib": lambda path: tifffile.imwrite(
        path, DATA, ome=True, metadata={"axes": "ZYX"}, compression="zlib"
    ),
    "imagej": lambda path: tifffile.imwrite(path, DATA, imagej=True, metadata={"axes": "ZYX"}),
    "described": lambda path: tifffile.imwrite(path, DATA, metadata={"axes": "ZYX"}),
    "described zlib": lambda path: tifffile.imwrite(path, DATA, compression="zlib"),
    "plain": lambda path: tifffile.imwrite(path, DATA, metadata=None),
    "plain zlib": lambda path: tifffile.imwrite(path, DATA, metadata=None, compression="zlib"),
    "pages": _pages,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_tiff_is_never_read_short(tmp_path: Path, kind: str) -> None:
    whole, part = tmp_path / "whole.tif", tmp_path / "part.tif"
    WRITERS[kind](whole)
    np.testing.assert_array_equal(read_volume(whole).data, DATA)
    content = whole.read_bytes()
    outcomes = []
    for cut in np.linspace(1, len(content) - 1, 60).astype(int):
        part.write_bytes(content[:cut])
        try:
            # Only what follows the last voxel may be lost (ImageJ needs but the first IFD).
            np.testing.assert_array_equal(read_volume(part).data, DATA)
            outcomes.append("whole")
        except InputError:
            outcomes.append("refused")
    assert outcomes.count("refused") > 40
    part.write_bytes(content[: len(content) // 2])
    refused(part, "part.tif")


def test_tifffile_warnings_are_caught_when_its_log_is_silenced(tmp_path: Path) -> None:
    path = tmp_path / "v.ome.tif"
    WRITERS["ome"](path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    logger = logging.getLogger("tifffile")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        refused(path, "v.ome.tif")
        assert logger.level == logging.CRITICAL
    finally:
        logger.setLevel(level)


def test_ome_planes_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "v.ome.tif"
    WRITERS["ome"](path)
    content = path.read_bytes()
    assert content.count(b'SizeZ="6"') == 1
    path.write_bytes(content.replace(b'SizeZ="6"', b'SizeZ="9"'))
    error = refused(path, "6 in ")
    assert "9 planes" in error.expected


def _ome(path: Path, tiff_data: str, before: str = "", uuid: str = "urn:uuid:a") -> None:
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}'
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
        f'SizeX="18" SizeY="16" SizeZ="6" SizeC="1" SizeT="1">{tiff_data}</Pixels></Image></OME>'
    )
    tifffile.imwrite(path, DATA, description=xml, metadata=None)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.ome.tif",
        "..",
        "/etc/passwd",
        "sub/other.ome.tif",
        "..\\secret.ome.tif",
        "C:\\secret.tif",
        "file:///etc/passwd",
        "other.ome.tif",
    ],
)
def test_ome_that_refers_to_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "v.ome.tif"
    _ome(tmp_path / "secret.ome.tif", '<TiffData IFD="0"/>', uuid="urn:uuid:b")
    _ome(path, f'<TiffData IFD="0"><UUID FileName="{name}">urn:uuid:b</UUID></TiffData>')
    opened: list[str] = []
    real = tifffile.FileHandle.open

    def spy(handle: tifffile.FileHandle) -> None:
        real(handle)
        opened.append(handle.name)

    monkeypatch.setattr(tifffile.FileHandle, "open", spy)
    refused(path, re.escape(repr(name)))
    assert opened == ["v.ome.tif"]


def test_ome_that_names_itself_is_read(tmp_path: Path) -> None:
    path = tmp_path / "v.ome.tif"
    uuid = '<UUID FileName="before-renaming.ome.tif">urn:uuid:a</UUID>'
    _ome(path, f'<TiffData IFD="0" PlaneCount="6">{uuid}</TiffData>')
    np.testing.assert_array_equal(read_volume(path).data, DATA)


def test_ome_binary_only(tmp_path: Path) -> None:
    xml = '<OME><BinaryOnly MetadataFile="companion.ome" UUID="urn:uuid:a"/></OME>'
    tifffile.imwrite(tmp_path / "v.ome.tif", DATA, description=xml, metadata=None)
    refused(tmp_path / "v.ome.tif", "refers to another file")


def test_ome_entities(tmp_path: Path) -> None:
    before = '<!DOCTYPE o [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    _ome(tmp_path / "v.ome.tif", "&b;", before)
    error = refused(tmp_path / "v.ome.tif", "v.ome.tif")
    assert "document type" in error.expected


@pytest.mark.parametrize(("key", "value"), [("PhysicalSizeXUnit", "furlong"), ("PhysicalSizeX", 0)])
def test_voxel_size_that_means_nothing(tmp_path: Path, key: str, value: Any) -> None:
    tags = {"axes": "ZYX", "PhysicalSizeX": 1, "PhysicalSizeY": 1, "PhysicalSizeZ": 1, key: value}
    tifffile.imwrite(tmp_path / "v.ome.tif", DATA, metadata=tags)
    refused(tmp_path / "v.ome.tif", str(value))


def _bomb_tiff(side: int) -> bytes:
    """A TIFF of a few hundred bytes that declares side x side float64 pixels in one strip."""
    tags = [(256, 4, side), (257, 4, side), (258, 3, 64), (259, 3, 8), (262, 3, 1)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, side), (279, 4, 40), (339, 3, 3)]
    ifd = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + ifd + bytes(44)


@pytest.mark.parametrize("side", [30_000, 2**31])
def test_tiff_bomb_is_refused_before_it_is_read(tmp_path: Path, side: int) -> None:
    path = tmp_path / "v.tif"
    path.write_bytes(_bomb_tiff(side))
    tracemalloc.start()
    refused(path, "bytes declared")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_compression_without_its_codec(tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, DATA, compression="zlib", metadata=None)
    content = path.read_bytes()
    adobe_deflate = struct.pack("<HHII", 259, 3, 1, 8)
    assert content.count(adobe_deflate) == len(DATA)
    jpeg_xr = struct.pack("<HHII", 259, 3, 1, 22610)  # no decoder without imagecodecs
    path.write_bytes(content.replace(adobe_deflate, jpeg_xr))
    try:
        import imagecodecs  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        assert "pip install imagecodecs" in refused(path, "v.tif").expected
    else:
        refused(path, "v.tif")
