"""The comparison of kernels with float64 notices a wrong kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Check = Callable[[Tensor, Tensor, Tensor], None]


def case() -> tuple[Tensor, Tensor]:
    """A float32 computation and its float64 truth."""
    x = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (x.float() * 3.0 + 0.1) * 0.7, (x * 3.0 + 0.1) * 0.7


def test_accepts_plain_torch(as_accurate: Check) -> None:
    plain, exact = case()
    as_accurate(plain, plain, exact)
    as_accurate(exact.float(), plain, exact)


@pytest.mark.parametrize("where", [0, 499, 999])
def test_notices_one_wrong_voxel(as_accurate: Check, where: int) -> None:
    plain, exact = case()
    wrong = plain.clone()
    wrong[where] += 2e-6
    with pytest.raises(AssertionError, match="error"):
        as_accurate(wrong, plain, exact)


def test_notices_half_precision_inside(as_accurate: Check) -> None:
    plain, exact = case()
    with pytest.raises(AssertionError, match="error"):
        as_accurate(exact.bfloat16().float(), plain, exact)


def test_notices_what_was_never_written(as_accurate: Check) -> None:
    plain, exact = case()
    holed = plain.clone()
    holed[7] = float("nan")
    with pytest.raises(AssertionError, match="never written"):
        as_accurate(holed, plain, exact)


def test_notices_shape_and_dtype(as_accurate: Check) -> None:
    plain, exact = case()
    with pytest.raises(AssertionError, match="shape"):
        as_accurate(plain[:-1], plain, exact)
    with pytest.raises(AssertionError, match="float64, not"):
        as_accurate(plain.double(), plain, exact)
