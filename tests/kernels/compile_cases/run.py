"""Compiles the Triton kernels of one stem for GPUs that need not be there; prints one JSON list.

    python run.py STEM        with STEM.py beside this file, which lists CASES

In a process of its own: the test suite runs Triton's interpreter, which replaces the compiler.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
from case import Case
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_case(case: Case, architecture: int) -> dict[str, Any]:
    names = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if case.aligned and (signature[name].startswith("*") or signature[name] == "i64")
    }
    constants = {name: case.constants[name] for name in names if signature[name] == "constexpr"}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=case.options)
    ptx = compiled.asm["ptx"]
    return {
        "case": case.name,
        "sm": architecture,
        "streaming": case.streaming,
        "shared": compiled.metadata.shared,
        "wide_loads": bool(re.search(r"ld\.global(\.\w+)*\.(v4\.b32|v2\.b64|b128|v8\.b32)", ptx)),
        **resources(compiled.asm["cubin"]),
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack and local memory: a spill shows as either."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(usage["REG"]), "spills": int(usage["STACK"]) + int(usage["LOCAL"])}


def main(stem: str) -> None:
    cases: list[Case] = importlib.import_module(stem).CASES
    print(json.dumps([compile_case(c, sm) for c in cases for sm in ARCHITECTURES]))


if __name__ == "__main__":
    main(sys.argv[1])
