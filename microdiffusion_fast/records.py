"""Records of plain values: what differs between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def first_difference(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[tuple[str, ...], Any, Any] | None:
    """Names on the way to the first value that differs, and it in each; None where none does.

    A tuple equals the list that JSON makes of it.
    """
    for name in {**first, **second}:
        one, other = _plain(first.get(name)), _plain(second.get(name))
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            if (inner := first_difference(one, other)) is not None:
                return (name, *inner[0]), *inner[1:]
        elif one != other:
            return (name,), one, other
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
