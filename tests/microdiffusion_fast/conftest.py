"""A command line in this process; a small stack on disk, and a network, for runs from disk to
disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.small_network import random_network
from microdiffusion_fast import cli
from microdiffusion_fast.denoiser import save_denoiser
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.streaming import StreamedReconstruction, stream_reconstruct

SHAPE, STEP = (24, 72, 72), 4


@dataclass(frozen=True)
class SmallStack:
    """A stack of projections, and how it is reconstructed in tiles of one shard."""

    source: Path
    denoiser: Path

    @property
    def options(self) -> dict[str, Any]:
        """Plain values: other processes take them too."""
        return {
            "denoiser": str(self.denoiser),
            "adapt": False,
            "chunks": [4, 8, 8],
            "memory": "67.5MiB",  # one shard a tile: all but little is the constant part
            "threads": 1,
        }

    def run(self, output: Path, **options: Any) -> StreamedReconstruction:
        return stream_reconstruct(self.source, output, **(self.options | options))


def digest_of(store: Path) -> str:
    """Of every file of a store but its first, which has its name."""
    found = hashlib.sha256()
    for file in sorted(file for file in store.rglob("*/*") if file.is_file()):
        found.update(str(file.relative_to(store)).encode() + file.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Finished:
    """A volume that was made without interruption, by one process."""

    digest: str
    tiles: int
    seconds: float


@pytest.fixture(scope="session")
def small_stack(tmp_path_factory: pytest.TempPathFactory) -> SmallStack:
    """A stack of random projections, and a small network none of whose layers is zero."""
    folder = tmp_path_factory.mktemp("small_stack")
    generator = torch.Generator().manual_seed(0)
    images = AxialProjection(SHAPE[0], STEP)(1000 * torch.rand(SHAPE, generator=generator))
    Projections(images, step_length=STEP).save(folder / "p.ome.zarr")
    save_denoiser(folder / "network.safetensors", random_network(generator))
    return SmallStack(folder / "p.ome.zarr", folder / "network.safetensors")


@pytest.fixture(scope="session")
def whole(small_stack: SmallStack, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """What every other way of computing it must give, bit for bit."""
    output = tmp_path_factory.mktemp("whole") / "v.zarr"
    done = small_stack.run(output)
    return Finished(digest_of(output), done.tiles, done.seconds)


@pytest.fixture
def store_digest() -> Callable[[Path], str]:
    """Of what a store holds; it does not depend on its name."""
    return digest_of


@pytest.fixture
def real_run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs one command line in this process: exit code, stdout, stderr."""

    def once(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return once
