"""The chunks of a Zarr store: known codecs only, and no more than a chunk's worth in each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
            decoded = max((decoded_size(codec, part, limit) for part in parts), default=0)
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
