"""All steps of a chain as one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError
from .kernels.blended_step import NoiseKey
from .sampler import Chain


class ChainGraph:
    """A chain captured once and replayed for every sample, or tile, of its shape.

        chain = Chain(denoise, prior, plan)
        chain.begin(seed=seed)
        graph = ChainGraph(chain)
        for stream in range(samples):
            chain.begin(seed=seed, stream=stream)
            volume = graph.advance()

    A replay is one launch in place of hundreds and runs the kernels that `chain.advance` would: the
    same bits. What the denoiser needs must lie on the device before, and it may read nothing back
    to the host. Between runs the prior, the projections and the denoiser's own tensors may be
    changed in place; the shape of the whole volume may not change, and a block has to lie to groups
    of four voxels as the captured one did.

    Raises:
        InputError: the chain is not on a CUDA device, or was not begun.
    """

    def __init__(self, chain: Chain) -> None:
        if chain.x.device.type != "cuda":
            raise InputError("chain", "one on a CUDA device", str(chain.x.device))
        self.chain = chain
        key = chain.take()
        self._place = _place(chain, key)
        with torch.cuda.device(chain.x.device):
            # First runs compile, choose algorithms and make constants, none of which a capture may.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                chain.key = key
                chain.advance()
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            chain.key = key
            with torch.cuda.graph(self._graph):
                chain.advance()

    def advance(self) -> Tensor:
        """All steps from where `chain.begin` set it; returns the state that the next run reuses.

        Raises:
            InputError: the chain was not begun since the last run, or for a block that the captured
                kernels do not fit.
        """
        key = self.chain.take()
        if _place(self.chain, key) != self._place:
            expected = "a block of the captured volume_shape, moved by a multiple of 4 voxels"
            raise InputError("offset", expected, (key.offset, key.volume_shape))
        self._graph.replay()
        return self.chain.x


def _place(chain: Chain, key: NoiseKey) -> tuple[tuple[int, ...], int]:
    """What a capture keeps of where the block lies."""
    return tuple(key.volume_shape or ()), int(key.new_words(chain.x.shape)[-1]) % 4
