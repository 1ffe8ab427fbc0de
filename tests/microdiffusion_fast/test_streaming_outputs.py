"""The uncertainty from disk to disk: that of memory, beside a volume that it does not change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from microdiffusion_fast import reconstruct, streaming_outputs
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume
from microdiffusion_fast.progress import Cancelled, ProgressEvent
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.store_output import OutputStore
from microdiffusion_fast.store_verify import verify

if TYPE_CHECKING:
    from .conftest import Finished, SmallStack

Digest = Callable[[Path], str]
MEMORY = "68MiB"  # more than without: a tile has two volumes


class Place:
    """Where a run puts its volume and its uncertainty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.volume, self.beside = folder / "v.ome.zarr", folder / "u.ome.zarr"

    def run(self, stack: SmallStack, **options: Any) -> Any:
        chosen = {"memory": MEMORY, "uncertainty": self.beside}
        return stack.run(self.volume, **(chosen | options))

    def digests(self, digest: Digest) -> tuple[str, str]:
        return digest(self.volume), digest(self.beside)

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def both(small_stack: SmallStack, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that nothing interrupted."""
    place = Place(tmp_path_factory.mktemp("both"))
    place.run(small_stack)
    return place


@pytest.mark.parametrize("consistency", ["hard", "soft"])
def test_it_is_that_in_memory(small_stack: SmallStack, place: Place, consistency: Any) -> None:
    done = place.run(small_stack, consistency=consistency)
    assert done.tiles > 2 and done.uncertainty == place.beside
    stack = Projections.from_any(small_stack.source)
    prior = stack.operator.interpolate(stack.images)
    if consistency == "hard":
        prior = stack.operator.consistent(prior, stack.images)
    expected = reconstruct(
        stack, consistency=consistency, adapt=False, denoiser=small_stack.denoiser, prior=prior
    )
    low, high = expected.parameters["intensity_range"]
    image = read_volume(place.beside)
    assert expected.uncertainty is not None and expected.uncertainty.std() > 0
    assert np.abs(image.data - expected.uncertainty).max() <= 1e-5 * (high - low)
    assert image.extra["kind"] == "uncertainty"
    assert image.extra["parameters"]["uncertainty"] == "u.ome.zarr"
    assert np.abs(read_volume(place.volume).data - expected.volume).max() <= 1e-5 * (high - low)
    for store in (place.volume, place.beside):
        assert verify(store).ok


def test_the_volume_and_the_plan_without_it_are_as_they_were(
    small_stack: SmallStack, both: Place, whole: Finished, place: Place, store_digest: Digest
) -> None:
    alone = small_stack.run(place.volume)
    assert store_digest(place.volume) == whole.digest and alone.uncertainty is None
    shutil.rmtree(place.volume)
    asked = place.run(small_stack, plan_only=True, memory="1GiB").planned.prediction
    spared = small_stack.run(place.volume, plan_only=True, memory="1GiB").planned.prediction
    assert asked.bytes_out == 2 * spared.bytes_out and asked.memory > spared.memory
    small_stack.run(place.volume, memory=MEMORY)
    beside, without = (read_volume(run.volume).data for run in (both, place))
    assert np.abs(beside - without).max() <= 1e-5 * float(np.ptp(without))


def test_integers_state_their_scale(small_stack: SmallStack, both: Place, place: Place) -> None:
    done = place.run(small_stack, dtype="uint16")
    found, exact = read_volume(place.beside).data, read_volume(both.beside).data
    low, high = done.parameters["intensity_range"]
    inside = exact < high - low
    assert inside.any() and done.parameters["uncertainty_clipped"] == int((~inside).sum())
    assert np.abs(found - exact)[inside].max() <= 0.6 * (high - low) / 65535


def test_parts_and_a_stop_give_the_same_bits(
    small_stack: SmallStack, both: Place, place: Place, store_digest: Digest
) -> None:
    finished = {"v.ome.zarr", "u.ome.zarr"}

    def stop(event: ProgressEvent) -> bool:
        assert not finished & place.names()
        return not (event.stage == "reconstruct" and event.done == 3)

    with pytest.raises(Cancelled):
        place.run(small_stack, shard="1/2", callback=stop)
    assert place.names() == {".v.ome.zarr.partial", ".u.ome.zarr.partial"}
    first = place.run(small_stack, shard="1/2")
    assert first.resumed >= 3 and not first.finished and not finished & place.names()
    assert place.run(small_stack, shard="2/2").finished
    assert place.digests(store_digest) == both.digests(store_digest)
    assert place.names() == finished
    again = place.run(small_stack)
    assert again.finished and again.tiles == 0


def test_a_tile_is_done_when_both_have_it(
    small_stack: SmallStack, both: Place, place: Place, store_digest: Digest
) -> None:
    """As a kill after the deviation of a tile was written, and before its volume was, or before
    either; receipts that one store alone has are for a tile that is made again."""

    def stop(event: ProgressEvent) -> bool:
        return not (event.stage == "reconstruct" and event.done == 3)

    with pytest.raises(Cancelled):
        place.run(small_stack, callback=stop)
    for name in ("v", "u"):
        receipts = sorted((place.folder / f".{name}.ome.zarr.partial" / "receipts").rglob("*"))
        files = [file for file in receipts if file.is_file()]
        assert len(files) >= 3
        files[0 if name == "v" else -1].unlink()
    assert place.run(small_stack).resumed == 1
    assert place.digests(store_digest) == both.digests(store_digest)


def test_a_kill_between_the_two_names_is_mended(
    small_stack: SmallStack,
    both: Place,
    place: Place,
    store_digest: Digest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish = OutputStore.finish

    def killed(self: OutputStore, metadata: dict[str, Any]) -> None:
        if metadata["kind"] == "reconstruction":
            raise KeyboardInterrupt
        finish(self, metadata)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OutputStore, "finish", killed)
        place.run(small_stack)
    assert place.names() == {".v.ome.zarr.partial", "u.ome.zarr"}
    done = place.run(small_stack)
    assert done.resumed == done.tiles
    assert place.digests(store_digest) == both.digests(store_digest)
    assert place.names() == {"v.ome.zarr", "u.ome.zarr"}


def test_what_cannot_be(small_stack: SmallStack, both: Place, place: Place) -> None:
    for path, expected in (
        (place.folder / "u.tif", r"a name ending in \.ome\.zarr or \.zarr"),
        (place.volume, "another store than the output"),
        (place.volume / "u.zarr", "another store than the output"),
        (small_stack.source, "a place outside the input"),
        (place.folder / "none" / "u.zarr", "a file in an existing folder"),
    ):
        with pytest.raises(InputError, match=f"^uncertainty: expected {expected}") as caught:
            place.run(small_stack, uncertainty=path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="^uncertainty: expected the posterior mean"):
        place.run(small_stack, steps=2)
    place.beside.write_text("precious")
    with pytest.raises(InputError, match=r"^uncertainty: expected a new file .* which exists"):
        place.run(small_stack)
    assert place.beside.read_text() == "precious" and place.names() == {"u.ome.zarr"}


def test_with_and_without_it_are_different_runs(small_stack: SmallStack, place: Place) -> None:
    def stop(event: ProgressEvent) -> bool:
        return not (event.stage == "reconstruct" and event.done == 1)

    with pytest.raises(Cancelled):
        place.run(small_stack, callback=stop)
    with pytest.raises(InputError, match="uncertainty"):
        small_stack.run(place.volume, memory=MEMORY)
    place.run(small_stack)
    shutil.rmtree(place.beside)
    with pytest.raises(InputError, match="^uncertainty: expected what was written with") as caught:
        place.run(small_stack)
    assert os.fspath(place.beside) in str(caught.value)
    place.run(small_stack, resume=False, overwrite=True)
    assert verify(place.beside).ok


def test_two_processes_give_the_same_bits(
    small_stack: SmallStack, both: Place, place: Place, store_digest: Digest
) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    from microdiffusion_fast.distributed_cluster import connect

    with connect("local:2", threads=1) as client:
        place.run(small_stack, client=client)
    assert place.digests(store_digest) == both.digests(store_digest)


def test_its_name_in_a_run_moves_with_the_folder(tmp_path: Path) -> None:
    output, beside = tmp_path / "a" / "v.zarr", tmp_path / "b" / "u.zarr"
    name = streaming_outputs.name_beside(output, beside, source=tmp_path / "p.zarr")
    assert name == str(Path("..") / "b" / "u.zarr")
