"""Attention: the definition in float64, its gradients, and what it holds in memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from microdiffusion_fast import paper_attention
from microdiffusion_fast.paper_attention import attend

DTYPES = [torch.float32, torch.bfloat16]


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as the network makes them: parts of one tensor."""
    count, length, channels = shape
    drawn = torch.randn((count, length, 3 * channels), generator=torch.Generator().manual_seed(1))
    q, k, v = (2 * drawn).to(dtype).chunk(3, dim=-1)
    return q, k, v


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition in the dtype of its arguments."""
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1) @ v


def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plain(q.double(), k.double(), v.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("block", [1, 500, 3000, 2**22])
def test_definition(dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at a time, some rows, some images, all at once: no worse than twice plain torch."""
    monkeypatch.setattr(paper_attention, "BLOCK", block)
    q, k, v = tokens(5, 37, 12, dtype=dtype)
    found, expected = attend(q, k, v), definition(q, k, v)
    assert found.dtype == dtype
    assert found.shape == q.shape
    error, plain_error = (
        float((result.double() - expected).square().mean().sqrt())
        for result in (found, plain(q, k, v))
    )
    assert 0 < error < 2 * plain_error


@pytest.mark.parametrize("block", [100, 3000])
def test_gradients_of_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks in float64, where they must agree to rounding."""
    monkeypatch.setattr(paper_attention, "BLOCK", block)
    leaves = [x.double().requires_grad_() for x in tokens(3, 37, 12)]
    found = paper_attention._attend_in_blocks(*leaves)
    expected = definition(*leaves)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(found.shape, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad(found, leaves, direction),
        torch.autograd.grad(expected, leaves, direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_no_weights_are_kept_for_the_backward_pass(dtype: torch.dtype) -> None:
    """Nothing that is saved is larger than the tokens."""
    leaves = [x.clone().requires_grad_() for x in tokens(1, 1024, 8, dtype=dtype)]
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = attend(*leaves)
    assert max(sizes) <= 1024 * 8
    found.sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)
