"""What a TIFF file claims, compared with its size: directories, and what its segments decode to."""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io_decoded import decoded_size

if TYPE_CHECKING:
    from tifffile import TiffFile

# Compressions that tifffile decodes with the standard library, without a limit.
_CODECS = {8: "zlib", 32946: "zlib", 50013: "zlib", 34925: "lzma"}
_MOST = {"zlib": 1040, "lzma": 8000}  # to which one byte can decode
_HARMLESS = 64 * 2**20  # bytes that any segment may decode to, whatever it should be


def check_directories(path: Path) -> None:
    """Walk the image directories (TIFF 6.0, section 2; BigTIFF): each whole and met once.

    tifffile goes on through directories that are none, and takes half a minute for 200 bytes.

    Raises:
        InputError: naming `path`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
        version = struct.unpack(f"{order}H", start[2:4])[0] if order and len(start) > 8 else 0
        # beyond 4 GB some microscopes stretch classic TIFF in ways of their own
        if version not in (42, 43) or (version == 42 and size > 2**32):
            return
        count, entry, link = ("H", 12, "I") if version == 42 else ("Q", 20, "Q")
        at = struct.unpack_from(order + link, start, 4 if version == 42 else 8)[0]
        width, met = struct.calcsize(order + count), set[int]()
        while at:
            file.seek(at)
            head = file.read(width)
            tags = struct.unpack(order + count, head)[0] if len(head) == width else 0
            end = at + width + tags * entry
            if at in met or not tags or end + struct.calcsize(order + link) > size:
                raise InputError(
                    "path",
                    f"a TIFF whose {len(met) + 1} or more directories are whole",
                    f"{tags:,} tags at {at:,} of {size:,} bytes in {path}",
                )
            met.add(at)
            file.seek(end)
            at = struct.unpack(order + link, file.read(struct.calcsize(order + link)))[0]


def check_segments(tif: TiffFile, path: Path, *, pages: Iterable[Any] | None = None) -> None:
    """Refuse strips and tiles that decode to far more than they should.

    imagecodecs, where it is installed, stops by itself; the standard library does not, so large
    segments are decoded once in pieces before they are decoded for good.

    Args:
        tif: the open file.
        path: its path.
        pages: of its first series, to look at; None is all.

    Raises:
        InputError: naming `path`.
    """
    if importlib.util.find_spec("imagecodecs") is not None:
        return
    for page in tif.series[0].pages if pages is None else pages:
        codec = _CODECS.get(int(page.compression)) if page is not None else None
        if page is None or codec is None or page.dtype is None:
            continue
        limit = 2 * math.prod(page.chunks) * page.dtype.itemsize + _HARMLESS
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=False):
            if size * _MOST[codec] <= limit:
                continue
            tif.filehandle.seek(offset)
            decoded = decoded_size(codec, memoryview(tif.filehandle.read(size)), limit)
            if decoded > limit:
                raise InputError(
                    "path",
                    f"strips or tiles of {math.prod(page.chunks) * page.dtype.itemsize:,} bytes",
                    f"one that decodes to {decoded:,} bytes or more in {path}",
                )
