"""Specialisations of the axial kernels, as their launchers make them."""

from __future__ import annotations

from case import Case

from microdiffusion_fast.kernels.axial_projection import triton_kernel as kernels

OPTIONS = {"num_warps": kernels.WARPS, "enable_fp_fusion": False}
SIZES = dict.fromkeys(("columns", "blocks", "stride", "start"), "i64")


def project(source: str, target: str, *, double: bool, aligned: bool = True) -> Case:
    return Case(
        f"axial_projection: A, {source} to {target}{'' if aligned else ', odd'}",
        kernels._project_kernel,
        {"x_ptr": f"*{source}", "y_ptr": f"*{target}", "weights_ptr": "*fp64", **SIZES},
        {"TAPS": 6, "DOUBLE": double, "BLOCK": kernels.BLOCK},
        OPTIONS,
        streaming=aligned,
        aligned=aligned,
    )


def backproject(
    source: str, target: str, overlap: int, *, double: bool, aligned: bool = True
) -> Case:
    odd = "" if aligned else ", odd"
    pointers = {"y_ptr": f"*{source}", "x_ptr": f"*{target}", "weights_ptr": "*fp64"}
    return Case(
        f"axial_projection: A^T, {source} to {target}, overlap {overlap}{odd}",
        kernels._backproject_kernel,
        pointers | SIZES | {"count": "i64"},
        {"TAPS": 6, "OVERLAP": overlap, "DOUBLE": double, "BLOCK": kernels.BLOCK},
        OPTIONS,
        streaming=aligned,
        aligned=aligned,
    )


CASES = [
    project("fp32", "fp32", double=False),
    project("bf16", "bf16", double=False),
    project("fp32", "fp64", double=True),
    project("fp32", "fp32", double=False, aligned=False),
    backproject("fp32", "fp32", 1, double=False),
    backproject("bf16", "bf16", 1, double=False),
    backproject("fp64", "fp32", 2, double=True),
    backproject("fp32", "fp32", 2, double=False, aligned=False),
    Case(
        "axial_projection: banded solve, half-width 5",
        kernels._solve_kernel,
        {"z_ptr": "*fp64", "factor_ptr": "*fp64", "columns": "i64", "count": "i64"},
        {"HALF": 5, "BLOCK": kernels.SOLVE_BLOCK},
        OPTIONS,
        aligned=False,
    ),
]
