"""Every example in a docstring runs, and gives what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def modules() -> list[str]:
    """The modules with examples, by their installed names."""
    found = []
    roots = {"microdiffusion_fast": "microdiffusion_fast", "kernels": "microdiffusion_fast.kernels"}
    for folder, package in roots.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
                found.append(".".join([package, *(part for part in parts if part != "__init__")]))
    return found


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    tried = 0
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    for test in doctest.DocTestFinder().find(module, name):
        tried += runner.run(test).attempted
    assert runner.failures == 0 and tried > 0


def test_there_are_examples() -> None:
    assert len(modules()) >= 14
