"""Build script: maps `kernels/` into the package and drives CMake for the native module.

Everything declarative is in pyproject.toml. The native module is an optimisation: where it cannot
be built the installation goes on with the torch references, and says so in one line (pip shows it
with -v; `kernels/_backend.py` reports it afterwards). `MDF_BUILD_NATIVE=0` skips it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
NATIVE = "microdiffusion_fast._native"


def native_sources() -> list[str]:
    """The translation units of the native module, relative to the root."""
    paths = sorted(ROOT.glob("kernels/**/*.cpp"))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def native_headers() -> list[str]:
    """What a source distribution needs besides the translation units to build them."""
    return [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("kernels/**/*.h"))]


def cmake_tool(name: str) -> str | None:
    """The `cmake` or `ninja` beside this interpreter (a PyPI wheel), else the one on PATH."""
    beside = Path(sys.executable).parent
    return shutil.which(name, path=str(beside)) or shutil.which(name)


class CMakeBuild(build_ext):
    """Builds the native module with CMake; a failure leaves the installation without it."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        stale = [target]
        if self.editable_mode:
            # An in-place module of an earlier build must not outlive a failed one.
            stale.append(ROOT / "microdiffusion_fast" / target.name)
        for path in stale:
            path.unlink(missing_ok=True)
        reason = self._build(target)
        if reason is None:
            self._say(f"native module built: {target.name}")
            return
        self._say(f"native module NOT built ({reason}); kernels will use their torch reference")
        # `optional=True` turns this into a warning and skips the copy.
        raise CompileError(reason)

    def _build(self, target: Path) -> str | None:
        """Runs CMake; returns why there is no module, or None."""
        if os.environ.get("MDF_BUILD_NATIVE", "1") == "0":
            return "MDF_BUILD_NATIVE=0"
        cmake = cmake_tool("cmake")
        if cmake is None:
            return "cmake not found"
        try:
            import nanobind
        except ImportError:
            return "nanobind not found"
        build_dir = Path(self.build_temp).resolve() / "native"
        # A cache made by another interpreter or build environment points to paths that are gone.
        shutil.rmtree(build_dir, ignore_errors=True)
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build_dir),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dnanobind_DIR={nanobind.cmake_dir()}",
            f"-DMDF_OUTPUT_NAME={target.name}",
        ]
        if ninja := cmake_tool("ninja"):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        build = [cmake, "--build", str(build_dir), "--config", "Release"]
        for step, command in (("configure", configure), ("compile", build)):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                print(result.stdout, result.stderr, file=sys.stderr)
                if "No CMAKE_CXX_COMPILER" in result.stderr:
                    return "no C++ compiler found"
                return f"the {step} step failed, see the log above"
        built = next(iter(sorted(build_dir.glob(f"**/{target.name}"))), None)
        if built is None:
            return "CMake made no module"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, target)
        return None

    def _say(self, line: str) -> None:
        print(f"microdiffusion_fast: {line}", file=sys.stderr, flush=True)


packages = ["microdiffusion_fast"]
packages += [f"microdiffusion_fast.{name}" for name in find_packages("microdiffusion_fast")]
packages += ["microdiffusion_fast.kernels"]
packages += [f"microdiffusion_fast.kernels.{name}" for name in find_packages("kernels")]

setup(
    packages=packages,
    package_dir={"microdiffusion_fast.kernels": "kernels"},
    ext_modules=[
        Extension(
            NATIVE,
            sources=native_sources(),
            depends=["CMakeLists.txt", *native_headers()],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": CMakeBuild},
)
