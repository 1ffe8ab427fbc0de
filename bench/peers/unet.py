"""The published denoiser with its attention written out, weights and all, as published."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from microdiffusion_fast.paper_unet import Attention, Block, PaperDenoiser


class MaterialisedAttention(nn.Module):
    """softmax(q k^T / sqrt(C)) v with the weights [N, Y * X, Y * X] in memory."""

    def __init__(self, ours: Attention) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = ours.norm, ours.qkv, ours.out

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
        mixed = self.out(weights @ v)
        return x + mixed.transpose(1, 2).reshape(x.shape)


def materialised(denoiser: PaperDenoiser) -> PaperDenoiser:
    """The same network and weights, its attention written out, its channels not last."""
    plain = copy.deepcopy(denoiser)
    for block in plain.modules():
        if isinstance(block, Block):
            block.attention = MaterialisedAttention(block.attention)
    return plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
