"""The denoiser on a stack: which window and position each slice gets, batches, guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.small_network import random_network
from microdiffusion_fast.denoiser import Denoiser, DenoiserConfig
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.inference import (
    StackDenoiser,
    from_network,
    posterior_mean,
    to_network,
)
from microdiffusion_fast.schedule import NoiseLevel

TINY = DenoiserConfig(encoder_widths=(8, 8, 8), head_width=8, head_blocks=1, embedding=16)
LEVEL = NoiseLevel(0.6, 0.8, 0.1)


def randomised(seed: int = 0) -> Denoiser:
    """A network none of whose layers is zero, as after training."""
    return random_network(torch.Generator().manual_seed(seed), TINY)


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def bind(
    denoiser: Denoiser, operator: AxialProjection, size: int = 8, **options: Any
) -> StackDenoiser:
    stack = uniform(operator.count, size, size)
    return StackDenoiser(denoiser, stack, operator, **options)


@pytest.mark.parametrize(
    ("operator", "windows", "positions"),
    [
        pytest.param(
            AxialProjection(7, 3),
            [0, 0, 0, 1, 1, 1, 1],
            [-1, 0, 1, -1, 0, 1, 2],
            id="disjoint, a slice left over",
        ),
        pytest.param(
            AxialProjection(9, 5, stride=2),
            [0, 0, 0, 0, 1, 1, 2, 2, 2],
            [-2, -1, 0, 1, 0, 1, 0, 1, 2],
            id="overlapping; of two as near, the earlier",
        ),
        pytest.param(
            AxialProjection(11, 2, stride=4, start=1),
            [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2],
            [-1.5, -0.5, 0.5, 1.5, -1.5, -0.5, 0.5, 1.5, -1.5, -0.5, 0.5],
            id="gaps and a late start",
        ),
        pytest.param(
            AxialProjection(4, 2, weights=[0.75, 0.25]),
            [0, 0, 1, 1],
            [-0.25, 0.75, -0.25, 0.75],
            id="the weighted centre",
        ),
    ],
)
def test_windows_and_positions(
    operator: AxialProjection, windows: list[int], positions: list[float]
) -> None:
    stack = bind(Denoiser(TINY), operator)
    assert stack.window.tolist() == windows
    assert stack.position.tolist() == positions


@given(
    s=st.integers(2, 6),
    stride=st.integers(1, 8),
    start=st.integers(0, 3),
    count=st.integers(1, 4),
    after=st.integers(0, 5),
)
def test_every_slice_gets_the_nearest_window(
    s: int, stride: int, start: int, count: int, after: int
) -> None:
    depth = start + (count - 1) * stride + s + after
    operator = AxialProjection(depth, s, stride=stride, start=start, count=count)
    stack = bind(Denoiser(TINY), operator, size=4)
    distances = torch.arange(depth)[:, None] - operator.centres[None, :]
    torch.testing.assert_close(stack.position.abs().double(), distances.abs().amin(1))
    chosen = distances.gather(1, stack.window[:, None])[:, 0]
    torch.testing.assert_close(stack.position.double(), chosen)


def test_the_network_is_told_the_acquisition() -> None:
    weights = [0.1, 0.2, 0.4, 0.2, 0.1]
    stack = bind(Denoiser(TINY), AxialProjection(20, 5, stride=4, weights=weights), axial_blur=1.5)
    assert stack.geometry[:3] == (5, 4, 1.5)
    assert stack.geometry.spread == pytest.approx((1.2 / 2) ** 0.5)  # variance 1.2, uniform 2


def test_the_batch_changes_nothing() -> None:
    operator = AxialProjection(14, 6, stride=4)
    denoiser = randomised()
    x = uniform(14, 12, 12, seed=2) * 2 - 1
    results = [bind(denoiser, operator, 12, batch=batch)(x, 0, LEVEL) for batch in (1, 3, 8, 99)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-5)
    assert isinstance(results[0], Tensor)
    assert not torch.allclose(results[0], bind(denoiser, operator, 12).base, atol=1e-2)


def test_each_slice_goes_through_the_network_as_it_should() -> None:
    """Against one plain call per slice: neighbours, ends repeated, window, position, level."""
    operator = AxialProjection(9, 3, stride=3)
    denoiser = randomised()
    projections, x = uniform(3, 8, 8), uniform(9, 8, 8, seed=2)
    stack = StackDenoiser(denoiser, projections, operator, axial_blur=0.5)
    result = stack(x, 0, LEVEL)
    base = 2 * operator.interpolate(projections) - 1
    with torch.no_grad():
        features = denoiser.encode(2 * projections - 1, stack.geometry)
        for z in range(9):
            near = [max(z - 1, 0), z, min(z + 1, 8)]
            expected, doubt = denoiser.denoise(
                features[z // 3][None],
                x[near][None],
                base[near][None],
                base[z][None],
                torch.tensor([z % 3 - 1.0]),
                stack.geometry,
                torch.tensor([LEVEL]),
            )
            torch.testing.assert_close(result[z], expected[0], rtol=0, atol=1e-5)
            assert stack.deviation is not None
            torch.testing.assert_close(stack.deviation[z], doubt[0].exp())


def test_a_slice_of_the_state_is_felt_by_its_neighbours_only() -> None:
    stack = bind(randomised(), AxialProjection(12, 4))
    x = uniform(12, 8, 8, seed=2)
    changed = x.clone()
    changed[6, 4, 4] += 1.0
    before, after = stack(x, 0, LEVEL), stack(changed, 0, LEVEL)
    assert isinstance(before, Tensor) and isinstance(after, Tensor)
    differs = [z for z in range(12) if not torch.equal(before[z], after[z])]
    assert differs == [5, 6, 7]


def test_guided_gives_a_pair() -> None:
    operator = AxialProjection(12, 4)
    denoiser = randomised()
    x = uniform(12, 8, 8, seed=2)
    plain = bind(denoiser, operator)
    guided = bind(denoiser, operator, guided=True)
    pair = guided(x, 0, LEVEL)
    assert isinstance(pair, tuple)
    conditional, unconditional = pair
    single = plain(x, 0, LEVEL)
    assert isinstance(single, Tensor)
    assert torch.equal(conditional, single)
    assert not torch.allclose(conditional, unconditional, atol=1e-3)
    # the unconditional branch is the network without the features, as dropout trained it
    plain.features = {1: torch.zeros_like(plain.features[1])}
    without = plain(x, 0, LEVEL)
    assert isinstance(without, Tensor)
    torch.testing.assert_close(unconditional, without, rtol=0, atol=1e-6)


def test_no_gradients_are_kept() -> None:
    stack = bind(randomised(), AxialProjection(8, 4))
    result = stack(uniform(8, 8, 8), 0, LEVEL)
    assert isinstance(result, Tensor)
    assert not result.requires_grad and not stack.features[1].requires_grad


def test_network_units() -> None:
    x = torch.tensor([0.0, 0.25, 1.0])
    assert to_network(x).tolist() == [-1.0, -0.5, 1.0]
    assert torch.equal(from_network(to_network(x)), x)


def test_posterior_mean_of_a_fresh_network_is_interpolation() -> None:
    operator = AxialProjection(13, 6, stride=3)
    projections = uniform(operator.count, 8, 8)
    mean = posterior_mean(Denoiser(TINY), projections, operator)
    torch.testing.assert_close(mean, operator.interpolate(projections), rtol=0, atol=1e-6)


def test_posterior_mean_is_reproducible_and_hears_of_the_blur() -> None:
    operator = AxialProjection(12, 4)
    projections = uniform(3, 8, 8)
    denoiser = randomised()
    state = torch.get_rng_state()
    first, second = (posterior_mean(denoiser, projections, operator) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)  # the user's own randomness is left alone
    softer = posterior_mean(denoiser, projections, operator, axial_blur=2.0)
    assert not torch.allclose(first, softer)


@pytest.mark.parametrize(
    "operator",
    [
        pytest.param(AxialProjection(15, 3), id="disjoint"),
        pytest.param(AxialProjection(14, 5, stride=3), id="overlapping"),
        pytest.param(AxialProjection(15, 3, weights=[0.25, 0.5, 0.25]), id="bell"),
    ],
)
def test_both_ways_of_a_turned_stack_are_those_of_the_stack(operator: AxialProjection) -> None:
    """A volume upside down has its projections upside down; so has the estimate."""
    denoiser = randomised()
    images, state = uniform(operator.count, 8, 8), uniform(operator.depth, 8, 8, seed=2)
    results = []
    for turned in (False, True):
        stack = images.flip(0) if turned else images
        denoise = StackDenoiser(denoiser, stack, operator, both_ways=True)
        result = denoise(state.flip(0) if turned else state, 0, LEVEL)
        assert isinstance(result, Tensor)
        results.append(result.flip(0) if turned else result)
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)
    once = StackDenoiser(denoiser, images, operator)(state, 0, LEVEL)
    assert isinstance(once, Tensor) and (once - results[0]).abs().max() > 1e-3


def test_skewed_weights_are_seen_one_way_only() -> None:
    operator = AxialProjection(12, 3, weights=[0.6, 0.3, 0.1])
    both, once = (bind(randomised(), operator, both_ways=way) for way in (True, False))
    state = uniform(12, 8, 8)
    assert torch.equal(both(state, 0, LEVEL), once(state, 0, LEVEL))  # type: ignore[arg-type]
