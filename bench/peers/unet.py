"""The published denoiser with its attention by other means."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdiffusion_fast.paper_unet import Attention, Block, PaperDenoiser

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class PlainAttention(nn.Module):
    """Our layers in plain tensors [N, C, Y, X], around any attention of [N, Y * X, C]."""

    def __init__(self, ours: Attention, attend: Attend) -> None:
        super().__init__()
        self.norm, self.qkv, self.out, self.attend = ours.norm, ours.qkv, ours.out, attend

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        mixed = self.out(self.attend(*self.qkv(tokens).chunk(3, dim=-1)))
        return x + mixed.transpose(1, 2).reshape(x.shape)


def materialised(denoiser: PaperDenoiser) -> PaperDenoiser:
    """The same network and weights, its attention written out, its channels not last."""
    plain = _with_attention(denoiser, _softmax_of_all_pairs)
    return plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def scaled_dot_product(denoiser: PaperDenoiser) -> PaperDenoiser:
    """The same network and weights with torch's attention, whatever the dtype."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]

    return _with_attention(denoiser, attend)


def _softmax_of_all_pairs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v, with the weights [N, Y * X, Y * X] in memory."""
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1) @ v


def _with_attention(denoiser: PaperDenoiser, attend: Attend) -> PaperDenoiser:
    other = copy.deepcopy(denoiser)
    for block in list(other.modules()):
        if isinstance(block, Block):
            block.attention = PlainAttention(block.attention, attend)  # type: ignore[assignment]
    return other
