"""The axial operators, Triton: interpreted without a GPU, as accurate as plain torch."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.axial_projection import reference

if _backend.triton_missing is not None:
    pytest.skip(f"triton: {_backend.triton_missing}", allow_module_level=True)

from microdiffusion_fast.kernels.axial_projection import triton_kernel as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    # weights, stride, start, count, depth
    pytest.param([1 / 6] * 6, 6, 0, 3, 20, id="disjoint-uncovered-end"),
    pytest.param([0.2, 0.5, 0.3], 3, 1, 3, 11, id="disjoint-weighted"),
    pytest.param([0.5, 0.5], 5, 2, 3, 14, id="gaps"),
    pytest.param([0.1, 0.2, 0.3, 0.4], 1, 1, 6, 11, id="overlap-dense"),
    pytest.param([1 / 6] * 6, 4, 0, 4, 18, id="overlap"),
    pytest.param([0.0, 1.0, 0.0], 2, 0, 4, 9, id="zero-edges"),
    pytest.param([0.5, 0.5], 1, 0, 1, 4, id="one-window"),
]
OPERATORS = ["project", "backproject", "pseudo_inverse", "pseudo_inverse_adjoint"]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("weights", "stride", "start", "count", "depth"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_as_accurate_as_plain_torch(
    weights: list[float],
    stride: int,
    start: int,
    count: int,
    depth: int,
    dtype: torch.dtype,
    as_accurate: Callable[[Tensor, Tensor, Tensor], None],
) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in OPERATORS:
        down = name in ("project", "pseudo_inverse_adjoint")
        data = torch.randn(depth if down else count, 17, 73, generator=generator).to(DEVICE, dtype)
        arguments = (weights, stride, start, count if down else depth)
        got = getattr(kernels, f"{name}_triton")(data, *arguments)
        plain = getattr(reference, name)
        exact = plain(data.double(), *arguments)
        if dtype == torch.float64:  # Two roundings of one formula: neither is the exact one.
            torch.testing.assert_close(got, exact, rtol=1e-13, atol=1e-13)
        else:
            as_accurate(got, plain(data, *arguments), exact)


def test_a_launch_that_writes_nothing_is_noticed(
    monkeypatch: pytest.MonkeyPatch, poisoned_memory: None
) -> None:
    monkeypatch.setattr(kernels, "_project_kernel", MagicMock())
    got = kernels.project_triton(torch.ones(4, 3, 5, device=DEVICE), [0.5, 0.5], 2, 0, 2)
    assert bool(got.isnan().all())


def test_strided_and_empty_planes() -> None:
    x = torch.randn(12, 6, 10, device=DEVICE)[:, ::2, 1::3]
    got = kernels.project_triton(x, [0.25, 0.75], 2, 0, 6)
    torch.testing.assert_close(got, reference.project(x, [0.25, 0.75], 2, 0, 6))
    assert kernels.pseudo_inverse_triton(x[:, :0], [0.25, 0.75], 1, 0, 13).shape == (13, 0, 3)


def test_inputs_are_left_alone() -> None:
    y = torch.randn(4, 3, 5, dtype=torch.float64, device=DEVICE)
    kept = y.clone()
    kernels.pseudo_inverse_triton(y, [0.5, 0.5], 1, 0, 5)
    assert torch.equal(y, kept)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_captures_in_a_graph() -> None:
    y = torch.randn(10, 64, 64, device=DEVICE)
    arguments = (y, [1 / 6] * 6, 4, 0, 50)
    first = torch.ops.microdiffusion_fast.axial_pseudo_inverse(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.ops.microdiffusion_fast.axial_pseudo_inverse(*arguments)
    graph.replay()
    assert torch.equal(captured, first)
