"""What this installation runs on: which backend each kernel uses, and why not the others."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

from microdiffusion_fast.info_extras import NATIVE, TINYCUDANN, collect_extras, cuda_line
from microdiffusion_fast.provenance import versions

WEIGHTS = Path(__file__).parent / "weights" / "prior.safetensors"


def collect_info() -> dict[str, Any]:
    """Versions, devices and backends of this installation, as plain JSON values.

    Returns:
        "versions", "machine", "cuda", "backends" (each with `available`, `reason` and `install`,
        the command that mends it), "ops" (the backend of every kernel on each device), "extras"
        (`info_extras.collect_extras`) and "weights".
    """
    backends = {"native": _native(), "triton": _triton(), "tinycudann": _tinycudann()}
    return {
        "versions": versions(),
        "machine": machine(),
        "cuda": _cuda(),
        "backends": backends,
        "ops": _ops(),
        "extras": collect_extras(),
        "weights": weights(),
    }


def machine() -> dict[str, Any]:
    """The machine that a time was measured on, with its load (None where unknown)."""
    import torch

    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": None if load is None else [round(value, 2) for value in load],
    }


def device_line(device: str | None = None) -> str:
    """One line on where the work runs (None is the CPU) and with which backends, for a report."""
    info = collect_info()
    cuda, backends = info["cuda"], info["backends"]
    torch_version = f"torch {info['versions']['torch']}"
    if cuda["available"] and (device or "cpu").startswith("cuda"):
        where = f"{cuda['devices'][0]}, {torch_version}"
    else:
        where = f"CPU ({info['machine']['torch_threads']} threads, {torch_version})"
    notes = [
        f"{name}: {'used' if state['available'] else state['reason'].split(':')[0]}"
        for name, state in backends.items()
    ]
    return "; ".join([where, *notes])


def info_lines(info: dict[str, Any]) -> list[str]:
    """The answer of `collect_info` for people, one fact a line."""
    lines = [f"{name:<20} {value or 'absent'}" for name, value in info["versions"].items()]
    there = info["machine"]
    lines += [f"{'machine':<20} {there['processor']}, {there['cores']} cores, {there['platform']}"]
    lines += [f"{'threads':<20} {there['torch_threads']} (OMP_NUM_THREADS sets them)"]
    cuda = info["cuda"]
    lines += [f"{'CUDA':<20} {', '.join(cuda['devices']) or 'not used: ' + cuda['reason']}"]
    lines += ["", "backends"]
    for name, state in info["backends"].items():
        found = f"used, {state['isa']}" if "isa" in state else "used"
        lines.append(f"  {name:<18} {found if state['available'] else state['reason']}")
    lines += ["", "kernels"]
    for name, used in info["ops"].items():
        lines.append(f"  {name:<18} " + ", ".join(f"{d}: {backend}" for d, backend in used.items()))
    lines += ["", "extras"]
    for name, extra in info["extras"].items():
        about = f"{extra['version'] or ''} {extra['reason'] or 'used'}".strip()
        lines.append(f"  {name:<18} {about} ({extra['purpose']})")
    shipped = info["weights"]
    about = shipped["reason"] or f"{shipped['bytes']:,} bytes, sha256 {shipped['sha256'][:16]}"
    lines += ["", f"{'denoiser weights':<20} {about}"]
    missing = {"CUDA": cuda, **info["backends"], **info["extras"]}
    mends = [(name, state["install"]) for name, state in missing.items() if state["install"]]
    lines += ["", "to install what is missing" if mends else "nothing is missing"]
    return lines + [f"  {name:<18} {command}" for name, command in mends]


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cuda() -> dict[str, Any]:
    import torch

    if torch.version.cuda is None:
        reason = "this torch is a CPU build"
        mend = cuda_line(reason)
        return {"available": False, "reason": reason, "install": mend, "devices": []}
    if not torch.cuda.is_available():
        reason = f"torch is built for CUDA {torch.version.cuda}, but finds no NVIDIA driver or GPU"
        return {"available": False, "reason": reason, "install": None, "devices": []}
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"available": True, "reason": None, "install": None, "devices": devices}


def _state(reason: str | None, install: str | None = None) -> dict[str, Any]:
    return {"available": reason is None, "reason": reason, "install": install}


def _native() -> dict[str, Any]:
    from microdiffusion_fast.kernels import _backend

    missing = _backend.native_missing
    state = _state(missing, NATIVE if missing else None)
    if _backend.native is not None:
        state["isa"] = _backend.native.isa()
    return state


def _triton() -> dict[str, Any]:
    if not any(_triton_kernel(name) for name in _kernels()):
        return _state("not used: this version has no Triton kernels")
    cuda = _cuda()
    if importlib.util.find_spec("triton") is None:
        mend = "pip install triton" if cuda["available"] else None
        return _state("not installed: it comes with the CUDA builds of torch on Linux", mend)
    return _state(None if cuda["available"] else f"not used: {cuda['reason']}")


def _tinycudann() -> dict[str, Any]:
    if importlib.util.find_spec("tinycudann") is None:
        mend = TINYCUDANN if _cuda()["available"] else None
        return _state(
            "not found (optional): the hash encoding of this package takes its place", mend
        )
    if not _cuda()["available"]:
        return _state("not used: it needs a CUDA device")
    try:
        importlib.import_module("tinycudann")
    # Without a usable GPU it raises EnvironmentError, which is OSError.
    except (ImportError, OSError) as error:
        return _state(f"does not load: {error}")
    return _state(None)


def _kernels() -> list[str]:
    from microdiffusion_fast import kernels

    return sorted(module.name for module in pkgutil.iter_modules(kernels.__path__) if module.ispkg)


def _triton_kernel(name: str) -> bool:
    return importlib.util.find_spec(f"microdiffusion_fast.kernels.{name}.triton_kernel") is not None


def _ops() -> dict[str, dict[str, str]]:
    """The backend of each kernel by device: native, triton, or the reference in torch."""
    from microdiffusion_fast.kernels import _backend

    native: ModuleType | None = _backend.native
    devices = {"cpu": True, "cuda": bool(_cuda()["available"])}
    triton = bool(_triton()["available"])
    result: dict[str, dict[str, str]] = {}
    for name in _kernels():
        compiled = {
            "cpu": "native" if native is not None and name in native.kernels else None,
            "cuda": "triton" if triton and _triton_kernel(name) else None,
        }
        result[name] = {
            device: compiled[device] or "reference (torch)"
            for device, there in devices.items()
            if there
        }
    return result


def weights() -> dict[str, Any]:
    """Size and hash of the shipped weights, or why there are none."""
    if not WEIGHTS.is_file():
        return {"reason": "absent: no weights were installed", "bytes": None, "sha256": None}
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    return {"reason": None, "bytes": WEIGHTS.stat().st_size, "sha256": digest}
