"""Where a computation runs."""

from __future__ import annotations

import torch

from .errors import InputError


def parse_device(device: str | torch.device | None, default: torch.device) -> torch.device:
    """The CPU or a CUDA device, which need not be there: others may compute. None is the default.

    Raises:
        InputError: naming `device`.
    """
    if device is None:
        return default
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError("device", "'cpu' or 'cuda'", repr(device)) from None
    if place.type not in ("cpu", "cuda"):
        raise InputError("device", "'cpu' or 'cuda'", repr(str(device)))
    return place


def resolve_device(device: str | torch.device | None, default: torch.device) -> torch.device:
    """The CPU or a CUDA device that is there; None is the default.

    Raises:
        InputError: naming `device`.
    """
    place = parse_device(device, default)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device", "'cpu': torch sees no CUDA device here", repr(str(device)))
    return place
