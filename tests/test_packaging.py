"""What is installed: every dependency declared, every file of the package in the wheel."""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image"}
# Looked for before they are used; `info` says how to get them.
OPTIONAL = {"triton", "tinycudann", "imagecodecs"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def contents() -> ModuleType:
    path = REPOSITORY / ".ci" / "wheel_contents.py"
    spec = importlib.util.spec_from_file_location("wheel_contents", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def third_parties(path: Path) -> set[str]:
    """Distributions that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    found -= set(sys.stdlib_module_names) | {"microdiffusion_fast", "__future__"} | OPTIONAL
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in found}


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0] for line in requirements}  # type: ignore[index]


def test_everything_imported_is_declared(project: dict[str, Any]) -> None:
    declared = names(project["project"]["dependencies"])
    for name, lines in project["project"]["optional-dependencies"].items():
        if name not in ("test", "bench", "dev", "docs", "napari-test"):
            declared |= names(lines)
    declared |= {"dask", "qtpy", "magicgui"}  # which come with distributed and with napari
    for folder in ("microdiffusion_fast", "kernels"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            assert third_parties(path) - declared == set(), path


def test_every_file_of_the_package_is_installed(project: dict[str, Any]) -> None:
    patterns = project["tool"]["setuptools"]["package-data"]["microdiffusion_fast"]
    package = REPOSITORY / "microdiffusion_fast"
    for path in package.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc", ".so"):
            name = path.relative_to(package).as_posix()
            assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def test_the_version_is_in_one_place(project: dict[str, Any]) -> None:
    import microdiffusion_fast

    version = project["project"]["version"]
    assert microdiffusion_fast.__version__ == version
    for path in (REPOSITORY / "microdiffusion_fast").rglob("*.py"):
        assert f'"{version}"' not in path.read_text(encoding="utf-8"), path


def test_the_look_into_a_wheel_sees_what_is_wrong(contents: ModuleType) -> None:
    package = REPOSITORY / "microdiffusion_fast"
    whole = {
        f"microdiffusion_fast/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file()
    }
    kernels = REPOSITORY / "kernels"
    whole |= {
        f"microdiffusion_fast/{p.relative_to(REPOSITORY).as_posix()}" for p in kernels.rglob("*.py")
    }
    assert contents.faults(whole, REPOSITORY) == []
    assert contents.faults(whole | {"kernels/__init__.py"}, REPOSITORY) == [
        "kernels/__init__.py lies outside the package"
    ]
    assert contents.faults(whole - {"microdiffusion_fast/py.typed"}, REPOSITORY) == [
        "microdiffusion_fast/py.typed is missing"
    ]
