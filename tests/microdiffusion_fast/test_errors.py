"""The one exception: its words, and its way between processes."""

from __future__ import annotations

import pickle

from microdiffusion_fast.errors import InputError


def test_it_crosses_processes() -> None:
    error = InputError("depth", "at least 1", 0)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "depth: expected at least 1, got 0"
    assert (type(copy), copy.argument, copy.got) == (InputError, "depth", 0)
