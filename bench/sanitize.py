"""`python -m bench.sanitize`: the tests of the native kernels under AddressSanitizer and UBSan.

Builds the module with `-DMDF_SANITIZE=ON` in build/sanitize, puts a package together around it and
runs tests/kernels there. Triton's tests are left out: they run none of this code. Whatever a
sanitizer finds ends the run; a run that ends well is recorded in bench/results/sanitize.json.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.machine import describe

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
RESULT = ROOT / "bench" / "results" / "sanitize.json"


def main() -> int:
    """Build, test, record; the exit code of the tests."""
    build()
    package = layout()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-k", "not triton", "--timeout", "900", "tests/kernels"]
    command += ["tests/reliability/test_native_faults.py"]
    environment = os.environ | {
        "PYTHONPATH": str(package),
        # Python is not built with the sanitizer, so its runtime has to come first.
        "LD_PRELOAD": " ".join(_runtime(name) for name in ("libasan.so", "libubsan.so")),
        # Python keeps memory until it ends; torch and OpenBLAS do too.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    begun = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, check=False
    )
    print(done.stdout)
    found = re.search(r"(\d+) passed", done.stdout)
    if done.returncode == 0 and found:
        compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=True)
        about = describe()
        record = {
            "sanitizers": "address, undefined",
            "compiler": compiler.stdout.splitlines()[0],
            "tests passed": int(found[1]),
            "seconds": round(time.perf_counter() - begun, 1),
            **{name: about[name] for name in ("date", "commit", "machine")},
        }
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
    return done.returncode


def build() -> None:
    """Compile the native module with the sanitizers."""
    import nanobind

    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"
    subprocess.run(
        [
            cmake,
            *("-S", str(ROOT), "-B", str(BUILD)),
            "-DMDF_SANITIZE=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dnanobind_DIR={nanobind.cmake_dir()}",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run([cmake, "--build", str(BUILD)], check=True)


def layout() -> Path:
    """The package as it is installed, around that module; returns the folder that holds it."""
    folder = BUILD / "layout"
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "microdiffusion_fast"
    shutil.copytree(
        ROOT / "microdiffusion_fast",
        package,
        ignore=shutil.ignore_patterns("_native*", "__pycache__", "kernels"),
    )
    (package / "kernels").symlink_to(ROOT / "kernels")
    for module in BUILD.glob("_native*.so"):
        shutil.copy(module, package)
    (folder / "bench").symlink_to(ROOT / "bench")
    return folder


def _runtime(name: str) -> str:
    found = subprocess.run(
        ["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
