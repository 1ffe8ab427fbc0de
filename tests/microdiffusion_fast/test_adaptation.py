"""Adaptation: the coarser stack, the check along z, and what it lets through."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.small_network import random_network
from microdiffusion_fast import adaptation, adaptation_check
from microdiffusion_fast.adaptation import (
    BLURS,
    DOUBT,
    STEPS,
    AdaptOptions,
    adapt,
    lateral_sources,
    self_train,
)
from microdiffusion_fast.adaptation_check import (
    FULL_TRUST,
    Check,
    check_along_z,
    check_laterally,
    coarser,
    follow_noise,
    noise_to_error,
    trusted,
)
from microdiffusion_fast.denoiser import Denoiser, DenoiserConfig
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.progress import Cancelled
from microdiffusion_fast.simulate import simulate_volume
from microdiffusion_fast.training_data import ASSUMED_BLUR, Source

TINY = DenoiserConfig(encoder_widths=(8, 8, 8), head_width=8, head_blocks=1, embedding=16)
QUICK = AdaptOptions(steps=3, windows=2, size=16)
OPERATOR = AxialProjection(24, 6)


def randomised(seed: int = 0) -> Denoiser:
    return random_network(torch.Generator().manual_seed(seed), TINY).eval()


def texture(*shape: int, seed: int = 0) -> Tensor:
    """A soft random texture in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 1, *(n // 4 + 2 for n in shape)), generator=generator)
    return torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0, 0]


def weights_of(denoiser: Denoiser) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in denoiser.state_dict().items()}


def unchanged(denoiser: Denoiser, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())


# --- the coarser stack ---


@given(data=st.data())
def test_coarser_is_the_average_of_pairs(data: st.DataObject) -> None:
    """Whatever the geometry: its operator on the volume gives the averaged projections."""
    s = data.draw(st.integers(2, 6))
    stride = data.draw(st.integers(1, 9))
    start = data.draw(st.integers(0, 3))
    count = data.draw(st.integers(2, 7))
    after = data.draw(st.integers(0, 4))
    raw = torch.tensor(data.draw(st.lists(st.floats(0.1, 1), min_size=s, max_size=s)))
    depth = start + (count - 1) * stride + s + after
    operator = AxialProjection(
        depth, s, stride=stride, start=start, count=count, weights=(raw / raw.sum()).double()
    )
    volume = torch.rand((depth, 3, 3), dtype=torch.float64)
    projections = operator(volume)
    stack, coarse = coarser(projections, operator)
    pairs = count // 2
    assert coarse.count == len(stack) == pairs
    for k in range(pairs):
        torch.testing.assert_close(stack[k], projections[2 * k : 2 * k + 2].mean(0))
    assert coarse.depth <= depth
    torch.testing.assert_close(coarse(volume[: coarse.depth]), stack)


def test_coarser_of_disjoint_windows_has_twice_the_step_length() -> None:
    _, coarse = coarser(torch.rand(4, 2, 2), OPERATOR)
    assert (coarse.step_length, coarse.stride, coarse.depth) == (12, 12, 24)
    assert coarse.weights.tolist() == pytest.approx([1 / 12] * 12)


# --- the check ---


@pytest.mark.parametrize(
    "operator",
    [
        pytest.param(OPERATOR, id="disjoint"),
        pytest.param(AxialProjection(27, 5, stride=4, start=1), id="overlapping"),
        pytest.param(AxialProjection(30, 4, stride=6), id="gaps"),
    ],
)
def test_the_check_finds_interpolation_as_good_as_interpolation(operator: AxialProjection) -> None:
    projections = operator(texture(operator.depth, 16, 16))
    for blur in (0.0, 2.5):
        found = check_along_z(Denoiser(TINY).eval(), projections, operator, blur)
        assert found.error == pytest.approx(1.0, rel=1e-4)


def test_the_check_tells_good_from_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """Error 0 for the volume itself, a quarter for half of the way, large for rubbish; the share
    says how much further to go."""
    volume = texture(24, 16, 16)
    projections = OPERATOR(volume)
    guesses: dict[str, Tensor] = {}
    _, coarse = coarser(projections, OPERATOR)
    interpolated = coarse.interpolate(coarse(volume))
    guesses["truth"] = volume
    guesses["half"] = (volume + interpolated) / 2
    guesses["rubbish"] = torch.rand(volume.shape, generator=torch.Generator().manual_seed(0))
    guesses["opposite"] = 2 * interpolated - volume
    guesses["broken"] = volume * math.nan
    found = {}
    for name, guess in guesses.items():
        monkeypatch.setattr(adaptation_check, "posterior_mean", lambda *a, g=guess, **k: g)
        found[name] = check_along_z(Denoiser(TINY), projections, OPERATOR, 0.0)
    assert found["truth"].error < 1e-6 and found["truth"].share == pytest.approx(1, abs=1e-4)
    assert found["half"].error == pytest.approx(0.25, rel=1e-3)
    assert found["half"].share == pytest.approx(2, rel=1e-3)
    assert found["rubbish"].error > 1 and found["rubbish"].share < 0.5
    assert found["opposite"].share == pytest.approx(-1, rel=1e-3)
    assert found["broken"].error > 1e5 and found["broken"].share == 0


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_trust_scales_the_change_to_interpolation(factor: float) -> None:
    denoiser, projections = randomised(), OPERATOR(texture(24, 16, 16))
    before = weights_of(denoiser)
    linear = OPERATOR.interpolate(projections)
    whole, part = (
        adaptation_check.posterior_mean(network, projections, OPERATOR) - linear
        for network in (denoiser, trusted(denoiser, factor))
    )
    assert whole.abs().max() > 0.1
    torch.testing.assert_close(part, factor * whole, rtol=0, atol=1e-5)
    assert unchanged(denoiser, before)


# --- sources ---


def test_cubic_voxels_are_taken_as_they_are() -> None:
    volume = texture(20, 24, 28)
    for size in (None, (2.0, 2.0, 2.0), (1.1, 1.0, 1.0)):
        sources = lateral_sources(volume, size)
        assert [source.depth_axes for source in sources] == [(1,), (2,)]
        assert all(source.volume is volume for source in sources)


@pytest.mark.parametrize(
    ("size", "shapes"),
    [
        # twice as coarse along z: half as many voxels along the mock depth, twice as many along z
        ((2.0, 1.0, 1.0), [(40, 12, 28), (40, 24, 14)]),
        ((0.5, 1.0, 1.0), [(10, 48, 28), (10, 24, 56)]),
        # each lateral axis by its own spacing
        ((2.0, 1.0, 2.0), [(40, 12, 28), (20, 24, 28)]),
    ],
)
def test_other_voxels_are_resampled(
    size: tuple[float, float, float], shapes: list[tuple[int, int, int]]
) -> None:
    sources = lateral_sources(texture(20, 24, 28), size)
    assert [tuple(source.volume.shape) for source in sources] == shapes
    assert [source.depth_axes for source in sources] == [(1,), (2,)]


@pytest.mark.parametrize("aspect", [0.5, 1.5, 2.0])
def test_resampling_keeps_places_and_intensities(aspect: float) -> None:
    """A ramp along y stays the same ramp in micrometres, away from the ends."""
    ramp = (torch.arange(48) / 48)[None, :, None].expand(12, -1, 10).contiguous()
    resampled = lateral_sources(ramp, (aspect, 1.0, 1.0))[0].volume
    count = resampled.shape[1]
    centres = (torch.arange(count) + 0.5) * (48 / count) - 0.5
    inner = slice(4, -4)
    got = resampled[resampled.shape[0] // 2, inner, 5]
    torch.testing.assert_close(got, (centres / 48)[inner], rtol=0, atol=1e-3)


# --- self-training ---


def test_self_training_changes_a_copy_and_is_seeded() -> None:
    denoiser = randomised()
    before = weights_of(denoiser)
    sources = [Source(texture(24, 24, 24), (1,))]
    trained = [
        self_train(denoiser, sources, [OPERATOR], (0.0, 1.0), options=QUICK, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert unchanged(denoiser, before)
    assert not unchanged(trained[0], before)
    assert unchanged(trained[1], weights_of(trained[0]))
    assert not unchanged(trained[2], weights_of(trained[0]))
    assert not trained[0].training


@pytest.mark.parametrize(
    "weights", [None, [0.1, 0.15, 0.25, 0.25, 0.15, 0.1], [0.4, 0.3, 0.15, 0.1, 0.03, 0.02]]
)
@pytest.mark.parametrize("stride", [4, 6, 7])
def test_every_acquisition_can_be_trained_with(weights: list[float] | None, stride: int) -> None:
    operator = AxialProjection(4 * stride + 6, 6, stride=stride, weights=weights)
    projections = operator(texture(operator.depth, 32, 32))
    result = adapt(randomised(), projections, operator, options=QUICK, axial_blur=1.0)
    assert "skipped" not in result.evidence
    errors = result.evidence["error"]
    assert all(math.isfinite(error) for error in errors.values())


def test_self_training_learns() -> None:
    """From interpolation towards the volume, on the very stack, by the check along z."""
    operator = AxialProjection(48, 6)
    projections = operator(torch.from_numpy(simulate_volume("vessels", (48, 48, 48), seed=3)))
    torch.manual_seed(0)
    fresh = Denoiser(TINY).eval()
    options = AdaptOptions(steps=60, windows=4, size=24, learning_rate=8e-3, coarse=0.9)
    result = adapt(fresh, projections, operator, axial_blur=0.0, options=options)
    assert result.accepted
    assert result.evidence["error"]["as shipped"] == pytest.approx(1.0, abs=1e-3)
    assert result.evidence["error"]["adapted"] < 0.96
    assert result.denoiser is not fresh


# --- adapt ---


def test_a_harmful_candidate_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = Denoiser(TINY).eval()
    monkeypatch.setattr(adaptation, "self_train", lambda *a, **k: randomised(3))
    projections = OPERATOR(texture(24, 32, 32))
    result = adapt(denoiser, projections, OPERATOR, options=QUICK)
    assert result.accepted is False
    assert result.denoiser is denoiser
    errors = result.evidence["error"]
    assert errors["adapted"] > errors["as shipped"]
    assert result.evidence["trust"] == 1


@pytest.mark.parametrize(
    ("options", "share", "steps"),
    [
        (None, DOUBT * FULL_TRUST + 0.01, 0),
        (None, DOUBT * FULL_TRUST - 0.01, STEPS),
        (AdaptOptions(steps=7), 1.0, 7),
        (AdaptOptions(steps=0), 0.1, 0),
    ],
)
def test_training_is_for_stacks_that_need_it(
    options: AdaptOptions | None, share: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless its steps are given: then it is done, and checked, all the same."""
    trained: list[int] = []

    def train(network: Denoiser, *_: Any, options: AdaptOptions, **__: Any) -> Denoiser:
        trained.append(STEPS if options.steps is None else options.steps)
        return randomised(1)

    monkeypatch.setattr(adaptation, "self_train", train)
    for name in ("check_along_z", "check_laterally"):
        monkeypatch.setattr(adaptation, name, lambda *a: Check(0.9, share))
    adapt(Denoiser(TINY).eval(), OPERATOR(texture(24, 32, 32)), OPERATOR, options=options)
    assert sum(trained) == steps


@pytest.mark.parametrize("share", [1.3, FULL_TRUST, 0.5 * FULL_TRUST])
def test_the_winner_is_trusted_as_far_as_the_check_says(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, projections = randomised(), OPERATOR(texture(24, 32, 32))
    for name in ("check_along_z", "check_laterally"):
        monkeypatch.setattr(adaptation, name, lambda *a: Check(0.7, share))
    result = adapt(denoiser, projections, OPERATOR, train=False)
    assert result.evidence["trust"] == pytest.approx(min(1, share / FULL_TRUST))
    assert (result.denoiser is denoiser) == (share >= FULL_TRUST)
    weight, shipped = (n.head.conv_out.weight for n in (result.denoiser, denoiser))
    torch.testing.assert_close(weight, shipped * min(1, share / FULL_TRUST))


def test_a_diverged_candidate_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, broken = Denoiser(TINY).eval(), randomised()
    with torch.no_grad():
        broken.head.conv_out.weight.fill_(float("nan"))
    monkeypatch.setattr(adaptation, "self_train", lambda *a, **k: broken)
    result = adapt(denoiser, OPERATOR(texture(24, 32, 32)), OPERATOR, options=QUICK)
    assert result.accepted is False and result.denoiser is denoiser


@pytest.mark.parametrize(("stated", "used"), [(None, ASSUMED_BLUR), (0.0, 0.0), (2.2, 2.2)])
def test_training_and_check_know_the_blur(
    stated: float | None, used: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown blur is trained over a range and checked at the assumed one."""
    denoiser, better = Denoiser(TINY).eval(), randomised()
    trained: list[Any] = []
    checked: list[float] = []

    def train(network: Denoiser, sources: Any, operators: Any, blurs: Any, **_: Any) -> Denoiser:
        trained.append(tuple(blurs))
        return better

    def check(network: Denoiser, projections: Tensor, operator: Any, blur: float) -> Check:
        checked.append(blur)
        return Check(0.5 if network is better else 0.6, 1.0)

    monkeypatch.setattr(adaptation, "self_train", train)
    monkeypatch.setattr(adaptation, "check_along_z", check)
    projections = OPERATOR(texture(24, 32, 32))
    result = adapt(denoiser, projections, OPERATOR, axial_blur=stated, options=QUICK)
    assert result.accepted and result.denoiser is better and result.axial_blur == used
    assert trained == [BLURS if stated is None else (used,)] and checked == [used, used]


@pytest.mark.parametrize(("along_z", "lateral", "trust"), [(0.1, 2.0, 1.0), (0.45, 0.1, 0.5)])
def test_distrust_needs_two_witnesses(
    along_z: float, lateral: float, trust: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "check_along_z", lambda *a: Check(1.2, along_z))
    monkeypatch.setattr(adaptation, "check_laterally", lambda *a: Check(1.2, lateral))
    projections = OPERATOR(texture(24, 32, 32))
    result = adapt(randomised(), projections, OPERATOR, train=False)
    assert result.evidence["trust"] == pytest.approx(trust)


@pytest.mark.parametrize("stride", [5, 6, 7])
def test_the_lateral_check_tells_good_from_bad(
    stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = texture(24, 40, 32)
    operator = AxialProjection(24, 6, stride=stride)
    source = Source(volume, (1,))
    fresh = check_laterally(Denoiser(TINY).eval(), source, operator, 1.0)
    assert fresh.error == pytest.approx(1, rel=1e-4)
    truth = volume.movedim(1, 0)
    monkeypatch.setattr(adaptation_check, "posterior_mean", lambda *a, **k: truth)
    found = check_laterally(Denoiser(TINY), source, operator, 0.0)
    assert found.error < 1e-6 and found.share == pytest.approx(1, abs=1e-4)


def test_what_loses_to_interpolation_becomes_interpolation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harmful = randomised(3)
    projections = OPERATOR(texture(24, 32, 32))
    with torch.no_grad():
        harmful.head.conv_out.weight.fill_(float("nan"))
    result = adapt(harmful, projections, OPERATOR, train=False)
    assert not result.accepted and result.evidence["fallback"] == "interpolation"
    restored = check_along_z(result.denoiser, projections, OPERATOR, 0.0)
    assert restored.error == pytest.approx(1, abs=1e-4)


def test_the_check_looks_where_something_changes() -> None:
    images = torch.zeros(4, 200, 180)
    images[::2, 120:160, 100:140] = 1.0
    seen = adaptation_check.liveliest(images, 96)
    assert seen.shape == (4, 96, 96) and float(seen[0].sum()) == 1600
    whole = adaptation_check.liveliest(images[:, :50, :60], 96)
    assert whole.shape == (4, 50, 60)


def test_without_training_the_weights_are_only_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> Denoiser:
        raise AssertionError("trained")

    monkeypatch.setattr(adaptation, "self_train", never)
    denoiser = Denoiser(TINY).eval()
    projections = OPERATOR(texture(24, 32, 32))
    for options, train in ((AdaptOptions(), False), (AdaptOptions(steps=0), True)):
        result = adapt(denoiser, projections, OPERATOR, train=train, options=options)
        assert result.denoiser is denoiser and not result.accepted
        assert set(result.evidence["error"]) == {"as shipped"}
        assert result.axial_blur == ASSUMED_BLUR


def test_a_known_blur_is_used() -> None:
    denoiser, projections = Denoiser(TINY).eval(), OPERATOR(texture(24, 32, 32))
    result = adapt(denoiser, projections, OPERATOR, axial_blur=2.2, options=QUICK)
    assert result.axial_blur == 2.2


@pytest.mark.parametrize(
    ("operator", "size", "reason"),
    [
        pytest.param(AxialProjection(18, 6), 32, "4 projections", id="three projections"),
        pytest.param(OPERATOR, 20, "24 voxels", id="narrow"),
    ],
)
@pytest.mark.parametrize("blur", [None, 0.7])
def test_stacks_that_cannot_teach_are_skipped(
    operator: AxialProjection, size: int, reason: str, blur: float | None
) -> None:
    denoiser = randomised()
    before = weights_of(denoiser)
    projections = operator(texture(operator.depth, size, 40))
    result = adapt(denoiser, projections, operator, axial_blur=blur, options=QUICK)
    assert reason in result.evidence["skipped"]
    assert result.denoiser is denoiser and unchanged(denoiser, before)
    assert not result.accepted and result.axial_blur == (ASSUMED_BLUR if blur is None else blur)


def test_noise_is_not_taken_for_structure() -> None:
    """Neither check could tell noise that nobody can predict from detail that was missed."""
    generator = torch.Generator().manual_seed(0)
    projections = OPERATOR(texture(24, 32, 32))
    noise = torch.randn(projections.shape, generator=generator)

    def evidence(size: float, **options: Any) -> dict[str, Any]:
        recorded = projections + size * noise
        return adapt(randomised(), recorded, OPERATOR, train=False, **options).evidence

    assert "error" in evidence(0.005) and "skipped" not in evidence(0.005)
    assert "noise" in evidence(0.05)["skipped"]
    assert "error" in evidence(0.05, options=QUICK)  # an order


def test_soft_is_usual_where_the_noise_is() -> None:
    generator = torch.Generator().manual_seed(0)
    projections = OPERATOR(texture(24, 32, 32))
    noise = torch.randn(projections.shape, generator=generator)
    sizes = (0.0, 0.005, 0.02, 0.1)
    stacks = [projections + size * noise for size in sizes]
    quiet, noisy = ("hard", False), ("soft", True)
    assert [follow_noise(stack, None) for stack in stacks] == [quiet, quiet, noisy, noisy]
    assert follow_noise(stacks[-1], "hard") == ("hard", True)  # what is asked for, less harmful
    assert follow_noise(stacks[0], "soft") == noisy


@pytest.mark.parametrize("noise", [0.02, 0.05])
@pytest.mark.parametrize("error", [0.0, 0.03, 0.1])
def test_noise_is_weighed_against_the_error_of_the_guess(
    monkeypatch: pytest.MonkeyPatch, noise: float, error: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = 0.5 * torch.ones(36, 64, 64)
    operator = AxialProjection(36, 6)
    wrong = (error * torch.randn(6, 64, 64, generator=generator)).repeat_interleave(6, 0)
    monkeypatch.setattr(adaptation_check, "posterior_mean", lambda *_, **__: truth + wrong)
    recorded = operator(truth) + noise * torch.randn(6, 64, 64, generator=generator)
    found = noise_to_error(randomised(), recorded, operator, 1.5)
    if error:
        assert found == pytest.approx((noise / error) ** 2, rel=0.35)
    else:
        assert found > 5  # next to nothing is taken from the projections


def test_the_given_denoiser_is_left_alone() -> None:
    denoiser = randomised()
    before = weights_of(denoiser)
    adapt(denoiser, OPERATOR(texture(24, 32, 32)), OPERATOR, axial_blur=0.0, options=QUICK)
    assert unchanged(denoiser, before)


@pytest.mark.parametrize(
    "voxel_size", [(2.0, 1.0, 1.0), (0.3, 1.0, 1.0), (0.2, 1.0, 1.0), (0.02, 1.0, 1.0)]
)
def test_anisotropic_stacks(voxel_size: tuple[float, float, float]) -> None:
    """Trained with or skipped with a reason, also where little is left along z."""
    operator = AxialProjection(16, 4)
    projections = operator(texture(16, 48, 48))
    result = adapt(
        randomised(),
        projections,
        operator,
        voxel_size=voxel_size,
        axial_blur=0.0,
        options=QUICK,
    )
    if "skipped" not in result.evidence:
        assert all(math.isfinite(error) for error in result.evidence["error"].values())


def test_adaptation_may_be_cancelled() -> None:
    with pytest.raises(Cancelled, match="^adapt to the stack"):
        adapt(
            randomised(),
            OPERATOR(texture(24, 32, 32)),
            OPERATOR,
            options=QUICK,
            callback=lambda event: event.stage != "adapt to the stack",
        )
