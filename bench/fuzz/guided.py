"""`python -m bench.fuzz.guided READER`: the same property, cases chosen by coverage.

atheris (libFuzzer) changes the seeds towards code that has not run yet: in the readers here, in
tifffile and in zarr. `--seconds` bounds the run; the counts are printed as one line of JSON and
added to a file with `--json`. atheris is needed for this alone: `pip install atheris`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

INSTRUMENTED = ["microdiffusion_fast", "tifffile", "zarr.core", "zarr.codecs", "zarr.dtype"]


def main() -> int:
    """Fuzz readers, each in a process of its own; 1 where anything breaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="+", metavar="READER")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return _fuzz(given.readers[0], given.child, given.cases, given.seconds, given.seed)
    broken = 0
    for name in given.readers:
        row = _in_a_process(name, given.cases, given.seconds, given.seed)
        broken += row["broken"]
        print(json.dumps(row), flush=True)
        if given.json:
            record = json.loads(given.json.read_text()) if given.json.exists() else {}
            record.setdefault("guided", []).append(row)
            given.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(broken > 0)


def _in_a_process(name: str, cases: int, seconds: int, seed: int) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as counts:
        command = [sys.executable, "-m", "bench.fuzz.guided", name, "--child", counts.name]
        command += ["--cases", str(cases), "--seconds", str(seconds), "--seed", str(seed)]
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds_taken = round(time.perf_counter() - begun, 1)
        try:
            row: dict[str, Any] = json.loads(Path(counts.name).read_text())
        except ValueError:
            row = {"reader": name, "cases": 0, "loaded": 0, "refused": 0, "broken": 0}
    if done.returncode:
        row["broken"] += 1
        row["what"] = done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if "cov:" in line]
    row["coverage"] = lines[-1].split("cov:")[1].split()[0] if lines else None
    return row | {"seconds": seconds_taken}


def _fuzz(name: str, counts: Path, cases: int, seconds: int, seed: int) -> int:
    """In the child, which atheris ends."""
    import atheris

    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=INSTRUMENTED):
        import tifffile  # noqa: F401
        import zarr  # noqa: F401

        import microdiffusion_fast.denoiser
        import microdiffusion_fast.io_tiff
        import microdiffusion_fast.io_zarr
        import microdiffusion_fast.paper_checkpoint  # noqa: F401

    from bench.fuzz.guard import address_space, judge
    from bench.fuzz.readers import READERS

    folder = Path(tempfile.mkdtemp(prefix="guided.", dir=_memory_disk()))
    reader = READERS[name](folder / "cases")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(reader.seeds):
        (corpus / f"seed{number}").write_bytes(content)
        reader.read(content)
    tally = {"loaded": 0, "refused": 0, "broken": 0}
    limit = address_space() + 2**30 + 2**29  # libFuzzer's own needs on top
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def one(content: bytes) -> None:
        what = judge(reader.read, content)
        tally["loaded" if what is None else "broken" if what else "refused"] += 1
        done = sum(tally.values())
        if what or done % 500 == 0 or done >= cases:
            row = {"reader": name, "cases": done, **tally}
            counts.write_text(json.dumps(row | ({"what": what} if what else {})))
        if what:
            (folder.parent / f"{name}.breach").write_bytes(content)
            raise RuntimeError(what)

    options = [f"-runs={cases}", f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=6000"]
    options += ["-rss_limit_mb=0", "-timeout=60", f"-artifact_prefix={folder}/", str(corpus)]
    atheris.Setup([sys.argv[0], *options], one, enable_python_coverage=True)
    atheris.Fuzz()
    return 0


def _memory_disk() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112


if __name__ == "__main__":
    sys.exit(main())
