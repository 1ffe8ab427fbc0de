"""The import rule of DESIGN.md: one way through the layers, and a light package."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "microdiffusion_fast"
KERNELS = f"{PACKAGE}.kernels"
NATIVE = f"{PACKAGE}._native"

# The order in which data flows; a module imports from its own layer and those before it. A module
# that is not listed is outermost, like the last layer: list it here when an inner one needs it.
LAYERS: list[set[str]] = [
    {"allocator", "errors", "progress", "device", "records", "tensor_files", "provenance"},
    {
        "projections",
        "projection_checks",
        "io",
        "forward_model",
        "schedule",
        "metrics",
        "metrics_formulas",
        "metrics_input",
        "inr",
        "denoiser",
        "paper_attention",
        "paper_condition",
        "paper_unet",
        "simulate",
        "simulation",
        "tiling",
        "store",
    },
    {"sampler"},
    {"exact"},
    {"graph"},
    {"estimate"},
    {"training", "training_data", "training_step"},
    {"inference"},
    {"adaptation"},
    {"paper"},
    {"preset"},
    {"reconstruct", "tile"},
    {"streaming", "distributed"},
    {"experiments", "report", "integrations", "cli"},
]
OUTERMOST = len(LAYERS) - 1
# Prior, condition and operator reach the sampler as arguments.
SAMPLER_NEVER = {"inr", "io", "projections"}
KERNELS_MAY = {"torch", "numpy"} | set(sys.stdlib_module_names)
HEAVY = {"triton", "tinycudann", "matplotlib", "dask", "zarr", "tifffile", "typer", "rich"}
HEAVY |= {"PIL", "skimage", "napari", "qtpy", "diffusers", "torchmetrics"}
HEAVY |= {"distributed", "dask_jobqueue", "dask_cuda"}


@dataclass(frozen=True)
class Import:
    """One imported module, by its full dotted name."""

    name: str
    line: int


def module_name(path: Path, root: Path, package: str) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join([package, *(part for part in parts if part != "__init__")])


def imports_of(source: str, module: str, *, is_package: bool) -> list[Import]:
    """Every import in the source, inside functions too, relative ones resolved.

    `from a import b` gives both a and a.b: b may be a module.
    """
    found: list[Import] = []
    base = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = base[: len(base) - node.level + 1] if node.level else []
            target = ".".join([*prefix, *([node.module] if node.module else [])])
            found.append(Import(target, node.lineno))
            found += [Import(f"{target}.{alias.name}", node.lineno) for alias in node.names]
    return found


def stem_of(module: str) -> str | None:
    """`microdiffusion_fast.inr.grid` -> `inr`; None for anything else."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def layer_of(stem: str) -> int:
    # A part of a module (`io_common` of `io`) is of that module's layer.
    for layer, stems in enumerate(LAYERS):
        if any(stem == known or stem.startswith(f"{known}_") for known in stems):
            return layer
    return OUTERMOST


def faults(source: str, module: str, stems: set[str], *, is_package: bool = False) -> list[str]:
    """What in this module breaks the rule; `stems` are the modules of the package."""
    found = imports_of(source, module, is_package=is_package)
    own = stem_of(module)
    in_kernels = module == KERNELS or module.startswith(f"{KERNELS}.")
    result = []
    for item in found:
        top = item.name.split(".")[0]
        if top == "triton" and not (in_kernels and module.endswith(".triton_kernel")):
            result.append(f"line {item.line}: only triton_kernel.py imports triton")
        if top == "tinycudann" and own != "inr":
            result.append(f"line {item.line}: only inr imports tinycudann")
        if in_kernels:
            inside = item.name == KERNELS or item.name.startswith(f"{KERNELS}.")
            if not inside and top not in KERNELS_MAY | {"triton"}:
                result.append(f"line {item.line}: kernels import {item.name}")
            continue
        stem = stem_of(item.name)
        # The package's own __init__ gathers everything; `from microdiffusion_fast import x` of a
        # plain name (its version) is no module.
        if own is None or stem is None or stem not in stems or stem == own:
            continue
        if layer_of(stem) > layer_of(own):
            result.append(f"line {item.line}: {own} imports {stem} of an outer layer")
        if own == "sampler" and stem in SAMPLER_NEVER:
            result.append(f"line {item.line}: the sampler imports {stem}")
    return result


def sources() -> list[tuple[Path, str]]:
    """Every Python file of the package with its installed module name."""
    result = []
    for folder, package in ((REPOSITORY / PACKAGE, PACKAGE), (REPOSITORY / "kernels", KERNELS)):
        result += [
            (path, module_name(path, folder, package)) for path in sorted(folder.rglob("*.py"))
        ]
    return result


def package_stems() -> set[str]:
    return {stem for _, name in sources() if (stem := stem_of(name)) and stem != "kernels"}


@pytest.mark.parametrize(
    ("path", "module"), [pytest.param(path, name, id=name) for path, name in sources()]
)
def test_import_rule(path: Path, module: str) -> None:
    is_package = path.name == "__init__.py"
    source = path.read_text(encoding="utf-8")
    assert faults(source, module, package_stems(), is_package=is_package) == []


def test_layers_are_disjoint() -> None:
    assert sum(map(len, LAYERS)) == len(set().union(*LAYERS))


@pytest.mark.parametrize(
    ("source", "module"),
    [
        pytest.param("from microdiffusion_fast.errors import x", f"{KERNELS}.a", id="absolute"),
        pytest.param("from ...errors import x", f"{KERNELS}.a.reference", id="relative"),
        pytest.param("from .. import errors", f"{KERNELS}.a", id="relative, by name"),
        pytest.param("import scipy", f"{KERNELS}.a", id="third party in kernels"),
        pytest.param("import triton.language as tl", f"{KERNELS}.a", id="triton"),
        pytest.param("def f():\n import triton", f"{PACKAGE}.inr", id="triton in a function"),
        pytest.param("import tinycudann", f"{PACKAGE}.sampler", id="tinycudann"),
        pytest.param("from .inr import fit_inr", f"{PACKAGE}.sampler", id="sampler and INR"),
        pytest.param("from .sampler import sample", f"{PACKAGE}.denoiser", id="inwards"),
        pytest.param("from . import reconstruct", f"{PACKAGE}.metrics", id="inwards, by name"),
        pytest.param("from .new import x", f"{PACKAGE}.metrics", id="not listed is outermost"),
    ],
)
def test_the_rule_catches(source: str, module: str) -> None:
    stems = {"errors", "inr", "sampler", "denoiser", "reconstruct", "metrics", "new"}
    assert faults(source, module, stems)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        pytest.param("from .. import _backend", f"{KERNELS}.a.__init__", id="inside kernels"),
        pytest.param("import triton", f"{KERNELS}.a.triton_kernel", id="triton kernel"),
        pytest.param("from .kernels.a import a", f"{PACKAGE}.metrics", id="kernels from outside"),
        pytest.param("from .errors import x", f"{PACKAGE}.sampler", id="outwards"),
        pytest.param("from microdiffusion_fast import __version__", f"{PACKAGE}.io", id="version"),
    ],
)
def test_the_rule_allows(source: str, module: str) -> None:
    assert faults(source, module, {"errors", "sampler", "metrics", "io"}) == []


def loaded_by(statement: str) -> set[str]:
    """The modules in a fresh interpreter after the statement."""
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_import_is_light() -> None:
    """Importing the package costs a few modules more than torch, and none of the heavy ones."""
    beyond_torch = loaded_by(f"import {PACKAGE}") - loaded_by("import torch, numpy")
    tops = {name.split(".")[0] for name in beyond_torch}
    assert tops & HEAVY == set()
    # What makes torch itself slow to start, loaded on first use only (1.4 s measured).
    assert tops & {"sympy", "scipy"} == set()
    assert not any(name.startswith(("torch._dynamo", "torch._inductor")) for name in beyond_torch)
    others = {name for name in beyond_torch if not name.startswith(PACKAGE)}
    assert len(others) < 150, sorted(others)


def test_import_makes_no_cuda_context() -> None:
    statement = f"import {PACKAGE}, torch\nassert not torch.cuda.is_initialized()"
    assert PACKAGE in loaded_by(statement)


def test_kernels_work_without_the_native_module() -> None:
    """With no native module the op is its reference, and the backend says why."""
    statement = (
        "import importlib.util as u; find = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {NATIVE!r} else find(name, *a)\n"
        f"from {KERNELS} import _backend\n"
        f"from {KERNELS}.counter_noise import counter_noise\n"
        "assert _backend.native is None and 'not built' in _backend.native_missing\n"
        "x = counter_noise((2, 3, 4), seed=1, step=2)\n"
        "assert x.shape == (2, 3, 4) and x.isfinite().all()"
    )
    assert NATIVE not in loaded_by(statement)


def test_a_broken_native_module_is_reported() -> None:
    statement = (
        "import importlib as i, sys; load = i.import_module\n"
        "def broken(name, *a):\n"
        f"    if name == {NATIVE!r}: raise ImportError('undefined symbol: mdf')\n"
        "    return load(name, *a)\n"
        "i.import_module = broken\n"
        "import importlib.util as u, types; find = u.find_spec\n"
        f"u.find_spec = lambda n, *a: types.SimpleNamespace() if n == {NATIVE!r} else find(n, *a)\n"
        f"from {KERNELS} import _backend\n"
        "assert _backend.native is None and 'undefined symbol' in _backend.native_missing"
    )
    assert f"{KERNELS}._backend" in loaded_by(statement)
