"""Training pairs: windows are exactly the projections of the volume, positions those of slices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from microdiffusion_fast.denoiser import CONTEXT
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.training_data import (
    ASSUMED_BLUR,
    Acquisition,
    Batch,
    Scene,
    Source,
    _limited,
    _noise,
    axial_spread,
    blur_depth,
    draw_batch,
)

BELL = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])
SKEW = torch.tensor([0.5, 0.3, 0.15, 0.05])


class Plain(np.random.Generator):
    """Windows at random places, but upright, unscaled, and at the stack's ends only if asked."""

    def __init__(self, seed: int, *, at_the_end: bool) -> None:
        super().__init__(np.random.PCG64(seed))
        self._answers = [0.9, 0.0 if at_the_end else 0.9, 0.9, 0.9, 0.9]
        self._calls = 0

    def random(self, *args: Any, **kwargs: Any) -> Any:
        self._calls += 1  # turn, end of the stack, three mirrors
        return self._answers[(self._calls - 1) % 5]

    def normal(self, *args: Any, **kwargs: Any) -> Any:
        return 0.0  # gain and shift


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


MARGIN = 20


def extended(volume: Tensor) -> Tensor:
    """With its ends repeated, MARGIN slices on either side."""
    return volume[torch.arange(-MARGIN, len(volume) + MARGIN).clamp(0, len(volume) - 1)]


def found_in_a_stack(batch: Batch, volume: Tensor, acquisition: Acquisition) -> set[int]:
    """Check every window against A of the whole volume; returns the window indices met."""
    s, stride = acquisition.step_length, acquisition.stride
    around_it = blur_depth(extended(volume), acquisition.axial_blur)
    volume = around_it[MARGIN:-MARGIN]
    count = (len(volume) - s) // stride + 1
    met = set()
    for windows, slices, positions in zip(
        batch.windows, batch.slices, batch.positions, strict=True
    ):
        matches = []
        for start in range(len(volume) - s - (count - 1) * stride + 1):
            operator = AxialProjection(
                len(volume), s, stride=stride, weights=acquisition.weights, start=start, count=count
            )
            stack = operator(volume)
            for centre in range(count):
                around = torch.arange(centre - CONTEXT, centre + CONTEXT + 1).clamp(0, count - 1)
                if torch.allclose(stack[around], windows, rtol=0, atol=1e-5):
                    matches.append((centre, float(operator.centres[centre])))
        assert len(matches) == 1, matches
        centre, middle = matches[0]
        met.add(centre)
        index = (positions.double() + middle).round().long()
        torch.testing.assert_close(positions, (index - middle).float(), rtol=0, atol=1e-5)
        torch.testing.assert_close(slices, around_it[index + MARGIN], rtol=0, atol=1e-5)
        assert index.diff().tolist() == [1] * (stride + 1)
        nearest = positions[1:-1]
        assert float(nearest.abs().max()) <= stride / 2 + 1e-5
    return met


@pytest.mark.parametrize("at_the_end", [False, True], ids=["anywhere", "ends"])
@pytest.mark.parametrize(
    "acquisition",
    [
        pytest.param(Acquisition.uniform(4), id="disjoint"),
        pytest.param(Acquisition.uniform(5), id="disjoint, odd"),
        pytest.param(Acquisition.uniform(6, 3), id="overlapping"),
        pytest.param(Acquisition.uniform(4, 6), id="gaps"),
        pytest.param(Acquisition.uniform(4, 7), id="odd gaps"),
        pytest.param(Acquisition.uniform(4, blur=1.3), id="blurred"),
        pytest.param(Acquisition.uniform(3, 5, blur=2.0), id="blurred gaps"),
        pytest.param(Acquisition(5, 5, BELL), id="weighted"),
        pytest.param(Acquisition(5, 3, BELL), id="weighted, overlapping"),
        pytest.param(Acquisition(4, 4, SKEW), id="skewed weights"),
        pytest.param(Acquisition(4, 4, SKEW.flip(0), 1.3), id="skewed weights, blurred"),
    ],
)
def test_windows_are_projections_of_the_volume(acquisition: Acquisition, at_the_end: bool) -> None:
    volume = uniform(44, 6, 6)
    rng = Plain(3, at_the_end=at_the_end)
    batch = draw_batch([Source(volume, (0,))], acquisition, rng, count=12, size=6)
    assert batch.windows.shape == (12, 2 * CONTEXT + 1, 6, 6)
    assert batch.slices.shape == (12, acquisition.stride + 2, 6, 6)
    assert batch.positions.shape == (12, acquisition.stride + 2)
    met = found_in_a_stack(batch, volume, acquisition)
    count = (44 - acquisition.step_length) // acquisition.stride + 1
    inner = set(range(CONTEXT, count - CONTEXT))
    if at_the_end:
        assert met <= {0, 1, count - 2, count - 1} and {0, count - 1} & met
    elif inner:
        assert met <= inner and len(met) > 1


def test_a_stack_of_one_window() -> None:
    """A volume no deeper than one window still gives pairs."""
    volume = uniform(6, 4, 4)
    acquisition = Acquisition.uniform(6)
    batch = draw_batch(
        [Source(volume, (0,))], acquisition, Plain(0, at_the_end=False), count=2, size=4
    )
    assert found_in_a_stack(batch, volume, acquisition) == {0}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_may_play_the_depth(axis: int) -> None:
    volume = uniform(24, 24, 24)
    acquisition = Acquisition.uniform(6)
    rng = Plain(1, at_the_end=False)
    batch = draw_batch([Source(volume, (axis,))], acquisition, rng, count=3, size=24)
    found_in_a_stack(batch, volume.movedim(axis, 0), acquisition)


def test_windows_are_cut_out_of_the_image() -> None:
    volume = uniform(12, 10, 13)
    rng = Plain(2, at_the_end=False)
    batch = draw_batch([Source(volume, (0,))], Acquisition.uniform(6), rng, count=20, size=8)
    stack = AxialProjection(12, 6)(volume)
    places = set()
    for windows in batch.windows:
        patches = stack.unfold(1, 8, 1).unfold(2, 8, 1)  # [K, y, x, 8, 8]
        same = ((patches - windows[CONTEXT]).abs() < 1e-6).all(-1).all(-1).nonzero()
        assert len(same) == 1
        places.add(tuple(same[0, 1:].tolist()))
    assert {y for y, _ in places} == {0, 1, 2} and max(x for _, x in places) == 5


@pytest.mark.parametrize("s", [4, 5])
def test_the_mean_of_the_slices_is_the_window_however_they_are_turned(s: int) -> None:
    volume = uniform(30, 30, 30)
    rng = np.random.default_rng(0)
    batch = draw_batch([Source(volume, (0, 1, 2))], Acquisition.uniform(s), rng, count=40, size=12)
    means = batch.slices[:, 1:-1].mean(dim=1)
    torch.testing.assert_close(means, batch.windows[:, CONTEXT], rtol=0, atol=1e-5)


def test_positions_are_right_however_they_are_turned() -> None:
    """On a ramp along the depth, brightness tells the place; mirrored, it falls."""
    ramp = (torch.arange(60) / 60)[:, None, None].expand(-1, 8, 8).contiguous()
    rng = np.random.default_rng(1)
    batch = draw_batch([Source(ramp, (0,))], Acquisition.uniform(6, 7), rng, count=60, size=8)
    inner = slice(2, -2)  # beyond the ends of the volume the ramp is flat
    rise = batch.slices[:, inner, 4, 4] - batch.windows[:, CONTEXT, 4, 4, None]
    slopes = 60 * rise / batch.positions[:, inner]
    assert float((slopes - slopes[:, :1]).abs().max()) < 2e-3
    mirrored = slopes[:, 0] < 0
    assert 10 < int(mirrored.sum()) < 50
    gains = slopes[:, 0].abs().log()
    assert 0.1 < float(gains.std()) < 0.5 and abs(float(gains.mean())) < 0.2


def test_gain_and_shift_are_those_of_the_pair() -> None:
    volume = torch.ones(20, 8, 8)
    rng = np.random.default_rng(2)
    batch = draw_batch([Source(volume, (0,))], Acquisition.uniform(4), rng, count=30, size=8)
    levels = batch.windows[:, 0, 0, 0]
    assert float(levels.std()) > 0.1
    spread = (batch.slices - levels[:, None, None, None]).abs().max()
    assert float(spread) < 1e-5


def test_noise_is_added_to_the_windows_only() -> None:
    volume = torch.full((40, 32, 32), 0.5)
    source = Source(volume, (0,), noise=0.03)
    rng = Plain(4, at_the_end=False)
    batch = draw_batch([source], Acquisition.uniform(5), rng, count=6, size=32)
    assert float((batch.windows - 0.5).std()) == pytest.approx(0.03, rel=0.03)
    assert float((batch.slices - 0.5).abs().max()) < 1e-6


def test_half_precision_sources() -> None:
    volume = uniform(20, 8, 8)
    batches = [
        draw_batch(
            [Source(stored, (0,))],
            Acquisition.uniform(4),
            np.random.default_rng(5),
            count=4,
            size=8,
        )
        for stored in (volume.half().float(), volume.half())
    ]
    assert batches[1].windows.dtype == torch.float32
    assert torch.equal(batches[0].windows, batches[1].windows)


def test_seeds_reproduce() -> None:
    sources = [Source(uniform(20, 20, 20, seed=seed), (0, 1, 2), noise=0.01) for seed in (1, 2)]

    def drawn(seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        return draw_batch(sources, Acquisition.random(rng), rng, count=3, size=8)

    first, again, other = drawn(7), drawn(7), drawn(8)
    for name in ("windows", "slices", "positions"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.windows.shape != other.windows.shape or not torch.equal(
        first.windows, other.windows
    )


def test_random_acquisitions_cover_what_one_checkpoint_serves() -> None:
    rng = np.random.default_rng(0)
    drawn = [Acquisition.random(rng) for _ in range(600)]
    steps = {a.step_length for a in drawn}
    assert steps >= set(range(2, 13)) and max(steps) <= 24
    assert all(s <= 12 or s % 2 == 0 for s in steps)
    assert {True, False} == {a.stride < a.step_length for a in drawn}
    assert any(a.stride > a.step_length for a in drawn)
    assert all(a.stride >= 1 for a in drawn)
    assert all(abs(float(a.weights.sum()) - 1) < 1e-6 for a in drawn)
    assert all(float(a.weights.min()) >= 0 and len(a.weights) == a.step_length for a in drawn)
    assert any(a.axial_blur == 0 for a in drawn) and any(a.axial_blur > 3 for a in drawn)
    assert any(axial_spread(a.weights) < 0.9 for a in drawn)


def test_stated_blurs_are_assumed_believed_or_known() -> None:
    rng = np.random.default_rng(1)
    drawn = [Acquisition.random(rng) for _ in range(1000)]
    assumed = [a for a in drawn if a.stated_blur == ASSUMED_BLUR]
    believed = [a for a in drawn if a.stated_blur not in (None, ASSUMED_BLUR)]
    assert 400 < len(assumed) < 600 and 180 < len(believed) < 320
    assert all(a.geometry.axial_blur == a.stated_blur for a in assumed + believed)
    # what is assumed says nothing: sharp and very soft stacks are among them
    assert min(a.axial_blur for a in assumed) == 0 and max(a.axial_blur for a in assumed) > 3
    assert all(a.axial_blur > 0 for a in believed)
    off = [math.log(a.axial_blur / a.stated_blur) for a in believed if a.stated_blur]
    assert np.mean(off) == pytest.approx(0, abs=0.08)  # the belief is right on average
    assert np.std(off) == pytest.approx(0.35, abs=0.05)


def test_limited_blocks_are_white_at_their_brightest() -> None:
    block = torch.rand(20, 30, 30, generator=torch.Generator().manual_seed(0))
    shares = []
    for seed in range(40):
        limited = _limited(block, np.random.default_rng(seed))
        white = limited == limited.max()
        assert torch.equal(limited[~white], block[~white])
        assert bool((block[white] >= limited.max()).all())
        shares.append(float(white.float().mean()))
    assert 1e-4 < min(shares) < 1e-3 and 3e-3 < max(shares) < 1.1e-2


@pytest.mark.parametrize(
    ("weights", "spread"),
    [
        ([0.25] * 4, 1.0),
        ([0.5, 0.5], 1.0),
        ([0.0, 1.0, 0.0], 0.0),
        ([0.5, 0.0, 0.5], math.sqrt(1.5)),  # variance 1, uniform 2/3
        ([0.1, 0.2, 0.4, 0.2, 0.1], math.sqrt(0.6)),
    ],
)
def test_axial_spread(weights: list[float], spread: float) -> None:
    assert axial_spread(torch.tensor(weights)) == pytest.approx(spread, abs=1e-6)


def test_geometry_of_an_acquisition() -> None:
    geometry = Acquisition(5, 3, BELL, 1.5).geometry
    assert geometry[:3] == (5, 3, 1.5)
    assert geometry.spread == pytest.approx(math.sqrt(0.6))


def moments(profile: Tensor) -> tuple[float, float, float]:
    z = torch.arange(len(profile), dtype=torch.float64)
    total = float(profile.sum())
    mean = float((profile * z).sum()) / total
    return total, mean, float((profile * (z - mean) ** 2).sum()) / total


@pytest.mark.parametrize("sigma", [1.0, 1.7, 3.5])
def test_blur_depth_keeps_sum_and_centre_and_has_its_width(sigma: float) -> None:
    impulse = torch.zeros(61, 2, 2, dtype=torch.float64)
    impulse[30] = 1.0
    blurred = blur_depth(impulse, sigma)
    assert blurred.shape == impulse.shape
    total, mean, variance = moments(blurred[:, 1, 0])
    assert total == pytest.approx(1.0, abs=1e-12)
    assert mean == pytest.approx(30.0, abs=1e-9)
    assert variance == pytest.approx(sigma**2, rel=0.06)  # cut off at three sigma


def test_blur_depth_twice_adds_variances() -> None:
    impulse = torch.zeros(61, 1, 1, dtype=torch.float64)
    impulse[30] = 1.0
    one, two = blur_depth(impulse, 1.3), blur_depth(impulse, 2.1)
    both = blur_depth(one, 2.1)
    variances = [moments(x[:, 0, 0])[2] for x in (one, two, both)]
    assert variances[2] == pytest.approx(variances[0] + variances[1], abs=1e-9)


def test_blur_depth_repeats_the_ends_and_blurs_nothing_else() -> None:
    lateral = uniform(1, 5, 7).expand(12, -1, -1)
    torch.testing.assert_close(blur_depth(lateral, 2.0), lateral, rtol=0, atol=1e-6)
    flat = torch.full((9, 3), 0.7)
    torch.testing.assert_close(blur_depth(flat, 3.5), flat, rtol=0, atol=1e-6)
    volume = uniform(9, 3, 3)
    assert torch.equal(blur_depth(volume, 0.0), volume)


# --- varied scenes ---


def test_a_scene_at_its_own_size_is_the_volume() -> None:
    volume = torch.arange(5 * 6 * 7, dtype=torch.float32).view(5, 6, 7)
    block = Scene(volume).block((-1, 6), (1, 4), (0, 7))
    assert block.shape == (7, 3, 7)
    assert torch.equal(block[1:6], volume[:, 1:4])
    assert torch.equal(block[0], volume[0, 1:4]) and torch.equal(block[6], volume[4, 1:4])


@pytest.mark.parametrize("zoom", [0.7, 1.3, 1.7])
def test_a_magnified_ramp_is_a_ramp(zoom: float) -> None:
    ramp = torch.arange(40.0).view(40, 1, 1).expand(40, 8, 8)
    scene = Scene(ramp, zoom)
    assert scene.shape == (int(40 * zoom), int(8 * zoom), int(8 * zoom))
    inner = scene.block((4, 20), (0, 5), (0, 5))
    expected = (torch.arange(4, 20) + 0.5) / zoom - 0.5
    torch.testing.assert_close(inner[:, 2, 2], expected, rtol=0, atol=1e-4)


def test_varied_windows_are_still_the_projections_of_their_slices() -> None:
    rng = np.random.default_rng(4)
    volumes = [torch.rand(30, 30, 30, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    sources = [Source(volume, (0, 1, 2)) for volume in volumes]
    acquisition = Acquisition.uniform(4)
    batch = draw_batch(sources, acquisition, rng, count=40, size=16, vary=True)
    inner = batch.slices[:, 1:-1]
    torch.testing.assert_close(inner.mean(1), batch.windows[:, CONTEXT], rtol=0, atol=1e-5)
    plain = draw_batch(sources, acquisition, np.random.default_rng(4), count=40, size=16)
    assert batch.slices.std() != plain.slices.std()


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_noise_of_varied_windows(level: float) -> None:
    """About unit deviation over many windows; more light, more noise."""
    rng = np.random.default_rng(0)
    windows = torch.full((5, 24, 24), level)
    spread = [float(_noise(windows, rng, vary=True).square().mean()) for _ in range(200)]
    white = float(_noise(windows, rng, vary=False).square().mean())
    assert white == pytest.approx(1, abs=0.1)
    # the share of shot noise is uniform: half (dark) or one and a half (bright), less if smooth
    assert (0.35 < np.mean(spread) < 0.55) if level == 0 else (1.1 < np.mean(spread) < 1.55)
    assert np.std(spread) > 0.1
