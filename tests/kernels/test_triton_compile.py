"""Every Triton kernel compiles to a cubin for sm_80, sm_90 and sm_100, without a GPU at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from microdiffusion_fast.kernels import _backend

CASES = Path(__file__).parent / "compile_cases"
STEMS = sorted(path.stem for path in CASES.glob("*.py") if path.stem not in ("case", "run"))

pytestmark = [
    pytest.mark.skipif(
        _backend.triton_missing is not None, reason=f"triton: {_backend.triton_missing}"
    ),
    pytest.mark.timeout(600),
]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'kernel':<52} sm  registers shared spills wide loads"]
    for row in rows:
        wide = "yes" if row["wide_loads"] else "-"
        lines.append(
            f"{row['case']:<52} {row['sm']:>3} {row['registers']:>8} {row['shared']:>6} "
            f"{row['spills']:>6} {wide}"
        )
    return "\n".join(lines)


@pytest.mark.parametrize("stem", STEMS)
def test_compiles_without_spills(stem: str) -> None:
    command = [sys.executable, str(CASES / "run.py"), stem]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    rows = json.loads(result.stdout.strip().splitlines()[-1])
    print("\n" + table(rows))  # shown by -s, and where an assertion below fails
    assert {row["sm"] for row in rows} == {80, 90, 100}
    assert all(row["spills"] == 0 for row in rows)
    assert all(row["wide_loads"] for row in rows if row["streaming"])
    # 255 is what an instruction can name: a kernel there is one that wanted more.
    assert all(row["registers"] < 255 for row in rows)
