"""What is fuzzed: for each reader how a case is made from the seeds, and how it is read."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

from bench.fuzz import corpus
from bench.fuzz.mutate import mutate_bytes, mutate_json, mutate_text

MAX_BYTES = 64 * 2**20  # what the readers of images are told to accept


class Reader:
    """One reader under test, with a folder of its own; `content` is all that a case is."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.seeds = self._seeds()

    def _seeds(self) -> list[bytes]:
        """Contents that load."""
        raise NotImplementedError

    def make(self, rng: random.Random) -> bytes:
        """The content of a case."""
        return mutate_bytes(rng, rng.choice(self.seeds))

    def read(self, content: bytes) -> None:
        """Read a case: return, or raise InputError."""
        raise NotImplementedError


class Tiff(Reader):
    """TIFF, ImageJ TIFF and OME-TIFF."""

    name = "tiff"

    def _seeds(self) -> list[bytes]:
        return corpus.tiff()

    def make(self, rng: random.Random) -> bytes:
        if rng.random() < 0.7:
            return super().make(rng)
        # Whole files with descriptions that say something else.
        text = mutate_text(rng, rng.choice((corpus.OME, corpus.OME, corpus.IMAGEJ)))
        return corpus.described_tiff(self.folder / "made.tif", text)

    def read(self, content: bytes) -> None:
        _read_volume(self.folder / "case.tif", content)


class Npy(Reader):
    """NPY without a sidecar."""

    name = "npy"

    def _seeds(self) -> list[bytes]:
        return corpus.npy()

    def make(self, rng: random.Random) -> bytes:
        return mutate_bytes(rng, rng.choice(self.seeds), hot=128)

    def read(self, content: bytes) -> None:
        _read_volume(self.folder / "case.npy", content)


class NpySidecar(Reader):
    """The JSON beside an NPY file."""

    name = "npy-sidecar"

    def _seeds(self) -> list[bytes]:
        (self.folder / "case.npy").write_bytes(corpus.npy()[0])
        return [corpus.npy_sidecar()]

    def make(self, rng: random.Random) -> bytes:
        return _json_case(rng, self.seeds[0])

    def read(self, content: bytes) -> None:
        (self.folder / "case.npy.json").write_bytes(content)
        _read_volume(self.folder / "case.npy", None)


class Zarr(Reader):
    """Zarr stores of which one file is changed: metadata mostly, sometimes a chunk.

    The first two bytes of a case choose store and file.
    """

    name = "zarr"

    def _seeds(self) -> list[bytes]:
        self._stores = corpus.zarr_stores()
        self._places: list[tuple[int, str]] = []
        for number, store in enumerate(self._stores):
            for file, content in store.items():
                path = self.folder / f"{number}.zarr" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                self._places += [(number, file)] * (6 if _is_metadata(file) else 1)
        return [
            at.to_bytes(2, "little") + self._stores[number][file]
            for at, (number, file) in enumerate(self._places)
        ]

    def make(self, rng: random.Random) -> bytes:
        seed = rng.choice(self.seeds)
        _, file = self._places[int.from_bytes(seed[:2], "little")]
        if _is_metadata(file):
            return seed[:2] + _json_case(rng, seed[2:])
        return seed[:2] + mutate_bytes(rng, seed[2:], hot=64)

    def read(self, content: bytes) -> None:
        number, file = self._places[int.from_bytes(content[:2], "little") % len(self._places)]
        store = self.folder / f"{number}.zarr"
        (store / file).write_bytes(content[2:])
        try:
            _read_volume(store, None)
        finally:
            (store / file).write_bytes(self._stores[number][file])


class Checkpoint(Reader):
    """Checkpoints of both denoisers."""

    name = "checkpoint"

    def _seeds(self) -> list[bytes]:
        return corpus.checkpoints()

    def make(self, rng: random.Random) -> bytes:
        # the second of each pair is the published denoiser, ten times as slow to build
        return _safetensors_case(rng, self.seeds[rng.choice((0, 0, 0, 1, 2, 2, 2, 3))])

    def read(self, content: bytes) -> None:
        from microdiffusion_fast.denoiser import load_denoiser
        from microdiffusion_fast.paper_checkpoint import FORMAT, load_paper

        path = self.folder / "case.safetensors"
        path.write_bytes(content)
        if FORMAT.encode() in content[:100_000]:
            load_paper(path)
        else:
            load_denoiser(path)


class State(Reader):
    """Training states."""

    name = "state"

    def _seeds(self) -> list[bytes]:
        self._state = corpus.training_state()
        return corpus.states()

    def make(self, rng: random.Random) -> bytes:
        return _safetensors_case(rng, rng.choice(self.seeds))

    def read(self, content: bytes) -> None:
        from microdiffusion_fast.training_state import resuming

        (self.folder / "case.state.safetensors").write_bytes(content)
        with resuming(self.folder / "case.safetensors") as (tensors, metadata):
            self._state.load(tensors, int(metadata["step"]))


class Projected(Reader):
    """The geometry that a file of projections carries, read by `Projections.from_any`."""

    name = "geometry"

    def _seeds(self) -> list[bytes]:
        return [corpus.geometry()]

    def make(self, rng: random.Random) -> bytes:
        return _json_case(rng, self.seeds[0])

    def read(self, content: bytes) -> None:
        from microdiffusion_fast.projections import Projections

        (self.folder / "case.npy.json").write_bytes(content)
        if not (self.folder / "case.npy").exists():
            (self.folder / "case.npy").write_bytes(corpus.npy()[0])
        Projections.from_any(self.folder / "case.npy")


class Config(Reader):
    """The TOML files of `--config`."""

    name = "config"

    def _seeds(self) -> list[bytes]:
        return corpus.configs()

    def make(self, rng: random.Random) -> bytes:
        seed = rng.choice(self.seeds)
        if rng.random() < 0.5:
            return mutate_bytes(rng, seed)
        return mutate_text(rng, seed.decode()).encode("utf-8", "replace")

    def read(self, content: bytes) -> None:
        from microdiffusion_fast import cli, cli_config  # noqa: F401  # the first knows commands

        (self.folder / "case.toml").write_bytes(content)
        command = "sweep gamma" if b"[sweep.gamma]" in content else "reconstruct"
        cli_config.expand([*command.split(), "--config", str(self.folder / "case.toml")])


READERS: dict[str, type[Reader]] = {
    reader.name: reader for reader in (Tiff, Npy, NpySidecar, Zarr, Checkpoint, State, Projected)
}
if importlib.util.find_spec("microdiffusion_fast.cli_config") is not None:
    READERS[Config.name] = Config


def _read_volume(path: Path, content: bytes | None) -> None:
    from microdiffusion_fast.io import read_volume

    if content is not None:
        path.write_bytes(content)
    read_volume(path, max_bytes=MAX_BYTES)


def _is_metadata(file: str) -> bool:
    return Path(file).name in ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def _json_case(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.2:
        return mutate_bytes(rng, content)
    return _dumped(mutate_json(rng, json.loads(content)))


def _safetensors_case(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    header, data = corpus.split_safetensors(content)
    records = [name for name, text in header["__metadata__"].items() if text.startswith("{")]
    if rng.random() < 0.2:  # the network that the file asks for, the recipe
        name = rng.choice(records)
        record = mutate_json(rng, json.loads(header["__metadata__"][name]))
        header["__metadata__"][name] = json.dumps(record)
    else:
        header = mutate_json(rng, header)
    text = _dumped(header)
    return len(text).to_bytes(8, "little") + text + data


def _dumped(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "replace")
