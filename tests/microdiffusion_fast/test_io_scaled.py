"""Scaled integers: to the nearest level and back, and nothing silent at the ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io_scaled import LARGEST, UNWRITTEN, Scaling, without_scaling


@given(st.floats(-1e4, 1e4), st.floats(1, 1e5), st.integers(0, 2**32 - 1))
def test_there_and_back(low: float, span: float, seed: int) -> None:
    scaling = Scaling.spanning(low, low + span)
    data = (low + span * np.random.default_rng(seed).random(100)).astype(np.float32)
    stored, outside = scaling.encode(data)
    assert stored.dtype == np.uint16 and outside <= 2  # an end may be rounded over
    rounding = 4e-7 * (abs(low) + span)
    assert np.abs(scaling.decode(stored) - data).max() <= 0.501 * span / LARGEST + rounding


def test_the_ends_and_what_was_never_written() -> None:
    scaling = Scaling.spanning(-1.0, 2.0)
    data = np.array([-1.0, 2.0, -1.1, 2.1, 0.0], np.float32)
    stored, outside = scaling.encode(data)
    assert stored.tolist()[:4] == [0, LARGEST, 0, LARGEST] and outside == 2
    assert np.isnan(scaling.decode(np.array([UNWRITTEN], np.uint16))).all()


def test_what_a_store_states() -> None:
    scaling = Scaling(0.5, 3.0)
    assert Scaling.of({}) is None
    assert Scaling.of(scaling.metadata()) == scaling
    assert without_scaling({"kind": "x", **scaling.metadata()}) == {"kind": "x"}
    for stated in ({}, {"scale": 0, "offset": 1}, {"scale": "a", "offset": 1}, 3):
        with pytest.raises(InputError, match="^path: expected a scale and an offset"):
            Scaling.of({"intensity": stated})
