"""TIFF, ImageJ TIFF and OME-TIFF through tifffile, whose warnings are errors here."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io_common import (
    NAMESPACE,
    Image,
    VoxelSize,
    check_declared,
    check_volume_shape,
    micrometres_per,
    native,
    parse_extra,
)
from microdiffusion_fast.io_output import staged
from microdiffusion_fast.io_tiff_bounds import check_directories, check_segments

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

# Classic TIFF addresses 32 bits; the margin leaves room for tags (tifffile uses the same).
CLASSIC_BYTES = 2**32 - 2**25
_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
_OME_DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64")
# TIFF ResolutionUnit: 2 inch, 3 centimetre; 4 and 5 (millimetre, micrometre) are tifffile's.
_RESOLUTION_MICROMETRES = {2: 25_400.0, 3: 1e4, 4: 1e3, 5: 1.0}


def read_tiff(path: Path, *, max_bytes: int) -> Image:
    """Read a single-series TIFF stack [Z, Y, X]; see `microdiffusion_fast.io.read_volume`.

    Raises:
        InputError: for a file that is not one complete stack of numbers.
    """
    import tifffile

    try:
        check_directories(path)
        with _warnings() as warnings, tifffile.TiffFile(path, _multifile=False) as tif:
            ome = _check_ome(tif, path)
            series = _only_series(tif, path)
            shape, axes = _squeezed(series)
            dtype = np.dtype(series.dtype)
            stored = path.stat().st_size
            check_declared(shape, dtype, path=path, stored=stored, max_bytes=max_bytes)
            _check_complete(tif, series, stored, path)
            _refuse_warnings(warnings, path)
            check_volume_shape(shape, axes, path)
            check_segments(tif, path)
            if shape[0] < 2:
                raise InputError(
                    "path", "a 3D stack of at least 2 planes", f"2D: one plane in {path}"
                )
            data = native(series.asarray().reshape(shape), path)
            _refuse_warnings(warnings, path)
            if ome is not None:
                voxel_size, extra = _ome_metadata(ome, path)
            else:
                voxel_size, extra = _plain_metadata(tif, path)
    except InputError:
        raise
    except (
        Exception
    ) as error:  # a corrupt file can fail anywhere in the decoder; all of it is the file's fault
        if "imagecodecs" in str(error):
            raise InputError(
                "path",
                "a compression that is built in (else: pip install imagecodecs)",
                f"{path} ({error})",
            ) from error
        raise InputError(
            "path", "a complete TIFF file", f"{path} ({error or type(error).__name__})"
        ) from error
    return Image(data, voxel_size, source=path, extra=extra)


def write_tiff(
    target: Path,
    data: NDArray[Any],
    *,
    voxel_size: VoxelSize | None,
    metadata: str | None,
    ome: bool,
) -> None:
    """Write a TIFF stack [Z, Y, X]; see `microdiffusion_fast.io.write_volume`.

    Raises:
        InputError: for a dtype that OME-TIFF cannot hold, a single slice, or a place that cannot be
            written.
    """
    import tifffile

    if data.shape[0] < 2:
        raise InputError(
            "data",
            "at least 2 slices for TIFF (one reads back as a 2D image)",
            f"shape {data.shape}",
        )
    if ome and data.dtype.name not in _OME_DTYPES:
        raise InputError("dtype", f"one of {', '.join(_OME_DTYPES)} for OME-TIFF", data.dtype.name)
    big = data.nbytes > CLASSIC_BYTES
    # tifffile takes a column of width 1 for samples and writes a file that it cannot read.
    imagej = not (ome or big) and data.dtype.name in _IMAGEJ_DTYPES and data.shape[2] > 1
    tags: dict[str, Any] = {"axes": "ZYX"}
    resolution = None
    if voxel_size is not None and ome:
        for axis, size in zip("ZYX", voxel_size, strict=True):
            tags |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    elif voxel_size is not None:
        tags |= {"spacing": voxel_size[0], "unit": "um"}
        resolution = (1 / voxel_size[2], 1 / voxel_size[1])
    if metadata is not None and ome:
        tags["MapAnnotation"] = {"Namespace": NAMESPACE, "json": metadata}
    elif metadata is not None and imagej:
        tags["Info"] = json.dumps({NAMESPACE: json.loads(metadata)})  # Fiji: Image > Show Info
    elif metadata is not None:
        tags[NAMESPACE] = json.loads(metadata)
    with staged(target) as temporary:
        tifffile.imwrite(
            temporary,
            data,
            imagej=imagej,
            ome=ome,
            bigtiff=big,
            photometric="minisblack",
            resolution=resolution,
            resolutionunit="NONE",
            metadata=tags,
        )


@contextmanager
def _warnings() -> Iterator[list[str]]:
    # tifffile reports a truncated stack only in its log, and returns the planes that are left.
    records: list[str] = []
    thread = threading.get_ident()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                records.append(record.getMessage())

    logger = logging.getLogger("tifffile")
    handler, level = Collect(logging.WARNING), logger.level
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > logging.WARNING:
        logger.setLevel(logging.WARNING)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _refuse_warnings(warnings: list[str], path: Path) -> None:
    if warnings:
        raise InputError("path", "a TIFF file without faults", f"{path} ({warnings[0]})")


def _only_series(tif: TiffFile, path: Path) -> TiffPageSeries:
    count = len(tif.series)
    if count != 1:
        raise InputError("path", "one image stack in the file", f"{count} images in {path}")
    return tif.series[0]


def _squeezed(series: TiffPageSeries) -> tuple[tuple[int, ...], str]:
    full, names = series.get_shape(squeeze=False), series.get_axes(squeeze=False)
    # Z stays where it is named: one plane is then refused as such, not as a wrong number of axes.
    kept = [(int(n), name) for n, name in zip(full, names, strict=True) if n != 1 or name in "YX"]
    return tuple(n for n, _ in kept), "".join(name for _, name in kept)


def _check_complete(tif: TiffFile, series: TiffPageSeries, stored: int, path: Path) -> None:
    if series.dataoffset is not None:
        end = series.dataoffset + math.prod(series.shape) * np.dtype(series.dtype).itemsize
    else:
        pages = list(series.pages)
        if any(page is None for page in pages):
            raise InputError("path", "a complete TIFF stack", f"missing planes in {path}")
        found = sum(math.prod(page.shape) for page in pages if page is not None)
        if found != math.prod(series.shape):
            raise InputError("path", f"{series.shape} voxels", f"{len(pages)} planes in {path}")
        ends = [
            offset + count
            for page in pages
            if page is not None
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
        ]
        end = max(ends, default=0)
    if end > stored:
        raise InputError(
            "path", f"a complete TIFF file of at least {end:,} bytes", f"{stored:,} bytes in {path}"
        )


def _check_ome(tif: TiffFile, path: Path) -> ElementTree.Element | None:
    """Return the OME-XML root, None where there is none; refuse references to other files."""
    text = tif.pages.first.description
    # By tifffile's flag and by content: what either takes for OME must not slip past the checks.
    if not tif.is_ome and not re.match(r"\s*(<\?xml[^>]*>\s*)?<(\w+:)?OME[\s>]", text):
        return None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError("path", "OME-XML without a document type", f"{path}")
    root = ElementTree.fromstring(text)
    if next(_all(root, "BinaryOnly"), None) is not None:
        raise InputError(
            "path", "an OME-TIFF with its metadata inside", f"{path}, which refers to another file"
        )
    own = root.get("UUID")
    for element in _all(root, "UUID"):
        name = element.get("FileName", "")
        if re.search(r"[/\\:]", name) or name.startswith(".."):
            raise InputError(
                "path", "OME-XML that stays in its folder", f"FileName={name!r} in {path}"
            )
        if (element.text or "").strip() != own and name not in ("", path.name):
            raise InputError(
                "path", "a single-file OME-TIFF", f"{path}, which continues in {name!r}"
            )
    for element in _all(root, "TiffData"):
        numbers = [int(element.get(name, "0")) for name in ("IFD", "PlaneCount", "NumPlanes")]
        if min(numbers) < 0 or numbers[0] + max(numbers[1:]) > max(len(tif.pages), 1):
            raise InputError(
                "path", f"TiffData within {len(tif.pages)} pages", f"{numbers} in {path}"
            )
    for pixels in _all(root, "Pixels"):
        planes = math.prod(int(pixels.get(f"Size{axis}", "1")) for axis in "ZCT")
        samples = max(
            (int(c.get("SamplesPerPixel", "1")) for c in _all(pixels, "Channel")), default=1
        )
        if planes > len(tif.pages) * max(samples, 1):
            raise InputError(
                "path",
                f"{planes} planes (OME SizeZ * SizeC * SizeT)",
                f"{len(tif.pages)} in {path}",
            )
        # tifffile makes a list of as many planes of the first page as the sizes ask for.
        first, sides = tif.pages.first, [int(pixels.get(f"Size{axis}", "1")) for axis in "YX"]
        if math.prod(sides) > first.imagelength * first.imagewidth:
            raise InputError(
                "path",
                f"planes of {sides} (OME SizeY, SizeX)",
                f"{[first.imagelength, first.imagewidth]} in {path}",
            )
    return root


def _all(root: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (element for element in root.iter() if str(element.tag).rsplit("}", 1)[-1] == name)


def _ome_metadata(root: ElementTree.Element, path: Path) -> tuple[VoxelSize | None, dict[str, Any]]:
    pixels = next(_all(root, "Pixels"))
    sizes = [_ome_size(pixels, axis, path) for axis in "ZYX"]
    extra: dict[str, Any] = {}
    for annotation in _all(root, "MapAnnotation"):
        if annotation.get("Namespace") == NAMESPACE:
            extra = parse_extra(
                next((m.text for m in _all(annotation, "M") if m.get("K") == "json"), None)
            )
    return _voxel_size(sizes), extra


def _ome_size(pixels: ElementTree.Element, axis: str, path: Path) -> float | None:
    text = pixels.get(f"PhysicalSize{axis}")
    if text is None:
        return None
    unit = micrometres_per(
        pixels.get(f"PhysicalSize{axis}Unit", "µm"), path
    )  # the schema's default unit
    size = float(text)
    if not (math.isfinite(size) and size > 0):
        raise InputError("path", f"a positive PhysicalSize{axis}", f"{text} in {path}")
    return None if unit is None else size * unit


def _plain_metadata(tif: TiffFile, path: Path) -> tuple[VoxelSize | None, dict[str, Any]]:
    tags = dict(tif.imagej_metadata or {})
    if tif.is_imagej:
        extra = parse_extra(parse_extra(tags.get("Info")).get(NAMESPACE))
    else:
        tags = dict((tif.shaped_metadata or ({},))[0])
        extra = parse_extra(tags.get(NAMESPACE))
    named = tags.get("unit")
    page = tif.pages.first
    resolution_unit = int(page.tags.valueof("ResolutionUnit", default=1))
    # ImageJ states its unit in the description and leaves the tag at "none"; a tag with a unit
    # speaks for itself.
    lateral = _RESOLUTION_MICROMETRES.get(resolution_unit)
    sizes: list[float | None] = []
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        unit = lateral or micrometres_per(_text(tags.get(f"{axis}unit", named)), path)
        numerator, denominator = page.tags.valueof(tag, default=(0, 0))
        sizes.append(denominator / numerator * unit if unit and numerator and denominator else None)
    unit = micrometres_per(_text(tags.get("zunit", named)), path)
    spacing = tags.get("spacing")
    if unit is None or not isinstance(spacing, (int, float)) or not math.isfinite(spacing):
        return None, extra
    # Fiji stores a negative spacing for stacks taken downwards; zero means that it was never set.
    return _voxel_size([abs(spacing) * unit or None, *sizes]), extra


def _text(unit: object) -> str | None:
    return unit if isinstance(unit, str) else None


def _voxel_size(sizes: list[float | None]) -> VoxelSize | None:
    z, y, x = sizes
    if z is None or y is None or x is None:
        return None
    return z, y, x
