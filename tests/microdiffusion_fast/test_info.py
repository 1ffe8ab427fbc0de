"""What `info` says about backends has to be true, and never to fail."""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
import tomllib
from pathlib import Path

import pytest
import torch

from microdiffusion_fast import info, info_extras
from microdiffusion_fast.kernels import _backend

_HAS_CUDA = {"available": True, "reason": None, "install": None, "devices": []}


def test_plain_json_with_a_reason_for_all_that_is_missing() -> None:
    found = info.collect_info()
    assert json.loads(json.dumps(found)) == found
    for state in found["backends"].values():
        assert state["available"] == (state["reason"] is None)
    for extra in found["extras"].values():
        assert (extra["install"] is None) == (extra["reason"] is None)
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
    native = found["backends"]["native"]
    assert not native["available"] and native["reason"] == "not built: no compiler"
    assert "C++ compiler" in native["install"]
    assert found["ops"]["counter_noise"]["cpu"] == "reference (torch)"
    assert "not built: no compiler" in "\n".join(info.info_lines(found))
    assert "native: not built" in info.device_line()


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("unknown compute capability")])
def test_a_tinycudann_that_does_not_load(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise error

    spec = importlib.machinery.ModuleSpec("tinycudann", None)
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(info, "_cuda", lambda: _HAS_CUDA)
    monkeypatch.setattr(info.importlib, "import_module", load)
    assert info._tinycudann()["reason"] == f"does not load: {error}"


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "prior.safetensors"
    monkeypatch.setattr(info, "WEIGHTS", weights)
    absent = info.collect_info()["weights"]
    assert absent["sha256"] is None and absent["reason"]
    weights.write_bytes(b"12345")
    there = info.collect_info()["weights"]
    digest = hashlib.sha256(b"12345").hexdigest()
    assert there == {"reason": None, "bytes": 5, "sha256": digest}


def test_what_is_missing_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"diffusers": "1.0", "napari": "2.0"}
    monkeypatch.setattr(info_extras, "version_of", there.get)
    monkeypatch.setattr(info_extras.importlib.util, "find_spec", lambda name: None)
    extras = info_extras.collect_extras()
    assert extras["diffusers"]["version"] == "1.0" and extras["diffusers"]["install"] is None
    assert extras["napari"]["reason"] == "has no Qt binding"
    assert extras["dask"]["reason"] == "not installed"
    assert extras["io"]["install"].startswith("pip install imagecodecs")
    lines = "\n".join(info.info_lines({**info.collect_info(), "extras": extras}))
    assert "to install what is missing" in lines and extras["napari"]["install"] in lines


def test_the_command_is_that_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2", 'napari[pyqt6]>=0.6; extra == "napari"', 'pytest; extra == "test"']
    monkeypatch.setattr(info_extras.importlib.metadata, "requires", lambda name: lines)
    assert info_extras.install_line("napari") == "pip install 'napari[pyqt6]>=0.6'"
    assert info_extras.install_line("dask") == "pip install distributed"


@pytest.mark.parametrize("there", [True, False])
def test_cuda_is_offered_where_there_is_a_gpu(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info_extras, "has_nvidia_gpu", lambda: there)
    monkeypatch.setattr(info_extras.sys, "platform", "linux")
    assert bool(info_extras.cuda_line("this torch is a CPU build")) == there
    assert info_extras.cuda_line("finds no driver") is None


def test_every_extra_is_declared(repository: Path) -> None:
    declared = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    names = declared["optional-dependencies"]
    assert set(info_extras.EXTRAS) - {"dask"} <= names.keys()
    for name, extra in info_extras.EXTRAS.items():
        assert any(line.startswith(extra.package) for line in names.get(name, [extra.package]))
