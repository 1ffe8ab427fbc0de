"""Results of suites that were run one by one, as one file.

    python -m bench.merge step.json metrics.json -o bench/results/cpu.json

For machines that are lent by the minute. All parts have to come from one commit and one machine; a
row that several parts have is taken from the last. Date and load are those of the first part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]

ALIKE = ("commit", "smoke", "device", "gpu", "versions", "ops")


def merge(parts: Sequence[Json]) -> Json:
    """One file of results from several.

    Raises:
        ValueError: the parts do not belong together.
    """
    first = parts[0]
    for part in parts[1:]:
        for name in ALIKE:
            if part[name] != first[name]:
                raise ValueError(f"{name}: expected {first[name]}, got {part[name]}")
    rows = {row["row"]: row for part in parts for row in part["rows"]}
    return first | {"rows": list(rows.values())}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.merge", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RESULTS.json")
    options = parser.parse_args(arguments)
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in options.parts]
    try:
        merged = merge(parts)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    options.output.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
