"""What sets a run apart from the one that was begun in the same place, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import InputError
from .records import first_difference

# What differs is a digest here: it says nothing to anybody.
_IN_WORDS = {
    "input": "the stack changed since the run was begun, or is another one",
    "network": "other weights than the run was begun with",
}
_LONGEST = 40  # characters of a value


def refuse_another(begun: Mapping[str, Any], run: Mapping[str, Any], target: Path) -> None:
    """Refuse to go on with a run that is not this one.

    Args:
        begun: what the run there was begun with: JSON values by name.
        run: what this one is.
        target: where the volume will be.

    Raises:
        InputError: saying everything that differs, as it was and as it is.
    """
    names = [name for name in {**begun, **run} if begun.get(name) != run.get(name)]
    if names:
        expected = (
            f"what the run for {target.name} was begun with (or begin anew: --fresh, resume=False)"
        )
        got = "; ".join(_words(name, begun.get(name), run.get(name)) for name in names)
        raise InputError("resume", expected, got)


def short(value: object) -> str:
    """A value in few characters, as a user would type it."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _words(name: str, old: object, new: object) -> str:
    if name in _IN_WORDS:
        return _IN_WORDS[name]
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = first_difference(old, new)
        if found is not None:
            (*_, name), old, new = found
    return f"{name.replace('_', ' ')} {short(old)} when it was begun, {short(new)} now"
