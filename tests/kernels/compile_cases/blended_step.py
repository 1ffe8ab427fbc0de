"""blended_step: the parts of a step one by one, windows of 6 and of 20 slices, drawn noise."""

from __future__ import annotations

from typing import Any

from case import Case

from microdiffusion_fast.kernels.blended_step.triton_kernel import (
    _BLOCK,
    _KEPT,
    _blended_step_kernel,
)

SIZES = ("plane", "blocks", "windows", "stride", "start", "first", "row_stride", "plane_stride")


def case(
    name: str, *parts: str, dtype: str = "*fp32", aligned: bool = True, **constants: Any
) -> Case:
    """`parts` are the volumes beside x, prior and cond."""
    slices = constants.get("SLICES", 0)
    if slices:
        parts = (*parts, "p_projections")
    signature = dict.fromkeys(("p_x", "p_prior", "p_cond", *parts), dtype)
    signature |= {"p_weights": "*fp32"} if slices else {}
    signature |= {
        "p_table": "*fp64",
        "p_step": "*i64",
        "seed": "i64",
        "stream": "i32",
        "width": "i32",
    }
    signature |= dict.fromkeys(SIZES, "i64")
    signature |= {"p_words": "*i64"} if constants.pop("words", False) else {}
    absent = ("p_uncond", "p_noise", "p_history", "p_projections", "p_weights", "p_words")
    constants = {
        **dict.fromkeys(set(absent) - set(signature)),
        "SLICES": 0,
        "KEEP": slices <= _KEPT,
        "DRAW": "no",
        "ROWS": False,
        "BLOCK": _BLOCK // 2 if slices else _BLOCK,
        **constants,
    }
    # Four half-precision numbers a thread and slice are 64 bits; eight would not fit the
    # registers of a window.
    streaming = aligned and not (slices and dtype in ("*bf16", "*fp16"))
    options = {"num_warps": 4, "enable_fp_fusion": False}
    return Case(
        f"blended_step: {name}",
        _blended_step_kernel,
        signature,
        constants,
        options,
        streaming,
        aligned,
    )


CASES = [
    case("bare"),
    case("guided, noise given, history", "p_uncond", "p_noise", "p_history"),
    case("guided, drawn", "p_uncond", DRAW="quads"),
    case("guided, drawn, block", "p_uncond", DRAW="quads", ROWS=True),
    case("guided, drawn, block, odd", "p_uncond", DRAW="voxels", ROWS=True),
    case("bfloat16, guided, drawn", "p_uncond", dtype="*bf16", DRAW="quads"),
    case("float16, guided, drawn", "p_uncond", dtype="*fp16", DRAW="quads"),
    case("windows of 6", "p_uncond", SLICES=6),
    case("windows of 6, drawn", "p_uncond", SLICES=6, DRAW="quads"),
    case("windows of 6, drawn, words on device", "p_uncond", SLICES=6, DRAW="quads", words=True),
    case("windows of 6, drawn, odd", "p_uncond", aligned=False, SLICES=6, DRAW="voxels"),
    case("windows of 8, all", "p_uncond", "p_history", "p_noise", SLICES=8),
    case("windows of 6, bfloat16", "p_uncond", dtype="*bf16", SLICES=6),
    case("windows of 20, drawn", "p_uncond", SLICES=20, DRAW="quads"),
]
