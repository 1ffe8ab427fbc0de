"""The figures of the sweeps: which slice, which names, and where they stand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microdiffusion_fast import experiments_figures as figures
from microdiffusion_fast.experiments_curves import apart, make_line
from microdiffusion_fast.experiments_cuts import Cuts
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.report_style import save


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
@settings(max_examples=200, deadline=None)
def test_names_stand_apart_and_in_order(places: list[float], step: float) -> None:
    wanted = sorted(places)
    found = apart(wanted, step)
    assert len(found) == len(wanted)
    gaps = [high - low for low, high in itertools.pairwise(found)]
    assert all(gap >= step - 1e-9 for gap in gaps)
    assert sum(found) == pytest.approx(sum(wanted))  # nothing drifts
    crowded = [high - low < step for low, high in itertools.pairwise(wanted)]
    if not any(crowded):
        assert found == pytest.approx(wanted)  # and nothing moves without need


def test_the_slice_is_hard_at_every_step_length() -> None:
    truth = np.random.default_rng(0).random((100, 8, 8), dtype=np.float32)
    cuts = Cuts.of(truth, None, (2, 4, 6, 8, 10, 12))
    for length in (2, 4, 6, 8, 10, 12):
        centres = AxialProjection(100, length).centres.numpy()
        assert centres[0] <= cuts.z <= centres[-1]
        assert np.abs(centres - cuts.z).min() >= 0.5 * (length - 1) / 2
    taken = cuts.take(truth)
    assert np.array_equal(taken["maximum_y"], truth.max(axis=1))
    assert list(taken) == list(cuts.rows)


def row(
    method: str, gamma: float | None, kind: str | None, psnr: float | None
) -> dict[str, object]:
    scores = {"psnr": psnr, "ssim": 0.9, "dice": 0.8}
    return {"gamma": gamma, "gamma_schedule": kind, "method": method, **scores}


def test_a_baseline_has_no_place_and_infinity_no_value() -> None:
    assert make_line([row("inr", None, None, 30.0)], "gamma").places == ()
    line = make_line([row("paper", 0.5, "linear", None), row("paper", 0.0, "linear", 2.0)], "gamma")
    assert line.places == (0.0, 0.5) and line.values["psnr"] == (2.0, None)


@pytest.mark.parametrize(("count", "shape"), [(1, (8, 16, 16)), (11, (40, 10, 60))])
def test_any_number_of_columns(count: int, shape: tuple[int, int, int], tmp_path: Path) -> None:
    from matplotlib.image import imread

    truth = np.random.default_rng(0).random(shape, dtype=np.float32)
    cuts = Cuts.of(truth, (2.0, 0.5, 0.5), (2, 12))
    scene = figures.Scene(truth, cuts, "µm", "A title", "A note.")
    gammas = [round(place / 11, 2) for place in range(count)]
    rows = [row("inr", None, None, 30.0), row("nearest", None, None, 30.0)]
    kinds = ("constant", "cosine")
    rows += [row("paper", gamma, kind, 25 + gamma) for kind in kinds for gamma in gammas]
    rows += [row("paper+consistency", gamma, kind, None) for kind in kinds for gamma in gammas]
    images = {gamma: cuts.take(truth) for gamma in gammas}
    page = figures.draw_gammas(scene, rows, images, method="paper", schedule="constant")
    words = [text.get_text() for axes in page.figure.axes for text in axes.texts]
    assert {"truth", "gamma 0", f"gamma {gammas[-1]:g}"} <= set(words)
    assert sum(word.startswith("gamma") for word in words) == min(count, 6)
    # every line is named once a plot, a schedule only where there are several
    assert words.count("paper preset, cosine") == 3 and words.count("INR") == 3
    first = save(page, tmp_path / "a.png")
    assert save(page, tmp_path / "b.png").read_bytes() == first.read_bytes()
    pixels = imread(first)
    assert pixels.shape[1] == 2010 and pixels[..., :3].std() > 0.05
    one, other = (save(page, tmp_path / name).read_bytes() for name in ("a.pdf", "b.pdf"))
    assert one == other  # no date, so that a rerun changes nothing
