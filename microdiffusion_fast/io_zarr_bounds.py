"""The chunks of a Zarr store: known codecs only, and no more than a chunk's worth in each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io_decoded import CODECS, decoded_size

if TYPE_CHECKING:
    import zarr

# Codecs that hold numbers and nothing else, by their names in v2 and v3 metadata.
_LAYOUT = {"delta", "shuffle", "fixedscaleoffset", "bitround", "quantize"}
_LAYOUT |= {"crc32", "crc32c", "adler32", "fletcher32"}
_LAYOUT |= {f"numcodecs.{name}" for name in _LAYOUT} | {"bytes", "transpose"}
_SLACK = 2**20  # bytes that a chunk may decode to beyond twice its own: headers, filters
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
    check = chunk_check(array, folder)
    for path in files:
        check(path)


def chunk_check(array: zarr.Array[Any], folder: Path) -> Callable[[Path], None]:
    """What `check_chunks` does: the codecs now, and a function for one file at a time.

    That takes no more memory than one chunk: shards may be larger.

    Raises:
        InputError: naming `path`.
    """
    names = list(_codecs(array.metadata.to_dict()))
    inner = array.chunks
    shards = array.shards is not None
    compressors = [name for name in names if name not in _LAYOUT and name != "sharding_indexed"]
    unknown = [name for name in compressors if name.removeprefix("numcodecs.") not in CODECS]
    if unknown or len(compressors) > 1 or names.count("sharding_indexed") > 1:
        known = ", ".join(sorted(CODECS))
        raise InputError("path", f"at most one of the compressions {known}", f"{names} in {folder}")
    codec = compressors[0].removeprefix("numcodecs.") if compressors else ""
    chunk = math.prod(inner) * array.dtype.itemsize
    limit = 2 * chunk + _SLACK
    per_shard = math.prod(s // c for s, c in zip(array.shards or inner, inner, strict=True))

    def check(path: Path) -> None:
        size = path.stat().st_size
        if size > per_shard * (limit + 16) + 4:
            raise InputError("path", f"chunks of about {chunk:,} bytes", f"{size:,} in {path}")
        if not compressors:
            return
        try:
            with path.open("rb") as file:
                parts = _shard(file, size, array, per_shard, limit) if shards else (file.read(),)
                decoded = max(
                    (decoded_size(codec, memoryview(part), limit) for part in parts), default=0
                )
        except (ValueError, IndexError) as error:
            raise InputError("path", "a complete Zarr store", f"{path} ({error})") from error
        if decoded > limit:
            raise InputError(
                "path",
                f"chunks of {chunk:,} bytes",
                f"{path}, which decodes to {decoded:,} bytes or more",
            )

    return check


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


def _shard(file: BinaryIO, stored: int, array: Any, chunks: int, longest: int) -> Iterator[bytes]:
    """The compressed chunks in a shard of `stored` bytes, one by one, by its index at either end.

    Raises:
        ValueError: it has no index, or a chunk in it is longer than chunks are.
    """
    sharding = next(
        codec for codec in array.metadata.to_dict()["codecs"] if codec["name"] == "sharding_indexed"
    )["configuration"]
    checked = any(codec["name"] == "crc32c" for codec in sharding["index_codecs"])
    length = 16 * chunks + 4 * checked
    if stored < length:
        raise ValueError("a shard without an index")
    at_end = sharding.get("index_location", "end") == "end"
    file.seek(stored - length if at_end else 0)
    raw = file.read(16 * chunks)
    order = next(
        (c.get("configuration") or {}).get("endian", "little")
        for c in sharding["index_codecs"]
        if c["name"] == "bytes"
    )
    index = np.frombuffer(raw, "<u8" if order == "little" else ">u8")
    for offset, size in index.reshape(-1, 2).tolist():
        if offset == _MISSING:
            continue
        if size > longest:
            raise ValueError(f"a chunk of {size:,} bytes in a shard of {stored:,}")
        file.seek(min(offset, stored))
        yield file.read(size)
