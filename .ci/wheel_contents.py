"""What a wheel holds: the package, whole, and nothing beside it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 18_000_000  # two sets of weights are 16 of them


def faults(names: set[str], source: Path) -> list[str]:
    """What is wrong with a wheel that holds these files."""
    found = [
        f"{name} lies outside the package"
        for name in names
        if not name.startswith(("microdiffusion_fast/", "microdiffusion_fast-"))
    ]
    wanted = {
        f"microdiffusion_fast/{path.relative_to(source / 'microdiffusion_fast').as_posix()}"
        for path in (source / "microdiffusion_fast").rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc")
    }
    wanted |= {
        f"microdiffusion_fast/{path.relative_to(source).as_posix()}"
        for path in (source / "kernels").rglob("*.py")
    }
    found += [f"{name} is missing" for name in sorted(wanted - names)]
    return found


def main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    wrong = faults(names, ROOT)
    if wheel.stat().st_size > MOST_BYTES:
        wrong.append(f"{wheel.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
    if wrong:
        sys.exit("\n".join(wrong))
    native = sorted(name for name in names if name.endswith(".so"))
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size:,} bytes, native: {native}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
