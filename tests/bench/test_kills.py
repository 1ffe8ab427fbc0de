"""What is killed has tiles to lose, and a volume that is checked is the one of a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import kills


@pytest.mark.parametrize("beside", [False, True])
def test_a_case(tmp_path: Path, beside: bool) -> None:
    case = kills.Case(tmp_path, beside=beside)
    assert case.run("planned.zarr", plan_only=True).tiles > 10
    case.run("v.zarr")
    case.check("v.zarr")
    assert case.record() == {
        "kills": 0,
        "volumes": 1,
        "killed_when_complete": 0,
        "same_bits": True,
    }
    store = case.stores("v.zarr")[-1]
    shard = next(file for file in (store / "0").rglob("c/**/*") if file.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(AssertionError):
        case.check("v.zarr")


def test_other_bits_are_counted(tmp_path: Path) -> None:
    case = kills.Case(tmp_path)
    case.run("v.zarr")
    case.digest = "another"
    case.check("v.zarr")
    assert not case.record()["same_bits"]
