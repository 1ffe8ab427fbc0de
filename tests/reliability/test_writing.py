"""Writing that is killed, interrupted or finds no room leaves the old file or the new one."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microdiffusion_fast.denoiser import (
    SHIPPED,
    Denoiser,
    DenoiserConfig,
    load_denoiser,
    save_denoiser,
)
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume, write_volume
from microdiffusion_fast.reconstruct import reconstruct
from microdiffusion_fast.tensor_files import read_tensors, whole, write_tensors

DATA = np.random.default_rng(1).normal(size=(4, 60, 60)).astype(np.float32)
TINY = DenoiserConfig(encoder_widths=(2, 2, 2), head_width=2, head_blocks=1, embedding=2)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As on a full disk: a write beyond so many bytes fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy", ".zarr"])
@pytest.mark.parametrize("existing", [False, True])
def test_no_room_for_a_volume(tmp_path: Path, suffix: str, existing: bool) -> None:
    path = tmp_path / f"v{suffix}"
    if existing:
        write_volume(path, DATA[:2])
    before = sorted(tmp_path.rglob("*"))
    with no_file_above(20_000), pytest.raises(InputError, match=f"v{suffix} [(].+[)]$"):
        write_volume(path, DATA, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    if existing:
        assert np.array_equal(read_volume(path).data, DATA[:2])


def test_no_room_for_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    write_tensors(path, {"a": torch.zeros(3)}, {})
    with no_file_above(4000), pytest.raises(OSError, match="File too large"):
        write_tensors(path, {"a": torch.zeros(5000)}, {})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert len(read_tensors(path, "x", "y")[0]["a"]) == 3


def test_the_order_that_survives_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content to the disk, then the name, then the folder that holds the name."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(place: int) -> None:
        calls.append(f"sync {Path(f'/proc/self/fd/{place}').readlink().name}")
        fsync(place)

    def replaced(self: Path, target: Path) -> Path:
        calls.append(f"rename {self.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    with whole(tmp_path / "a") as part:
        part.write_text("x")
    assert calls == ["sync a.partial", "rename a.partial", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("kills", [20])
def test_a_save_that_is_killed_at_any_point(tmp_path: Path, kills: int) -> None:
    path, rng = tmp_path / "net.safetensors", random.Random(0)
    write_tensors(path, {"a": torch.full((50_000,), -1.0)}, {"number": "-1"})
    for _ in range(kills):
        child = os.fork()
        if not child:
            for number in range(10**6):
                tensors = {"a": torch.full((50_000,), float(number))}
                write_tensors(path, tensors, {"number": str(number)})
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        read, metadata = read_tensors(path, "x", "y")
        assert bool((read["a"] == float(metadata["number"])).all())
    write_tensors(path, {"a": torch.zeros(3)}, {})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_flipped_bits_of_a_checkpoint_are_found(tmp_path: Path) -> None:
    path, rng = tmp_path / "net.safetensors", random.Random(0)
    save_denoiser(path, Denoiser(TINY))
    content, good = path.read_bytes(), load_denoiser(path).state_dict()
    header = 8 + int.from_bytes(content[:8], "little")
    found = 0
    for _ in range(100):
        place, damaged = rng.randrange(header, len(content)), bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged, its checksum does not fit"):
            load_denoiser(path)
        found += 1
    assert found == 100
    for place in range(0, header, 7):  # the header: refused, or of no consequence
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            state = load_denoiser(path).state_dict()
        except InputError:
            continue
        assert all(torch.equal(state[name], value) for name, value in good.items())


def test_the_shipped_weights_carry_a_checksum(tmp_path: Path) -> None:
    damaged = bytearray(SHIPPED.read_bytes())
    damaged[-1000] ^= 1
    (tmp_path / "w.safetensors").write_bytes(damaged)
    with pytest.raises(InputError, match="checksum"):
        load_denoiser(tmp_path / "w.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_give_nan(tmp_path: Path, value: float) -> None:
    """One clear line, and no volume."""
    network = Denoiser(TINY)
    with torch.no_grad():
        network.head.conv_out.weight.fill_(value)
    path = tmp_path / "net.safetensors"
    save_denoiser(path, network)
    stack = np.random.default_rng(0).random((3, 16, 16))
    options: dict[str, Any] = {"step_length": 2, "adapt": False, "inr_steps": 1}
    with pytest.raises(InputError, match="^denoiser: .*NaN or Inf in 6 of 6 slices, .*z = 0"):
        reconstruct(stack, denoiser=path, consistency="off", **options)


def test_nothing_connects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    path = write_volume(tmp_path / "p.ome.tif", np.random.default_rng(0).random((3, 16, 16)))
    found = reconstruct(path, step_length=2, adapt=False, inr_steps=1)
    assert np.isfinite(found.volume).all()


SIGNALLED = """
# The command line, with a signal of its own while it writes a file into its hidden folder.
import os, signal, sys
from pathlib import Path
from microdiffusion_fast import cli

# a shell starts what it runs in the background with SIGINT ignored, and children inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
number, synced = int(sys.argv.pop(1)), os.fsync

def fsync(place):
    synced(place)
    path = Path(f"/proc/self/fd/{place}").readlink()
    if path.parent.name.startswith(".out."):
        print(path.parent.name, path.name, flush=True)
        os.kill(os.getpid(), number)

os.fsync = fsync
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signals(tmp_path: Path, number: signal.Signals, code: int, said: str) -> None:
    """While a demo fills its hidden folder: it goes, and nothing else is there."""
    volume = write_volume(tmp_path / "v.tif", np.random.default_rng(0).random((12, 16, 16)))
    output = tmp_path / "made" / "out"
    output.parent.mkdir()
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), "demo", str(volume)]
    command += ["-o", str(output), "--no-adapt", "--inr-steps", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == said
    (folder, file), *more = (line.split() for line in done.stdout.splitlines())
    assert folder.endswith(".partial") and file.startswith(".projections.ome.tif.")
    assert not more  # it did not go on
    assert not list(output.parent.iterdir())


def test_without_a_home_or_caches(tmp_path: Path) -> None:
    """Nothing can be written but the output: it is made; a read-only folder is one line."""
    volume = write_volume(
        tmp_path / "v.tif", np.random.default_rng(0).random((12, 16, 16)), voxel_size=(1, 1, 1)
    )
    nowhere = dict.fromkeys(("MPLCONFIGDIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"), "/proc/none")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **nowhere}
    code = f"""
import sys
from microdiffusion_fast.cli import run
command = ["simulate", {str(volume)!r}, "--step-length", "2", "-o"]
made = run([*command, {str(tmp_path / "p.tif")!r}])
sys.exit(10 * made + run([*command, "/proc/p.tif"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert read_volume(tmp_path / "p.tif").data.shape == (6, 16, 16)
    *_, line = done.stderr.splitlines()
    assert done.stderr.count("\n") == 1, done.stderr
    assert line.startswith("error: -o/--output: expected a folder that can be written, got /proc")
