"""Projections on their way to the device, ahead of the tile that needs them.

On a CUDA device they go through two pinned buffers and a stream of their own, so that the copy of
one tile runs while another is computed. None of that was run on a GPU: the tests go through the
same buffers on the CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Uploaded(NamedTuple):
    """Float32 images on the device, once `done` has passed."""

    images: Tensor
    done: torch.cuda.Event | None = None

    def wait(self) -> Tensor:
        """The images, for the current stream."""
        if self.done is not None:
            stream = torch.cuda.current_stream(self.images.device)
            stream.wait_event(self.done)
            self.images.record_stream(stream)  # or the copying stream could take the memory back
        return self.images


class Uploader:
    """Sends blocks to a device, as float32; for one thread.

    Args:
        device: where to.
        buffered: go through buffers; None does so on CUDA only.
    """

    def __init__(self, device: torch.device, *, buffered: bool | None = None) -> None:
        self.device = device
        cuda = device.type == "cuda"
        self.buffered = cuda if buffered is None else buffered
        self._stream = torch.cuda.Stream(device) if cuda else None
        self._buffers: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def send(self, block: NDArray[Any]) -> Uploaded:
        """Begin to copy; the block may be overwritten on the CPU, where it is the images."""
        if not self.buffered:
            return Uploaded(torch.from_numpy(block.astype(np.float32, copy=False)))
        host = self._buffer(block.size).view(block.shape)
        np.copyto(host.numpy(), block, casting="unsafe")
        if self._stream is None:
            self._buffers.append((host.flatten(), None))
            return Uploaded(host.to(self.device, copy=True))
        with torch.cuda.stream(self._stream):
            images = host.to(self.device, non_blocking=True)
            done = self._stream.record_event()
        self._buffers.append((host.flatten(), done))
        return Uploaded(images, done)

    def _buffer(self, size: int) -> Tensor:
        """The older of two buffers, when its last copy has left it."""
        if len(self._buffers) == 2:
            buffer, done = self._buffers.pop(0)
            if done is not None:
                done.synchronize()
            if buffer.numel() == size:
                return buffer
        return torch.empty(size, pin_memory=self._stream is not None)
