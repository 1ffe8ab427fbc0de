"""The axial blur is estimated for the weights that the regression was fitted to, and no others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from microdiffusion_fast import adaptation_blur
from microdiffusion_fast.adaptation import adapt
from microdiffusion_fast.adaptation_blur import (
    FEWEST,
    MOST,
    STRONGEST,
    TOLD,
    Regression,
    blur_features,
    stack_blur,
)
from microdiffusion_fast.denoiser import Denoiser, load_denoiser, load_for
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.simulate import simulate_volume
from microdiffusion_fast.tensor_files import digest
from microdiffusion_fast.training_data import ASSUMED_BLUR, blur_depth

OPERATOR = AxialProjection(48, 6)


@pytest.fixture(scope="module")
def shipped() -> Denoiser:
    return load_denoiser()


def stack(blur: float, *, seed: int = 77, depth: int = 48) -> Tensor:
    """Projections of simulated vessels that are softer along z, spanning about [0, 1]."""
    volume = torch.from_numpy(simulate_volume("vessels", (depth, 48, 48), seed=seed))
    images = AxialProjection(depth, 6)(blur_depth(volume, blur))
    return (images - images.min()) / (images.max() - images.min())


def test_the_regression_is_that_of_the_shipped_weights(shipped: Denoiser) -> None:
    fitted = adaptation_blur._fitted()
    assert fitted.network == digest(shipped.state_dict())
    numbers = blur_features(shipped, stack(1.0), OPERATOR)
    assert len(fitted.coefficients) == len(numbers) == 3 * len(TOLD) + 5


def test_a_softer_stack_gets_a_larger_blur(shipped: Denoiser) -> None:
    found = [stack_blur(shipped, stack(blur), OPERATOR) for blur in (0.0, 1.5, 3.0)]
    sharp, usual, soft = (value for value in found if value is not None)
    assert 0 <= sharp < usual < soft <= STRONGEST
    assert soft - sharp > 0.5


def test_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logarithms of root mean squares over what there was to add, and the share of `Check`."""
    wanted = torch.full((6, 8, 8), 0.2)

    def halves(d: object, images: Tensor, operator: object, blur: float) -> tuple[Tensor, Tensor]:
        return wanted * (0.5 + blur), wanted

    monkeypatch.setattr(adaptation_blur, "halves_along_z", halves)
    operator = AxialProjection(48, 6, stride=3)
    found = blur_features(Denoiser(), torch.zeros(6, 8, 8), operator)
    expected = [math.log(0.2)]
    for blur in TOLD:
        size = 0.5 + blur
        expected += [math.log(abs(1 - size)), math.log(size), 1 / size]
    expected += [math.log(1e-3), math.log2(6), -1.0, 0.0]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("intercept", "told"),
    [(-50.0, 0.0), (ASSUMED_BLUR, ASSUMED_BLUR), (2.5, 2.25), (50.0, STRONGEST), (math.nan, None)],
)
def test_the_estimate_is_followed_part_of_the_way(
    intercept: float, told: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = Denoiser().eval()
    regression = Regression(digest(denoiser.state_dict()), intercept, (0.0,) * 17)
    monkeypatch.setattr(adaptation_blur, "_fitted", lambda: regression)
    assert stack_blur(denoiser, stack(1.0), OPERATOR) == told


def test_other_weights_few_projections_and_noise_have_no_estimate(shipped: Denoiser) -> None:
    images = stack(1.0)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    few = AxialProjection(6 * (FEWEST - 1), 6)
    assert stack_blur(shipped, images, OPERATOR) is not None
    assert stack_blur(shipped, images + 0.03 * noise, OPERATOR) is None
    assert stack_blur(shipped, images[: FEWEST - 1], few) is None
    assert stack_blur(load_for(noisy=True), images, OPERATOR) is None


def test_of_a_long_stack_the_liveliest_run_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(40, 16, 16)
    images[21:27:2] = 1.0
    looked: list[Tensor] = []

    def features(denoiser: object, seen: Tensor, operator: object) -> list[float]:
        looked.append(seen)
        return [0.0] * 17

    denoiser = Denoiser().eval()
    regression = Regression(digest(denoiser.state_dict()), 1.0, (0.0,) * 17)
    monkeypatch.setattr(adaptation_blur, "_fitted", lambda: regression)
    monkeypatch.setattr(adaptation_blur, "blur_features", features)
    stack_blur(denoiser, images, AxialProjection(240, 6))
    assert len(looked[0]) == MOST and float(looked[0].mean((1, 2)).sum()) == 3


@pytest.mark.parametrize(("stated", "source"), [(None, "estimated"), (1.0, "stated")])
def test_adaptation_says_where_the_blur_is_from(
    stated: float | None, source: str, shipped: Denoiser
) -> None:
    images = stack(2.5)
    result = adapt(shipped, images, OPERATOR, axial_blur=stated, train=False)
    assert result.evidence["blur"] == source
    if stated is None:
        assert result.axial_blur == stack_blur(shipped, images, OPERATOR) != ASSUMED_BLUR
    else:
        assert result.axial_blur == stated
    fresh = adapt(Denoiser().eval(), images, OPERATOR, train=False)
    assert fresh.evidence["blur"] == "assumed" and fresh.axial_blur == ASSUMED_BLUR
