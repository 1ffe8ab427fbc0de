"""counter_noise: a whole volume, and a block whose rows start anywhere in a quad."""

from __future__ import annotations

from typing import Any

from case import Case

from microdiffusion_fast.kernels.counter_noise.triton_kernel import _QUADS, _counter_noise_kernel

SIZES = ("seed", "first", "runs", "length", "quads", "height", "row_stride", "plane_stride")


def case(
    name: str, one_run: bool, step: str = "i32", words: bool = False, aligned: bool = True
) -> Case:
    signature = {"out": "*fp32", "step": step, "stream": "i32"} | dict.fromkeys(SIZES, "i64")
    constants: dict[str, Any] = {
        "STEP_ON_DEVICE": step.startswith("*"),
        "ONE_RUN": one_run,
        "QUADS": _QUADS,
    }
    if words:
        signature["words"] = "*i64"
    else:
        constants["words"] = None
    options = {"num_warps": 4, "enable_fp_fusion": False}
    return Case(
        f"counter_noise: {name}",
        _counter_noise_kernel,
        signature,
        constants,
        options,
        aligned=aligned,
    )


CASES = [
    case("whole volume", one_run=True),
    case("block", one_run=False),
    case("block, odd", one_run=False, aligned=False),
    case("whole volume, step on device", one_run=True, step="*i64"),
    case("block, step and words on device", one_run=False, step="*i64", words=True),
]
