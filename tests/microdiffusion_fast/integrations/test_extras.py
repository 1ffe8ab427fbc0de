"""Extras are imported by who uses them alone, and their absence is one clear line."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXTRAS = ("napari", "diffusers", "torchmetrics")
HEAVY = {*EXTRAS, "npe2", "magicgui", "qtpy", "PyQt6", "torchvision", "transformers"}


def in_a_fresh_interpreter(statement: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", statement], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_the_package_loads_none() -> None:
    statement = (
        "import sys, microdiffusion_fast, microdiffusion_fast.integrations\n"
        "import microdiffusion_fast.integrations.napari_layers\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert HEAVY & set(in_a_fresh_interpreter(statement).split()) == set()


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_extra_is_one_line(extra: str) -> None:
    statement = (
        f"import sys; sys.modules[{extra!r}] = None\n"
        "try:\n"
        f"    import microdiffusion_fast.integrations.{extra}\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    expected = f"{extra} is not installed: pip install 'microdiffusion-fast[{extra}]'"
    assert in_a_fresh_interpreter(statement) == expected


def test_extras_are_declared(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(EXTRAS) <= set(project["project"]["optional-dependencies"])
    manifest = project["project"]["entry-points"]["napari.manifest"]["microdiffusion-fast"]
    package, _, file = manifest.partition(":")
    assert (repository / package / file).is_file()
    assert file in project["tool"]["setuptools"]["package-data"][package]
