"""hash_encoding: points, a grid's fine levels, its lattices, and their backward passes."""

from __future__ import annotations

from case import Case

from microdiffusion_fast.kernels.hash_encoding import triton_kernel as kernels

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def case(name: str, kernel: object, types: dict[str, str], **constants: object) -> Case:
    options = {**OPTIONS, "num_warps": constants.pop("num_warps", 4)}
    aligned = bool(constants.pop("aligned", True))
    signature = {
        argument: types.get(argument, "i32")
        for argument in kernel.arg_names  # type: ignore[attr-defined]
        if argument not in constants
    }
    return Case(f"hash_encoding: {name}", kernel, signature, constants, options, aligned=aligned)


def encode(name: str, dtype: str, features: int, **constants: object) -> Case:
    types = {
        "out": dtype,
        "table": dtype,
        "scales": "*fp64",
        "geometry": "*i64",
        "weights": "*fp32",
        "plane_size": "i64",
        **{f"{axis}_axis": "*fp32" for axis in "zyx"},
        **{f"{axis}_slots": "*i32" for axis in "zyx"},
        **{f"{axis}_fractions": "*fp32" for axis in "zyx"},
    }
    power = 1 << (features - 1).bit_length()
    shape = {"F": features, "FEATURES": power, "LEVELS": 8 // power, "BLOCK": 128}
    return case(name, kernels.encode_kernel, types, **shape, **constants)


def scatter(name: str, dtype: str, features: int, **constants: object) -> Case:
    types = {
        "sums": "*i64",
        "grad": dtype,
        "scales": "*fp64",
        "geometry": "*i64",
        "weights": "*fp32",
        "units": "*fp64",
        "plane_size": "i64",
        **{f"{axis}_axis": "*fp32" for axis in "zyx"},
    }
    shape = {"F": features, "FEATURES": features, "BLOCK": 128}
    return case(name, kernels.scatter_kernel, types, **shape, **constants)


POINTS = {"TAPS": 1, "GRID": False}
GRID = {"TAPS": 1, "GRID": True}
PROJECTION = {"TAPS": 6, "GRID": True}

POINTERS = {
    **dict.fromkeys(("scales", "units"), "*fp64"),
    **dict.fromkeys(("geometry", "lattice_geometry", "offsets", "sums"), "*i64"),
    **dict.fromkeys(("weights", "axis", "fractions", "planes", "positions"), "*fp32"),
    **dict.fromkeys(("slots", "begins", "ends", "counts", "rooms"), "*i32"),
    **{f"{a}_{n}": "*i32" for a in "zyx" for n in ("slots", "begins", "ends", "counts")},
    **dict.fromkeys(("vertices", "z_vertices", "y_vertices", "x_vertices"), "*i64"),
    **{f"{a}_fractions": "*fp32" for a in "zyx"},
}

CASES = [
    encode("points, fp32, F=2", "*fp32", 2, LATTICE=False, **POINTS),
    encode("points, bf16, F=8", "*bf16", 8, LATTICE=False, **POINTS),
    encode("fine levels of a grid, fp32, F=4", "*fp32", 4, LATTICE=False, **GRID),
    encode("lattice, fp32, F=2", "*fp32", 2, LATTICE=True, **GRID),
    encode("lattice, projection, fp16, F=4", "*fp16", 4, LATTICE=True, **PROJECTION),
    encode("points, fp32, F=3, odd", "*fp32", 3, LATTICE=False, aligned=False, **POINTS),
    scatter("fine levels backward, fp32, F=2, odd", "*fp32", 2, aligned=False, **PROJECTION),
    scatter("points backward, fp32, F=2", "*fp32", 2, **POINTS),
    scatter("fine levels backward, bf16, F=4", "*bf16", 4, **PROJECTION),
    case(
        "positions backward, fp32, F=2",
        kernels.slope_kernel,
        {**POINTERS, "out": "*fp32", "grad": "*fp32", "table": "*fp32", "n": "i64"},
        N_LEVELS=16,
        F=2,
        FEATURES=2,
        BLOCK=128,
    ),
    case("axis of 500, odd", kernels.axis_kernel, POINTERS, BLOCK=512, aligned=False),
    case(
        "look-up, bf16, F=2",
        kernels.look_up_kernel,
        {**POINTERS, "lattice": "*bf16", "table": "*bf16"},
        F=2,
        FEATURES=2,
        BLOCK=128,
    ),
    case(
        "back along z, fp32, F=4",
        kernels.back_along_z_kernel,
        {**POINTERS, "grad": "*fp32", "plane_size": "i64"},
        TAPS=6,
        F=4,
        FEATURES=4,
        BLOCK=128,
    ),
    case(
        "back to the table, F=4",
        kernels.back_to_table_kernel,
        POINTERS,
        F=4,
        FEATURES=4,
        BLOCK=32,
        num_warps=1,
    ),
]
