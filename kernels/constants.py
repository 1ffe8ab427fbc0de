"""Small constants on a device."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


# Without a bound: a captured CUDA graph reads these tensors by their address, and one that was
# dropped would be freed under it. They are a few hundred bytes each.
@cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device, copied there once, before a capture: a graph cannot copy from the host.

    Only a first call waits for the copy. Shared by all who ask: not to be written to.
    """
    return torch.tensor(values, dtype=dtype, device=device)
