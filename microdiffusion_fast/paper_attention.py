"""Attention over all pixels of an image, without ever holding the weights between all pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Weights at a time in `_attend_in_blocks`, 8 MiB in bfloat16. With more, malloc asks the system for
# fresh pages every time; with less, the products become too thin.
BLOCK = 2**22


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v, in one head: [N, L, C] each, to [N, L, C].

    This is torch's `scaled_dot_product_attention`, but for bfloat16 on a CPU. There torch's kernel
    is as slow as in float32 (measured with avx512_bf16; it has a faster one for AMX), while plain
    products run at the speed of the instructions, so blocks of rows take half of the time or less.
    They round the logits to bfloat16, as plain torch does; torch's kernel keeps them in float32.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _attend_in_blocks(q, k, v)
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition for BLOCK weights at a time: whole images, or rows of queries of one."""
    length = q.shape[1]
    images, rows = max(BLOCK // length**2, 1), max(BLOCK // length, 1)
    mixed: list[Tensor] = []
    for some_q, some_k, some_v in zip(*(x.split(images) for x in (q, k, v)), strict=True):
        parts = [_attend_again(part, some_k, some_v) for part in some_q.split(rows, dim=1)]
        mixed.append(torch.cat(parts, dim=1))
    return torch.cat(mixed)


def _attend_again(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, computed once more in the backward pass rather than kept for it."""
    if not torch.is_grad_enabled():
        return _definition(q, k, v)
    return checkpoint(_definition, q, k, v, use_reentrant=False, preserve_rng_state=False)


def _definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(1, 2), dim=-1) @ v
