"""How a kernel is compared with plain torch and with float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

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


@pytest.fixture(autouse=True)
def guarded_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels of Triton run between guards: what is written past any tensor fails the test."""
    interpreted = request.path.stem.endswith("_triton") and not torch.cuda.is_available()
    if not interpreted:
        yield
        return
    with GuardedMemory() as memory:
        yield
    memory.check()


class GuardedMemory(TorchDispatchMode):
    """Every tensor that is made lies between two bands of signalling NaN.

    What is read from a band shows in the results. What is written to one, `check` finds, even a sum
    of what was read there: any arithmetic makes a NaN a quiet one.
    """

    BAND = 256  # elements: a kernel's widest vector and more

    # as the integers of their width; integers get the pattern too
    _MARKS: ClassVar = {
        torch.float64: (torch.int64, -0x000A5A5A5A5A5A5B),
        torch.float32: (torch.int32, -0x005A5A5B),
        torch.float16: (torch.int16, -0x02FB),
        torch.bfloat16: (torch.int16, -0x7B),
    }

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[tuple[str, Tensor, int]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func._schema.is_mutable or func.namespace != "aten":
            return made
        given = {
            tensor.untyped_storage().data_ptr()
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor)
        }
        return tree_map(lambda leaf: self._between(leaf, given, str(func)), made)

    def _between(self, tensor: Any, given: set[int], maker: str) -> Any:
        plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided
        if not plain or tensor.device.type != "cpu" or not tensor.numel():
            return tensor
        if not tensor.is_contiguous() or tensor.untyped_storage().data_ptr() in given:
            return tensor  # a view of what has its bands already
        whole, mark = self._MARKS.get(tensor.dtype, (tensor.dtype, 1))
        buffer = torch.full((2 * self.BAND + tensor.numel(),), mark, dtype=whole)
        self._buffers.append((maker, buffer, mark))
        inner = buffer[self.BAND : -self.BAND].view(tensor.dtype).view(tensor.shape)
        return inner.copy_(tensor)

    def check(self) -> None:
        """Fails where a band was written to."""
        for maker, buffer, mark in self._buffers:
            bands = torch.cat([buffer[: self.BAND], buffer[-self.BAND :]])
            assert bool((bands == mark).all()), f"written past a tensor made by {maker}"
