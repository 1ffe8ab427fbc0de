"""What `run.py` compiles: one specialisation of one Triton kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A kernel with the types and constants that a launch would give it.

    Attributes:
        name: row of the table, "<stem>: <variant>".
        kernel: the `triton.jit` function.
        signature: type of every argument that is not a constant, "*fp32", "i64", ... Pointers and
            i64 sizes count as multiples of 16, as they are for contiguous tensors of usual sizes,
            unless `aligned` is False.
        constants: value of every `tl.constexpr` argument.
        options: compiler options of the launch, `num_warps` above all.
        streaming: whether 128-bit loads are a must.
        aligned: False for odd sizes and views: nothing is known of any address.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    streaming: bool = False
    aligned: bool = True
