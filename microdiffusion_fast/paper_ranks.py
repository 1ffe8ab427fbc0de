"""The processes of one training: one, or several that `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .device import resolve_device
from .errors import InputError

_PATIENCE = timedelta(hours=2)  # the first process fits the INR while the others wait for it


@dataclass(frozen=True)
class Ranks:
    """This process among all of them.

    Attributes:
        device: where this process computes.
        rank: its number; process 0 alone writes and reports.
        world: how many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    def share(self, batch: int) -> slice:
        """The examples of a batch that this process takes.

        Raises:
            InputError: naming `batch`; the shares would differ, and with them the mean.
        """
        if batch % self.world:
            expected = f"a multiple of the number of processes, {self.world}"
            raise InputError("batch", expected, batch)
        size = batch // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the tensors of process 0, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over all processes."""
        value = value.detach().clone()
        if self.world > 1:
            dist.all_reduce(value)
        return float(value) / self.world


@contextmanager
def join(device: str | torch.device | None) -> Iterator[Ranks]:
    """The processes that torchrun started, over gloo on CPUs and NCCL on CUDA devices.

    `device` "cuda" is the device of the process's local rank. A process group that the caller made
    is used as it is.

    Raises:
        InputError: naming `device`.
    """
    place = resolve_device(device, torch.device("cpu"))
    ours = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if not ours and not dist.is_initialized():
        yield Ranks(place)
        return
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if ours:
        backend = "nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(place, dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()
