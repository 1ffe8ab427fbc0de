"""The bands round every tensor of the Triton tests notice what leaves it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if torch.cuda.is_available():
    pytest.skip("the interpreter runs where there is no GPU", allow_module_level=True)

import triton
import triton.language as tl


@triton.jit
def add_one(out, x, n: tl.constexpr, block: tl.constexpr, guarded: tl.constexpr):
    at = tl.arange(0, block)
    inside = at < (n if guarded else block)
    tl.store(out + at, tl.load(x + at, inside, 0.0) + 1.0, inside)


def memory(repository: Path) -> Any:
    path = repository / "tests" / "kernels" / "conftest.py"
    spec = importlib.util.spec_from_file_location("kernels_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GuardedMemory()


def test_a_kernel_that_stays_inside(repository: Path) -> None:
    with memory(repository) as guarded:
        x = torch.rand(13)
        out = torch.empty(13)
        add_one[(1,)](out, x, 13, 16, True)
    guarded.check()
    assert torch.equal(out, x + 1)


def test_a_kernel_that_forgets_its_mask(repository: Path) -> None:
    """Its results are right; only the bands tell."""
    with memory(repository) as guarded:
        x = torch.rand(13)
        out = torch.empty(13)
        add_one[(1,)](out, x, 13, 16, False)
    assert torch.equal(out, x + 1)
    with pytest.raises(AssertionError, match=r"written past a tensor made by aten.empty"):
        guarded.check()


def test_what_is_read_outside_is_nan(repository: Path) -> None:
    with memory(repository):
        x = torch.rand(13)
        out = torch.zeros(16)
        add_one[(1,)](out, x, 13, 16, False)
    assert bool(out[13:].isnan().all())
