"""What `info` says about backends has to be true, and never to fail."""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
from pathlib import Path

import pytest
import torch

from microdiffusion_fast import info
from microdiffusion_fast.kernels import _backend


def test_plain_json_with_a_reason_for_all_that_is_missing() -> None:
    found = info.collect_info()
    assert json.loads(json.dumps(found)) == found
    for state in found["backends"].values():
        assert state["available"] == (state["reason"] is None)
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or (
        found["versions"]["torch"] == torch.__version__
    )
    assert found["machine"]["torch_threads"] == torch.get_num_threads()
    assert found["cuda"]["available"] == torch.cuda.is_available()


def test_every_kernel_has_a_backend(repository: Path) -> None:
    ops = info.collect_info()["ops"]
    folders = {path.parent.name for path in (repository / "kernels").glob("*/__init__.py")}
    assert set(ops) == folders
    expected = "reference (torch)" if _backend.native is None else "native"
    assert {used["cpu"] for used in ops.values()} == {expected}


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "native", None)
    monkeypatch.setattr(_backend, "native_missing", "not built: no compiler")
    found = info.collect_info()
    assert found["backends"]["native"] == {"available": False, "reason": "not built: no compiler"}
    assert found["ops"]["counter_noise"]["cpu"] == "reference (torch)"
    assert "not built: no compiler" in "\n".join(info.info_lines(found))
    assert "native: not built" in info.device_line()


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("unknown compute capability")])
def test_a_tinycudann_that_does_not_load(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise error

    spec = importlib.machinery.ModuleSpec("tinycudann", None)
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(info, "_cuda", lambda: {"available": True, "reason": None, "devices": []})
    monkeypatch.setattr(info.importlib, "import_module", load)
    assert info._tinycudann() == {"available": False, "reason": f"does not load: {error}"}


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "prior.safetensors"
    monkeypatch.setattr(info, "WEIGHTS", weights)
    absent = info.collect_info()["weights"]
    assert absent["sha256"] is None and absent["reason"]
    weights.write_bytes(b"12345")
    there = info.collect_info()["weights"]
    digest = hashlib.sha256(b"12345").hexdigest()
    assert there == {"reason": None, "bytes": 5, "sha256": digest}
