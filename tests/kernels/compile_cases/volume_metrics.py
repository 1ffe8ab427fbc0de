"""Specialisations of the volume_metrics kernels, as their launchers make them."""

from __future__ import annotations

from typing import Any

from case import Case

from microdiffusion_fast.kernels.volume_metrics import triton_kernel as kernels
from microdiffusion_fast.kernels.volume_metrics.reference import BINS, COLUMNS

OPTIONS = {"num_warps": kernels.WARPS, "enable_fp_fusion": False}
SIZES = {"voxels": "i64", "chunks": "i64"}
MAP = dict.fromkeys(("scale", "offset", "clip_low", "clip_high"), "fp64")
BIN_ARGUMENTS = ("low_x", "step_x", "factor_x", "low_y", "step_y", "factor_y")
WIDTHS = {"fp64": 2, "fp32": 4, "fp16": 8, "bf16": 8, "u16": 8, "u8": 16}


def blocks(dtype: str) -> dict[str, Any]:
    return {"ROWS": kernels.ROWS, "WIDTH": WIDTHS[dtype], "STEPS": kernels.STEPS}


def chunk(
    name: str, dtype: str, *, map_: bool, moments: bool, histograms: bool, aligned: bool = True
) -> Case:
    return Case(
        f"volume_metrics: {name}, {dtype}",
        kernels._chunk_kernel,
        {
            "x_ptr": f"*{dtype}",
            "y_ptr": f"*{dtype}",
            "rows_ptr": "*fp64",
            "counts_ptr": "*i64",
            **SIZES,
            **MAP,
            **dict.fromkeys(BIN_ARGUMENTS, "fp64"),
        },
        {
            "MAP": map_,
            "CLIP": map_,
            "MOMENTS": moments,
            "HISTOGRAMS": histograms,
            "BINS": BINS,
            "QUANTITIES": kernels.QUANTITIES,
            **blocks(dtype),
        },
        OPTIONS,
        streaming=aligned,
        aligned=aligned,
    )


def overlap(dtype: str, *, aligned: bool = True) -> Case:
    thresholds = {"threshold_x": "fp64", "threshold_y": "fp64"}
    return Case(
        f"volume_metrics: overlap, {dtype}{'' if aligned else ', odd'}",
        kernels._overlap_kernel,
        {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "counts_ptr": "*i64"}
        | SIZES
        | thresholds
        | MAP,
        {"MAP": True, "CLIP": True, **blocks(dtype)},
        OPTIONS,
        streaming=aligned,
        aligned=aligned,
    )


CASES = [
    *(
        chunk("sums", dtype, map_=False, moments=True, histograms=False)
        for dtype in ("fp64", "fp32", "bf16", "u16", "u8")
    ),
    chunk("sums and histograms, mapped", "fp32", map_=True, moments=True, histograms=True),
    chunk("sums and histograms, mapped", "u8", map_=True, moments=True, histograms=True),
    chunk(
        "sums and histograms, mapped, odd",
        "fp64",
        map_=True,
        moments=True,
        histograms=True,
        aligned=False,
    ),
    chunk("histograms", "fp32", map_=False, moments=False, histograms=True),
    Case(
        "volume_metrics: slices",
        kernels._slice_kernel,
        {"rows_ptr": "*fp64", "table_ptr": "*fp64", **SIZES, **MAP},
        {
            "MAP": True,
            "CLIP": True,
            "QUANTITIES": kernels.QUANTITIES,
            "COLUMNS": len(COLUMNS),
            "CHUNKS": kernels.CHUNKS,
        },
        OPTIONS,
    ),
    overlap("fp32"),
    overlap("u16"),
    overlap("fp64"),
    overlap("fp32", aligned=False),
]
