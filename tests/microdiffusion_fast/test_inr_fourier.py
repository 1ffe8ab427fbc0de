"""The paper's INR: its features are those of the formula, however they are arranged."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.inr import FourierINR, FourierOptions, HashGridINR, INROptions, fit_inr
from microdiffusion_fast.progress import Cancelled, ProgressEvent

SHAPE = (24, 20, 28)
ALL = slice(None)
QUICK = FourierOptions(features=64, scale=0.6, width=32, steps=120, voxels=2500, learning_rate=4e-3)


def waves(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """A smooth volume in [0, 1]."""
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return 0.5 + 0.3 * torch.sin(4 * y + 2 * z) * torch.cos(5 * x - z)


def made(shape: tuple[int, int, int] = SHAPE, options: FourierOptions | None = None) -> FourierINR:
    """A seeded INR with contrast at every scale."""
    inr = FourierINR(shape, options or QUICK)
    inr.initialise(0.3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in inr.parameters():
            parameter.mul_(2.0)
    return inr


def coordinates(length: int) -> Tensor:
    """Centres of the voxels of an axis that spans [-1, 1], float64."""
    edges = torch.linspace(-1, 1, length + 1, dtype=torch.float64)
    return (edges[1:] + edges[:-1]) / 2


def reference_features(inr: FourierINR) -> Tensor:
    """cos and sin of 2 pi B v at every voxel, float64 [Z, Y, X, features]."""
    v = torch.stack(torch.meshgrid(*map(coordinates, inr.shape), indexing="ij"), dim=-1)
    phase = 2 * math.pi * v @ inr.frequencies.double().T
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def reference_volume(inr: FourierINR) -> Tensor:
    """The network as published, voxel by voxel in float64: the features enter twice."""
    state = {name: value.double() for name, value in inr.state_dict().items()}

    def layer(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    features = reference_features(inr)
    x = layer("first", features).relu()
    for i in range(3):
        x = layer(f"before.{i}", x).relu()
    weight = torch.cat([state["skip.weight"], state["again.weight"]], dim=1)
    x = (torch.cat([x, features], dim=-1) @ weight.T + state["again.bias"]).relu()
    for i in range(3):
        x = layer(f"after.{i}", x).relu()
    return layer("last", layer("head", x).relu())[..., 0]


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


# --- the function ---


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (7, 33, 2), (130, 3, 5)])
def test_features_are_those_of_the_formula(shape: tuple[int, int, int]) -> None:
    inr = made(shape, FourierOptions(scale=4.0))
    features = inr.features(ALL, ALL)
    assert features.shape == (*shape, 512) and features.dtype == torch.float32
    assert float((features - reference_features(inr)).abs().max()) < 4e-7


def test_features_of_a_part_are_a_part_of_the_features() -> None:
    inr = made()
    rows, columns = slice(3, 17, 4), slice(1, None, 5)
    assert torch.equal(inr.features(rows, columns), inr.features(ALL, ALL)[:, rows, columns])


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (7, 33, 2), (5, 37, 41)])
def test_forward_is_the_network_on_the_features(shape: tuple[int, int, int]) -> None:
    inr = made(shape, FourierOptions(scale=4.0))
    volume, truth = inr(ALL, ALL).detach(), reference_volume(inr)
    assert volume.shape == shape and volume.is_contiguous()
    assert float((volume - truth).abs().max()) < 1e-5 * max(1.0, rms(truth))
    if math.prod(shape) > 1:
        assert float(volume.std()) > 1e-3


def test_in_float64_forward_is_exact() -> None:
    inr = made().double()
    volume = inr(ALL, ALL)
    assert volume.dtype == torch.float64
    torch.testing.assert_close(volume, reference_volume(inr), rtol=0, atol=1e-12)


@pytest.mark.parametrize("voxels", [1, 100, 1 << 20])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_the_parts_make_one_volume(monkeypatch: pytest.MonkeyPatch, rows: int, voxels: int) -> None:
    inr = made()
    columns = slice(2, 20, 3)
    whole = inr(ALL, columns)
    monkeypatch.setattr(FourierINR, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(FourierINR, "VOXELS_AT_ONCE", voxels)
    torch.testing.assert_close(inr(ALL, columns), whole, rtol=0, atol=2e-6)


def test_render_equals_forward() -> None:
    inr = made()
    whole = inr(ALL, ALL)
    for rows_at_once in (1, 7, 16, 100):
        rendered = inr.render(rows_at_once)
        assert not rendered.requires_grad
        torch.testing.assert_close(rendered, whole, rtol=0, atol=2e-6)
    patch = inr(slice(5, 9), slice(2, 20))
    torch.testing.assert_close(patch, whole[:, 5:9, 2:20], rtol=0, atol=2e-6)


def test_gradients_are_those_of_the_network_on_the_features() -> None:
    inr = made().double()
    inr(ALL, slice(0, None, 3)).square().sum().backward()
    found = {name: parameter.grad for name, parameter in inr.named_parameters()}
    inr.zero_grad(set_to_none=True)
    features = inr.features(ALL, slice(0, None, 3)).flatten(0, 2)
    inr._network(inr.first(features), inr.again(features)).square().sum().backward()
    for name, parameter in inr.named_parameters():
        assert found[name] is not None and float(found[name].abs().max()) > 0, name
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-9)
    assert not inr.frequencies.requires_grad


def test_the_shape_of_the_network() -> None:
    """512 features; four layers of 64, four that see the features again, 32, 1."""
    inr = FourierINR(SHAPE)
    first, rest = 512 * 64 + 64, 64 * 64 + 64
    skip = (64 + 512) * 64 + 64
    expected = first + 3 * rest + skip + 3 * rest + (64 * 32 + 32) + (32 + 1)
    assert sum(parameter.numel() for parameter in inr.parameters()) == expected
    assert inr.frequencies.shape == (256, 3)


def test_the_start_is_nearly_the_mean() -> None:
    inr = FourierINR(SHAPE)
    inr.initialise(0.37, torch.Generator().manual_seed(0))
    assert float((inr.render() - 0.37).abs().max()) < 0.05
    assert inr.frequencies.std(dim=0).tolist() == pytest.approx([4.0] * 3, rel=0.15)


# --- the state ---


def test_the_state_restores_the_bits() -> None:
    inr = made()
    other = FourierINR(SHAPE, QUICK)
    other.load_state_dict({name: value.clone() for name, value in inr.state_dict().items()})
    assert torch.equal(other.render(), inr.render())


def test_a_state_of_another_size_is_refused() -> None:
    other = FourierINR(SHAPE, replace(QUICK, features=32))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(made().state_dict())


# --- the columns of a step ---


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (7, 33, 2), (200, 101, 64)])
def test_every_column_is_seen_as_often(shape: tuple[int, int, int]) -> None:
    inr = FourierINR(shape, replace(QUICK, voxels=700))
    _, once = inr.steps()
    rng = np.random.default_rng(0)
    lattices: set[tuple[int, int]] = set()
    seen = torch.zeros(shape[1:])
    while len(lattices) < once:
        rows, columns = inr.choose(rng)
        size = (len(range(shape[1])[rows]), len(range(shape[2])[columns]))
        assert min(size) >= 1 and shape[0] * math.prod(size) <= max(700, shape[0])
        if (rows.start, columns.start) not in lattices:
            seen[rows, columns] += 1
            lattices.add((rows.start, columns.start))
    assert torch.equal(seen, torch.ones_like(seen))


def test_large_images_take_more_steps() -> None:
    assert FourierINR((96, 64, 64)).steps()[0] == FourierOptions().steps
    steps, once = FourierINR((96, 2000, 1000)).steps()
    assert steps == once == 200 * 100


# --- the fit ---


@pytest.mark.parametrize(
    "operator",
    [
        pytest.param(AxialProjection(24, 6), id="disjoint"),
        pytest.param(AxialProjection(24, 6, stride=3), id="overlapping"),
        pytest.param(AxialProjection(24, 3, stride=6), id="gaps"),
        pytest.param(AxialProjection(24, 4, weights=[0.1, 0.4, 0.4, 0.1]), id="weighted"),
    ],
)
def test_fits_the_projections(operator: AxialProjection) -> None:
    projections = operator(waves())
    inr = fit_inr(projections, operator, options=QUICK)
    assert isinstance(inr, FourierINR)
    volume = inr.render()
    assert volume.shape == SHAPE
    assert rms(operator(volume) - projections) < 0.15 * rms(projections - projections.mean())
    assert rms(volume - waves()) < 0.3 * rms(waves() - waves().mean())


def test_fits_down_to_the_noise_and_stops() -> None:
    operator = AxialProjection(24, 6)
    clean = operator(waves())
    noise = 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    seen: list[ProgressEvent] = []
    options = replace(QUICK, steps=1000)
    inr = fit_inr(clean + noise, operator, options=options, callback=lambda e: seen.append(e))
    assert len(seen) < 500
    fitted = operator(inr.render())
    assert rms(fitted - clean - noise) == pytest.approx(0.05, rel=0.15)
    assert rms(fitted - clean) < 0.03


@pytest.mark.parametrize("shape", [(9, 11), (1, 1), (1, 40)])
def test_fits_images_of_any_size(shape: tuple[int, int]) -> None:
    operator = AxialProjection(24, 6)
    projections = operator(waves((24, *shape)))
    volume = fit_inr(projections, operator, options=QUICK).render()
    assert volume.shape == (24, *shape)
    assert rms(operator(volume) - projections) < 0.02


def test_seeds() -> None:
    operator = AxialProjection(24, 6)
    projections = operator(waves())
    options = replace(QUICK, steps=5)
    states = [
        fit_inr(projections, operator, options=options, seed=seed).state_dict()
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_may_be_cancelled() -> None:
    operator = AxialProjection(24, 6)
    with pytest.raises(Cancelled, match="^fit INR"):
        fit_inr(operator(waves()), operator, options=QUICK, callback=lambda event: event.done < 3)


def test_windows_limit_the_frequencies_along_z() -> None:
    """Correlation over a window's spacing at least: depth / (4 pi scale) slices."""
    options = FourierOptions(scale=4.0)
    assert options.resolved(96, 6.0).axial_scale == pytest.approx(96 / (4 * math.pi * 6))
    assert options.resolved(1000, 6.0).axial_scale == 4.0
    assert replace(options, axial_scale=2.5).resolved(96, 6.0).axial_scale == 2.5
    operator = AxialProjection(96, 8, stride=4)
    projections = torch.zeros(operator.count, 3, 3)
    fitted = fit_inr(projections, operator, options=FourierOptions(steps=1))
    spread = fitted.frequencies.std(dim=0).tolist()
    assert spread == pytest.approx([96 / (4 * math.pi * 4), 4.0, 4.0], rel=0.15)


def test_the_options_choose_the_inr() -> None:
    operator = AxialProjection(24, 6)
    projections = operator(waves())
    quick = INROptions(levels=1, steps=1)
    assert isinstance(fit_inr(projections, operator, options=quick), HashGridINR)
    wrong: Any = {"steps": 3}
    with pytest.raises(InputError, match="^options: expected INROptions or FourierOptions, got"):
        fit_inr(projections, operator, options=wrong)


# --- options ---


@pytest.mark.parametrize("name", ["features", "width", "steps", "voxels"])
@pytest.mark.parametrize("value", [0, -2, 2.0, True, "8"])
def test_counts_are_checked(name: str, value: object) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=f"^inr {name}: expected an integer of at least 1"):
        FourierOptions(**options)


@pytest.mark.parametrize("name", ["features", "width"])
def test_halves_are_whole(name: str) -> None:
    options: dict[str, Any] = {name: 7}
    with pytest.raises(InputError, match=f"^inr {name}: expected an even number, got 7"):
        FourierOptions(**options)


@pytest.mark.parametrize("name", ["scale", "axial_scale", "learning_rate"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "4"])
def test_positive_numbers_are_checked(name: str, value: object) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=f"^inr {name}: expected a number above 0"):
        FourierOptions(**options)
