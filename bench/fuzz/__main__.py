"""`python -m bench.fuzz [READER ...]`: run cases, print what breaks, record the counts."""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.fuzz.guard import MEMORY, SECONDS, judge, limited, peak_memory, watch
from bench.fuzz.readers import MAX_BYTES, READERS
from bench.machine import describe

_VERSIONS = ("numpy", "safetensors", "tifffile", "torch", "zarr", "numcodecs")
_AT_ONCE = 10_000  # cases of one process
_KEPT = 20  # findings that are recorded in full


def main() -> int:
    """Fuzz the readers, each in a process of its own; 1 where anything breaks."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", choices=[*READERS, []], metavar="READER")
    parser.add_argument("--cases", type=int, default=100_000, help="cases a reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="record the counts here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(fuzz(given.readers[0], given.cases, first=given.first, seed=given.seed)))
        return 0
    about, rows = describe(), []  # before a long run: the commit that it ran
    for name in given.readers or READERS:
        rows.append({"reader": name})
        for done in range(0, given.cases, _AT_ONCE):
            count = min(_AT_ONCE, given.cases - done)
            rows[-1] = _merged(rows[-1], _in_a_process(name, count, given.first + done, given.seed))
            if given.json:
                record = {
                    "seed": given.seed,
                    "seconds a case may take": SECONDS,
                    "bytes a case may add": MEMORY,
                    "max_bytes of images": MAX_BYTES,
                    "versions": {"python": platform.python_version()}
                    | {package: version(package) for package in _VERSIONS},
                    **{key: about[key] for key in ("date", "commit", "machine")},
                    "readers": rows,
                }
                given.json.write_text(json.dumps(record, indent=1) + "\n")
        print(_line(rows[-1]), flush=True)
        for finding in rows[-1]["findings"]:
            print(f"  case {finding['case']} ({finding['count']} like it): {finding['what']}")
    return int(any(row["findings"] for row in rows))


def _merged(row: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Counts are added, memory is the most of any."""
    merged = {**more, **row, "findings": [*row.get("findings", ()), *more["findings"]][:_KEPT]}
    for name in ("cases", "loaded", "refused", "broken", "seconds"):
        merged[name] = round(row.get(name, 0) + more[name], 1)
    for name in ("megabytes at most", "megabytes added"):
        merged[name] = max(row.get(name, 0), more[name])
    return merged


def fuzz(name: str, cases: int, *, first: int = 0, seed: int = 0) -> dict[str, Any]:
    """Run cases of one reader in this process."""
    warnings.simplefilter("ignore")
    loaded = refused = 0
    findings: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz.", dir=_memory_disk()) as folder:
        reader = READERS[name](Path(folder))
        for content in reader.seeds:
            reader.read(content)
        before, begun = peak_memory(), time.perf_counter()
        with limited():
            for number in range(first, first + cases):
                if (number - first) % 100 == 0:
                    watch()
                content = reader.make(random.Random(f"{name} {seed} {number}"))
                what = judge(reader.read, content)
                if what is None:
                    loaded += 1
                elif not what:
                    refused += 1
                else:
                    found = findings.setdefault(
                        what.partition(": ")[0], {"case": number, "count": 0, "what": what}
                    )
                    found["count"] += 1
        seconds = time.perf_counter() - begun
    return {
        "reader": name,
        "cases": cases,
        "loaded": loaded,
        "refused": refused,
        "broken": cases - loaded - refused,
        "findings": list(findings.values())[:_KEPT],
        "seconds": round(seconds, 1),
        "megabytes at most": round(peak_memory() / 1e6),
        "megabytes added": round((peak_memory() - before) / 1e6),
    }


def _in_a_process(name: str, cases: int, first: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.fuzz", name, "--child", "--cases", str(cases)]
    command += ["--first", str(first), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        what = f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
        row = {"reader": name, "cases": 0, "loaded": 0, "refused": 0, "broken": 1, "seconds": 0}
        row |= {"megabytes at most": 0, "megabytes added": 0}
        row["findings"] = [{"case": first, "count": 1, "what": what}]
    return row


def _memory_disk() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['reader']}: {row['cases']:,} cases, {row['loaded']:,} loaded, {row['refused']:,} "
        f"refused, {row['broken']:,} broken; {row['seconds']} s, {row['megabytes added']} MB added"
    )


if __name__ == "__main__":
    sys.exit(main())
