"""Specialisations of windowed_ssim: both windows, per slice and 3D, several types."""

from __future__ import annotations

from typing import Any

from case import Case

from microdiffusion_fast.kernels.windowed_ssim.reference import window_taps
from microdiffusion_fast.kernels.windowed_ssim.triton_kernel import (
    BLOCK,
    OPTIONS,
    PLANES,
    ssim_partials,
)

SIZES = ("depth", "height", "width", "x_plane", "x_row", "y_plane", "y_row")
MAP = ("scale", "offset", "low", "high")
SCALARS = ("unit", "weight", "c1", "c2", "norm")


def _case(
    name: str,
    window: str,
    ndim: int,
    types: tuple[str, str],
    mapped: bool = False,
    aligned: bool = True,
) -> Case:
    taps = window_taps(window)
    constants: dict[str, Any] = {
        "TAPS": tuple([1.0] * len(taps) if window == "uniform" else taps),
        "WINDOW": len(taps),
        "DEPTH": len(taps) if ndim == 3 else 1,
        "PLANES": PLANES if ndim == 3 else 1,
        "UNIFORM": window == "uniform",
        "MAPPED": mapped,
        "CLIP": mapped,
        "BLOCK": BLOCK,
    }
    return Case(
        name=f"windowed_ssim: {name}",
        kernel=ssim_partials,
        signature={
            "x": f"*{types[0]}",
            "y": f"*{types[1]}",
            "partials": "*fp64",
            **dict.fromkeys(SIZES, "i64"),
            **dict.fromkeys(MAP, "fp64"),
            **dict.fromkeys(SCALARS, "fp32"),
        },
        constants=constants,
        options=OPTIONS,
        aligned=aligned,
    )


CASES = [
    _case("uniform, 3D, fp32", "uniform", 3, ("fp32", "fp32")),
    _case("uniform, 3D, u16, map and clip", "uniform", 3, ("u16", "u16"), mapped=True),
    _case("uniform, 2D, bf16 and u8", "uniform", 2, ("bf16", "u8")),
    _case("gaussian, 3D, fp32", "gaussian", 3, ("fp32", "fp32")),
    _case("gaussian, 3D, fp32, odd", "gaussian", 3, ("fp32", "fp32"), aligned=False),
    _case("gaussian, 3D, fp64", "gaussian", 3, ("fp64", "fp64")),
    _case("gaussian, 2D, fp16, map and clip", "gaussian", 2, ("fp16", "fp16"), mapped=True),
]
