"""What compressed bytes decode to, known before a codec allocates it.

A codec believes what its input says of itself: 466 bytes of bz2 make 600 MB of zeros, and 16 bytes
of Blosc ask for 2 GiB. The size is read from the header where it says so (Zstandard, Blosc, LZ4),
else found by decoding in pieces that are thrown away.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

_UNKNOWN = 64 * 2**20  # where only a bound of the decoded size is known
_PIECE = 2**20
_ZSTD_BLOCK = 128 * 1024


def decoded_size(codec: str, data: memoryview, limit: int) -> int:
    """Bytes that `data` decodes to, at most a little more than `limit`; see `CODECS`.

    Raises:
        ValueError, IndexError: the data are cut short.
    """
    return CODECS[codec](data, limit)


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


CODECS: dict[str, Callable[[memoryview, int], int]] = {
    "zstd": _zstd,
    "blosc": _blosc,
    "lz4": _lz4,
    "gzip": _in_pieces(lambda: zlib.decompressobj(31)),
    "zlib": _in_pieces(zlib.decompressobj),
    "bz2": _in_pieces(bz2.BZ2Decompressor),
    "lzma": _in_pieces(lzma.LZMADecompressor),
}
