"""What the chunks of a Zarr store decode to, bounded before a codec allocates it.

A codec believes what a chunk says of itself: 466 bytes of bz2 make 600 MB of zeros, and 16 bytes of
Blosc ask for 2 GiB. So each chunk is asked for its decoded size first: from its header where the
header says it (Zstandard, Blosc, LZ4), else by decoding it in pieces that are thrown away.
"""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion_fast.errors import InputError

if TYPE_CHECKING:
    import zarr

# Codecs that hold numbers and nothing else, by their names in v2 and v3 metadata.
_LAYOUT = {"delta", "shuffle", "fixedscaleoffset", "bitround", "quantize"}
_LAYOUT |= {"crc32", "crc32c", "adler32", "fletcher32"}
_LAYOUT |= {f"numcodecs.{name}" for name in _LAYOUT} | {"bytes", "transpose"}
_SLACK = 2**20  # bytes that a chunk may decode to beyond twice its own: headers, filters
_UNKNOWN = 64 * 2**20  # where only a bound of the decoded size is known
_PIECE = 2**20
_ZSTD_BLOCK = 128 * 1024
_MISSING = 2**64 - 1  # in the index of a shard


def check_chunks(array: zarr.Array[Any], folder: Path, files: Iterator[Path]) -> None:
    """Refuse codecs that are not known, and chunks that decode to far more than a chunk is.

    Args:
        array: whose metadata has been read.
        folder: of the array, for the messages.
        files: the chunks or shards to look at.

    Raises:
        InputError: naming `path`.
    """
    names = list(_codecs(array.metadata.to_dict()))
    inner = array.chunks
    shards = array.shards is not None
    compressors = [name for name in names if name not in _LAYOUT and name != "sharding_indexed"]
    unknown = [name for name in compressors if name not in _SIZES]
    if unknown or len(compressors) > 1 or names.count("sharding_indexed") > 1:
        known = ", ".join(sorted(name for name in _SIZES if "." not in name))
        raise InputError("path", f"at most one of the compressions {known}", f"{names} in {folder}")
    chunk = math.prod(inner) * array.dtype.itemsize
    limit = 2 * chunk + _SLACK
    per_shard = math.prod(s // c for s, c in zip(array.shards or inner, inner, strict=True))
    for path in files:
        if path.stat().st_size > per_shard * (limit + 16) + 4:
            raise InputError(
                "path", f"chunks of about {chunk:,} bytes", f"{path.stat().st_size:,} in {path}"
            )
        if not compressors:
            continue
        content = memoryview(path.read_bytes())
        try:
            parts = _shard(content, array, per_shard) if shards else (content,)
            decoded = max((_SIZES[compressors[0]](part, limit) for part in parts), default=0)
        except (ValueError, IndexError) as error:
            raise InputError("path", "a complete Zarr store", f"{path} ({error})") from error
        if decoded > limit:
            raise InputError(
                "path",
                f"chunks of {chunk:,} bytes",
                f"{path}, which decodes to {decoded:,} bytes or more",
            )


def _codecs(node: Any) -> Iterator[str]:
    """The names of all codecs in the metadata of an array, v2 or v3."""
    older = [*(node.get("filters") or ()), node.get("compressor")]
    for codec in node.get("codecs") or filter(None, older):
        name = codec.get("name", codec.get("id"))
        yield str(name)
        if name == "sharding_indexed":  # the index has codecs of its own: bytes and crc32c
            yield from _codecs({"codecs": codec["configuration"]["codecs"]})
            index = list(_codecs({"codecs": codec["configuration"].get("index_codecs", ())}))
            if not set(index) <= {"bytes", "crc32c"}:
                yield "a compressed index of shards"


def _shard(content: memoryview, array: Any, chunks: int) -> Iterator[memoryview]:
    """The compressed chunks in a shard, by its index at either end."""
    sharding = next(
        codec for codec in array.metadata.to_dict()["codecs"] if codec["name"] == "sharding_indexed"
    )["configuration"]
    checked = any(codec["name"] == "crc32c" for codec in sharding["index_codecs"])
    length = 16 * chunks + 4 * checked
    at_end = sharding.get("index_location", "end") == "end"
    raw = content[-length:] if at_end else content[:length]
    if len(content) < length:
        raise ValueError("a shard without an index")
    order = next(
        (c.get("configuration") or {}).get("endian", "little")
        for c in sharding["index_codecs"]
        if c["name"] == "bytes"
    )
    index = np.frombuffer(raw[: 16 * chunks], "<u8" if order == "little" else ">u8")
    for offset, size in index.reshape(-1, 2).tolist():
        if offset != _MISSING:
            yield content[offset : offset + size]


def _zstd(data: memoryview, limit: int) -> int:
    """The sizes that the frames say; where one does not, at most its blocks' (RFC 8878)."""
    at = total = 0
    while at < len(data):
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # a frame to skip
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            continue
        if magic != 0xFD2FB528:
            break  # the codec refuses it
        flags = data[at + 4]
        single = bool(flags & 32)
        at += 5 + (not single) + (0, 1, 2, 4)[flags & 3]
        width = (int(single), 2, 4, 8)[flags >> 6]
        said = int.from_bytes(data[at : at + width], "little") + 256 * (width == 2)
        at += width
        blocks, last = 0, False
        while not last:
            if at + 3 > len(data):
                raise ValueError("a truncated Zstandard frame")
            header = int.from_bytes(data[at : at + 3], "little")
            last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
            blocks += size if kind < 2 else _ZSTD_BLOCK
            at += 3 + (1 if kind == 1 else size)
        at += 4 * bool(flags & 4)
        total += said if width else (0 if blocks <= max(_UNKNOWN, 16 * limit) else blocks)
    return total


def _blosc(data: memoryview, limit: int) -> int:
    return int.from_bytes(data[4:8], "little")


def _lz4(data: memoryview, limit: int) -> int:
    return int.from_bytes(data[:4], "little")


def _in_pieces(new: Callable[[], Any]) -> Callable[[memoryview, int], int]:
    def size(data: memoryview, limit: int) -> int:
        total, left = 0, bytes(data)
        try:
            while left and total <= limit:  # a file may hold several streams
                decoder, feed, piece = new(), left, b"?"
                while not decoder.eof and total <= limit and (feed or piece):
                    piece = decoder.decompress(feed, _PIECE)
                    total += len(piece)
                    # zlib gives back what it has not read, the others keep it
                    feed = getattr(decoder, "unconsumed_tail", b"")
                left = decoder.unused_data if decoder.eof else b""
        except (OSError, ValueError, zlib.error, lzma.LZMAError):
            pass  # the codec stops at the same place, and says why
        return total

    return size


_SIZES: dict[str, Callable[[memoryview, int], int]] = {
    "zstd": _zstd,
    "blosc": _blosc,
    "lz4": _lz4,
    "gzip": _in_pieces(lambda: zlib.decompressobj(31)),
    "zlib": _in_pieces(zlib.decompressobj),
    "bz2": _in_pieces(bz2.BZ2Decompressor),
    "lzma": _in_pieces(lzma.LZMADecompressor),
}
_SIZES |= {f"numcodecs.{name}": size for name, size in _SIZES.items()}
