"""Whatever a file holds: it loads, or it is one InputError. `make fuzz` runs the large counts."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import random
import re
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import pytest
import tifffile
import zarr
import zarr.codecs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.fuzz.corpus import DATA, OME, described_tiff
from bench.fuzz.guard import judge, limited
from bench.fuzz.readers import READERS, Reader
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume, write_volume
from microdiffusion_fast.store_source import open_stack
from microdiffusion_fast.tiling_windows import Box, Span

CASES = {"tiff": 500, "npy": 500, "npy-sidecar": 400, "zarr": 300, "geometry": 300, "config": 300}
reused = settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture
def limits() -> Iterator[None]:
    """Time and memory are limited, and the alarm of pytest-timeout is put back."""
    handler, alarm = signal.getsignal(signal.SIGALRM), signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        with limited():
            yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *alarm)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_changed_files(name: str, tmp_path: Path, limits: None) -> None:
    reader = READERS[name](tmp_path)
    for content in reader.seeds:
        reader.read(content)
    refused = 0
    count = CASES.get(name, 60)
    for number in range(count):
        content = reader.make(random.Random(f"test {name} {number}"))
        what = judge(reader.read, content)
        refused += what == ""
        assert not what, f"case {number}: {what}"
    assert 0 < refused < count  # the changes are neither harmless nor all fatal


def test_a_breach_is_noticed(tmp_path: Path, limits: None) -> None:
    def breach(content: bytes) -> None:
        if content == b"key":
            raise KeyError("x")
        if content == b"memory":
            try:
                np.zeros(2**40, np.uint8)
            except MemoryError as error:
                raise InputError("path", "less", "more") from error
        raise InputError("path", "a file", content.decode())

    assert "KeyError" in str(judge(breach, b"key"))
    assert "memory" in str(judge(breach, b"memory"))
    assert judge(breach, b"\x1b[2J\n two lines") == ""  # escaped: one line that a terminal shows


READABLE = sorted({"tiff", "npy", "checkpoint", "state"} & set(READERS))


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return {name: READERS[name](tmp_path_factory.mktemp(name)) for name in READABLE}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READABLE)
@given(start=st.integers(0, 64), tail=st.binary(max_size=200))
@reused
def test_any_bytes(readers: dict[str, Reader], name: str, start: int, tail: bytes) -> None:
    """The beginning of a file, then anything."""
    reader = readers[name]
    with pytest.raises(InputError):
        reader.read(reader.seeds[0][:start] + tail)


@pytest.mark.filterwarnings("ignore")
@given(
    shape=st.lists(st.integers(-2, 2**40) | st.integers(0, 12), max_size=5),
    descr=st.sampled_from(
        ["<u2", ">f4", "|O", "<f8", "|V9000", "<c16", "|S0", "<U1", "u1", "", "?"]
    ),
    order=st.booleans(),
)
@reused
def test_any_npy_header(tmp_path: Path, shape: list[int], descr: str, order: bool) -> None:
    path = tmp_path / "v.npy"
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": order, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    path.write_bytes(file.getvalue() + bytes(5000))
    try:
        image = read_volume(path, max_bytes=2**20)
    except InputError:
        return
    assert image.data.shape == tuple(shape) and image.data.nbytes <= 2**20


SIZES = st.integers(-1, 9) | st.sampled_from([2**31, 2**63, 10**30])


@pytest.mark.filterwarnings("ignore")
@given(
    sizes=st.dictionaries(st.sampled_from("XYZCT"), SIZES, max_size=3), planes=SIZES, first=SIZES
)
@reused
def test_any_ome_sizes(tmp_path: Path, sizes: dict[str, int], planes: int, first: int) -> None:
    text = OME.replace('PlaneCount="4"', f'PlaneCount="{planes}"').replace(
        'IFD="0"', f'IFD="{first}"'
    )
    for axis, size in sizes.items():
        text = re.sub(f'Size{axis}="[0-9]+"', f'Size{axis}="{size}"', text, count=1)
    path = tmp_path / "case.tif"
    described_tiff(path, text)
    try:
        assert np.array_equal(read_volume(path, max_bytes=2**20).data, DATA)
    except InputError:
        assert text != OME


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    key=st.sampled_from(["shape", "data_type", "chunk_grid", "codecs", "attributes"]), value=VALUES
)
@reused
def test_any_value_in_zarr_metadata(tmp_path: Path, key: str, value: Any) -> None:
    store = tmp_path / "v.zarr"
    if not store.exists():
        write_volume(store, DATA)
    file = store / "0" / "zarr.json"
    content = file.read_text()
    file.write_text(json.dumps(json.loads(content) | {key: value}))
    try:
        assert np.array_equal(read_volume(store).data, DATA)
    except InputError:
        assert json.loads(content)[key] != value
    finally:
        file.write_text(content)


ZEROS = bytes(80 * 2**20)
BOMBS: dict[str, tuple[int, Any, bytes]] = {
    "zstd": (3, zarr.codecs.ZstdCodec(), bytes(numcodecs.Zstd().encode(ZEROS))),
    "zstd of unknown size": (
        3,
        zarr.codecs.ZstdCodec(),
        # a frame that says no size: 4000 blocks that repeat a byte 128 k times
        b"\x28\xb5\x2f\xfd\x00\x38" + b"\x02\x00\x10\x00" * 3999 + b"\x03\x00\x10\x00",
    ),
    "gzip": (3, zarr.codecs.GzipCodec(), bytes(numcodecs.GZip().encode(ZEROS))),
    "blosc": (3, zarr.codecs.BloscCodec(), bytes(numcodecs.Blosc().encode(ZEROS))[:40]),
    "zlib": (2, numcodecs.Zlib(), zlib.compress(ZEROS)),
    "bz2": (2, numcodecs.BZ2(), bz2.compress(ZEROS)),
    "lzma": (2, numcodecs.LZMA(), lzma.compress(ZEROS, preset=0)),
    "lz4": (2, numcodecs.LZ4(), len(ZEROS).to_bytes(4, "little") + bytes(40)),
}


def read_stored(path: Path) -> None:
    """As streamed: opened, and read block by block."""
    stack = open_stack(path)
    for z in range(stack.shape[0]):
        stack.read(Box(Span(z, z + 1), *(Span(0, n) for n in stack.shape[1:])))


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("sharded", [False, True])
def test_zarr_decompression_bombs(tmp_path: Path, name: str, sharded: bool) -> None:
    form, codec, payload = BOMBS[name]
    if sharded and form == 2:
        pytest.skip("Zarr v2 has no shards")
    store = tmp_path / "v.zarr"
    shards = (4, 9, 10) if sharded else None
    zarr.create_array(
        store, data=DATA, chunks=(2, 9, 10), zarr_format=form, compressors=codec, shards=shards
    )  # type: ignore[call-overload]
    assert np.array_equal(read_volume(store).data, DATA)
    chunk = next(p for p in sorted(store.rglob("*")) if p.is_file() and p.name[0] not in ".z")
    if sharded:
        index = np.array([[0, len(payload)], [2**64 - 1, 2**64 - 1]], "<u8").tobytes()
        payload = payload + index + bytes(4)  # the sizes are looked at before the checksum
    chunk.write_bytes(payload)
    for read in (read_volume, read_stored):
        with pytest.raises(InputError, match="decodes to|chunks of about"):
            read(store)


@pytest.mark.parametrize("codec", ["zlib", "lzma"])
def test_tiff_decompression_bombs(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, DATA, compression=codec, photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        tags = tif.pages.first.tags
        places = tags["StripOffsets"].valueoffset, tags["StripByteCounts"].valueoffset
        assert tags["StripByteCounts"].dtype in (3, 4) and tags["StripOffsets"].dtype == 4
    bomb = zlib.compress(ZEROS) if codec == "zlib" else lzma.compress(ZEROS, preset=0)
    content = bytearray(path.read_bytes())
    for place, value in zip(places, (len(content), len(bomb)), strict=True):
        content[place : place + 4] = value.to_bytes(4, "little")
        content[place - 6 : place - 4] = (4).to_bytes(2, "little")  # a LONG
    path.write_bytes(content + bomb)
    for read in (read_volume, read_stored):
        with pytest.raises(InputError, match="decodes to"):
            read(path)


def test_checkpoints_are_not_believed_about_their_size(tmp_path: Path, limits: None) -> None:
    from bench.fuzz.corpus import checkpoints, join_safetensors, split_safetensors
    from microdiffusion_fast.denoiser import load_denoiser

    header, data = split_safetensors(checkpoints()[0])
    config = json.loads(header["__metadata__"]["config"])
    for name, value in (("head_width", 10**7), ("head_blocks", 10**9), ("embedding", 1024)):
        header["__metadata__"]["config"] = json.dumps(config | {name: value})
        (tmp_path / "w.safetensors").write_bytes(join_safetensors(header, data))
        refused = judge(lambda _: load_denoiser(tmp_path / "w.safetensors"), b"")
        assert refused == "", refused


def test_a_card_that_counts_to_infinity(tmp_path: Path) -> None:
    """Found by fuzzing: `int` of it is no ValueError."""
    from bench.fuzz.corpus import checkpoints, join_safetensors, split_safetensors
    from microdiffusion_fast.paper_checkpoint import load_paper

    header, data = split_safetensors(checkpoints()[1])
    card = json.loads(header["__metadata__"]["card"])
    header["__metadata__"]["card"] = json.dumps(card | {"step": float("inf")})
    (tmp_path / "w.safetensors").write_bytes(join_safetensors(header, data))
    with pytest.raises(InputError, match="infinity"):
        load_paper(tmp_path / "w.safetensors")


def test_nothing_in_the_package_unpickles(repository: Path) -> None:
    """Nor reads YAML, nor evaluates text: a file holds data, and nothing else."""
    never = re.compile(
        r"torch\.load\(|\bpickle\b|allow_pickle=True|yaml\.load|\beval\(|\bexec\(|marshal|shelve"
    )
    for path in sorted((repository / "microdiffusion_fast").rglob("*.py")):
        for number, text in enumerate(path.read_text().splitlines(), 1):
            code = text.partition("#")[0]
            found = never.search(code)
            if found and not re.search(r'["\'].*pickle.*["\']|\.eval\(\)', code):
                pytest.fail(f"{path}:{number}: {text.strip()}")
