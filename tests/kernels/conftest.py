"""How a kernel is compared with plain torch and with float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Check = Callable[[Tensor, Tensor, Tensor], None]


def assert_as_accurate(kernel: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The error of `kernel` is at most twice that of `plain` torch in the same dtype.

    `exact` is the float64 reference. Where plain torch happens to be exact, half a unit in the last
    place of the largest value is allowed: one rounding on store.
    """
    assert kernel.shape == exact.shape, f"shape {list(kernel.shape)}, not {list(exact.shape)}"
    assert kernel.dtype == plain.dtype, f"{kernel.dtype}, not {plain.dtype}"
    assert torch.isfinite(kernel.double()).all(), "values that are not finite, or never written"
    if exact.numel() == 0:
        return
    error = (kernel.double() - exact.double()).abs().max().item()
    allowed = (plain.double() - exact.double()).abs().max().item()
    rounding = 0.0
    if kernel.is_floating_point():
        rounding = exact.double().abs().max().item() * torch.finfo(kernel.dtype).eps / 2
    assert error <= 2 * max(allowed, rounding), (
        f"error {error:.3g}, plain torch {allowed:.3g}, rounding {rounding:.3g}"
    )


@pytest.fixture
def as_accurate() -> Check:
    """`as_accurate(kernel, plain, exact)`: see `assert_as_accurate`."""
    return assert_as_accurate
