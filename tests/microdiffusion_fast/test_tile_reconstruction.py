"""Tiles equal the whole: against the untiled code, for random cuts, geometries and chains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.small_network import random_network
from microdiffusion_fast.denoiser import Denoiser, DenoiserConfig, load_denoiser
from microdiffusion_fast.estimate import mean_and_deviation, run_chains
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.inference import StackDenoiser, from_network, to_network
from microdiffusion_fast.schedule import make_plan
from microdiffusion_fast.tile_reconstruction import TileRecipe, reconstruct_tile
from microdiffusion_fast.tiling import Reach, TilePlan, plan_tiles

# The default depth, because the halo is stated for it; narrow, for speed.
NARROW = DenoiserConfig(encoder_widths=(8, 8, 8), head_width=8, embedding=16)
TOLERANCE = 1e-5  # of the intensity range


def randomised(config: DenoiserConfig = NARROW) -> Denoiser:
    """A network none of whose layers is zero, large enough that the rim of its field shows."""
    return random_network(torch.Generator().manual_seed(0), config, gain=1.5).eval()


def stack_of(operator: AxialProjection, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    volume = torch.rand(operator.depth, height, width, generator=generator)
    return 300 + 1700 * operator(volume)


def recipe_of(
    operator: AxialProjection,
    images: Tensor,
    *,
    denoiser: Denoiser,
    steps: int | None = None,
    chains: int = 0,
    consistency: Literal["hard", "soft", "off"] = "hard",
    guidance: float = 0.0,
    sampler: Literal["ddim", "ddpm", "dpm++"] = "ddim",
    floor: float | None = None,
) -> TileRecipe:
    def plan(length: int) -> Any:
        return make_plan(
            length, sampler=sampler, gamma=0.1, guidance=guidance, consistency=consistency,
            noise_to_signal=0.1 if consistency == "soft" else None,
        )  # fmt: skip

    return TileRecipe(
        denoiser=denoiser,
        operator=operator,
        shape=(operator.depth, *images.shape[1:]),
        intensity=(float(images.min()), float(images.max())),
        mean=plan(1) if steps is None else None,
        chain=plan(steps or 2),
        chains=chains if steps is None else max(chains, 1),
        axial_blur=1.5,
        hard=consistency == "hard",
        seed=5,
        batch=8,
        floor=floor,
    )


def untiled(recipe: TileRecipe, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """As `reconstruct` does it, with the same prior."""
    operator, (low, high) = recipe.operator, recipe.intensity
    scaled = (images - low) / (high - low)
    prior = operator.interpolate(scaled)
    if recipe.hard:
        prior = operator.consistent(prior, scaled)
    denoise = StackDenoiser(
        recipe.denoiser,
        scaled,
        operator,
        axial_blur=recipe.axial_blur,
        guided=recipe.guided,
        both_ways=True,
    )

    def draw(plan: Any, count: int) -> tuple[Tensor | None, Tensor | None]:
        return mean_and_deviation(
            run_chains(
                denoise, to_network(prior), plan, operator=operator,
                projections=to_network(scaled), count=count, seed=recipe.seed, cuda_graph=False,
                advance=lambda done: None,
            )
        )  # fmt: skip

    volume, deviation = draw(recipe.chain, recipe.chains)
    if recipe.mean is not None:
        volume, _ = draw(recipe.mean, 1)
    assert volume is not None
    scale = high - low
    if recipe.floor is not None:
        assert denoise.deviation is not None
        deviation = denoise.deviation.square().add(recipe.floor**2).sqrt()
    return from_network(volume) * scale + low, None if deviation is None else deviation / 2 * scale


def tiled(plan: TilePlan, recipe: TileRecipe, images: Tensor) -> tuple[Tensor, Tensor]:
    volume, deviation = (torch.full(recipe.shape, torch.nan) for _ in range(2))
    for tile in plan:
        core, spread = reconstruct_tile(tile, images[tile.read.slices].clone(), recipe)
        volume[tile.core.slices] = core
        if spread is not None:
            deviation[tile.core.slices] = spread
    return volume, deviation


def largest_error(recipe: TileRecipe, got: Tensor, expected: Tensor) -> float:
    low, high = recipe.intensity
    return float((got - expected).abs().max()) / (high - low)


@st.composite
def operators(draw: st.DrawFn) -> AxialProjection:
    step_length = draw(st.integers(2, 7))
    stride = draw(st.one_of(st.just(step_length), st.integers(2, 9)))
    count, start = draw(st.integers(2, 5)), draw(st.integers(0, 7))
    depth = start + (count - 1) * stride + step_length + draw(st.integers(0, stride - 1))
    taps = draw(
        st.one_of(
            st.just([1.0] * step_length),
            st.lists(st.integers(0, 5), min_size=step_length, max_size=step_length).filter(any),
        )
    )
    weights = [tap / sum(taps) for tap in taps]
    return AxialProjection(depth, step_length, stride=stride, weights=weights, start=start)


@settings(max_examples=20)
@given(st.data())
def test_any_tiling_equals_the_whole(data: st.DataObject) -> None:
    """Random cuts, odd sizes, step lengths, gaps, overlaps, weights; the mean and chains; what is
    stated of the error beside the volume."""
    operator = data.draw(operators())
    height, width = data.draw(st.integers(8, 110)), data.draw(st.integers(8, 30))
    images = stack_of(operator, height, width, seed=data.draw(st.integers(0, 99)))
    recipe = recipe_of(
        operator,
        images,
        denoiser=randomised(),
        steps=(steps := data.draw(st.sampled_from([None, None, 1, 2, 3]))),
        consistency=data.draw(st.sampled_from(["hard", "hard", "soft", "off"])),
        guidance=data.draw(st.sampled_from([0.0, 0.0, 1.5])),
        floor=data.draw(st.sampled_from([None, 0.0, 0.2])) if steps in (None, 1) else None,
    )
    plan = plan_tiles(
        recipe.shape,
        recipe.windows,
        recipe.reach,
        shards=(data.draw(st.integers(1, 12)), data.draw(st.integers(5, 24)), 14),
        core=(data.draw(st.integers(5, 30)), data.draw(st.integers(30, 90)), 28),
    )
    expected, stated = untiled(recipe, images)
    got, deviation = tiled(plan, recipe, images)
    assert largest_error(recipe, got, expected) <= TOLERANCE
    assert (stated is not None) == (recipe.floor is not None)
    if stated is not None:
        assert largest_error(recipe, deviation, stated) <= TOLERANCE


def test_wide_images_are_cut_within_the_halo() -> None:
    """Tiles far from every border, in both directions, with chains and their deviation."""
    operator = AxialProjection(13, 5, start=3)
    images = stack_of(operator, 148, 116, seed=1)
    recipe = recipe_of(operator, images, denoiser=randomised(), chains=2)
    plan = plan_tiles(
        recipe.shape, recipe.windows, recipe.reach, shards=(10, 20, 12), core=(20, 80, 24)
    )
    assert any(tile.read.y.start > 0 and tile.read.x.stop < 116 for tile in plan)
    expected, expected_deviation = untiled(recipe, images)
    got, deviation = tiled(plan, recipe, images)
    assert expected_deviation is not None
    assert largest_error(recipe, got, expected) <= TOLERANCE
    assert largest_error(recipe, deviation, expected_deviation) <= TOLERANCE


@pytest.mark.parametrize("fault", ["halo", "step"])
def test_less_than_the_stated_reach_would_show(fault: str) -> None:
    """The halos are no idle ones: with a part of one the tiles differ from the whole."""
    operator = AxialProjection(36, 6)
    images = stack_of(operator, 150, 24, seed=2)
    denoiser = randomised(replace(NARROW, quarter_blocks=2, head_blocks=3))
    recipe = recipe_of(operator, images, denoiser=denoiser, steps=2)
    reach = recipe.reach
    short: dict[str, Reach] = {
        "halo": replace(reach, halo=12),
        "step": replace(reach, step=1),
    }
    cut: dict[str, Any] = {"shards": (6, 32, 24), "core": (6, 32, 24)}
    expected, _ = untiled(recipe, images)
    got, _ = tiled(plan_tiles(recipe.shape, recipe.windows, short[fault], **cut), recipe, images)
    assert largest_error(recipe, got, expected) > 10 * TOLERANCE


def test_in_bfloat16_tiles_differ_less_than_it_rounds() -> None:
    """A value that bfloat16 rounds one way in a tile may be rounded the other way in the whole: few
    voxels differ, none by more than a fraction of what bfloat16 itself costs."""
    operator = AxialProjection(12, 6)
    images = stack_of(operator, 88, 80, seed=0)
    recipe = recipe_of(operator, images, denoiser=randomised())
    plan = plan_tiles(
        recipe.shape, recipe.windows, recipe.reach, shards=(6, 24, 40), core=(6, 24, 40)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, _ = untiled(recipe, images)
        got, _ = tiled(plan, recipe, images)
    exact, _ = untiled(recipe, images)
    rounding = largest_error(recipe, whole, exact)
    assert rounding > 1e-3  # it was bfloat16
    assert largest_error(recipe, got, whole) <= min(5e-3, rounding / 4)
    low, high = recipe.intensity
    assert float((got - whole).square().mean().sqrt()) <= 1e-4 * (high - low)


def test_the_shipped_network() -> None:
    operator = AxialProjection(24, 6)
    images = stack_of(operator, 132, 24, seed=3)
    recipe = recipe_of(operator, images, denoiser=load_denoiser())
    plan = plan_tiles(
        recipe.shape, recipe.windows, recipe.reach, shards=(6, 16, 24), core=(12, 48, 24)
    )
    expected, _ = untiled(recipe, images)
    got, _ = tiled(plan, recipe, images)
    assert largest_error(recipe, got, expected) <= TOLERANCE


def test_the_projections_of_the_tiles_are_the_measured_ones() -> None:
    operator = AxialProjection(30, 6)
    images = stack_of(operator, 40, 24, seed=4)
    recipe = recipe_of(operator, images, denoiser=randomised())
    plan = plan_tiles(recipe.shape, recipe.windows, recipe.reach, shards=(4, 8, 8), core=(4, 8, 24))
    got, _ = tiled(plan, recipe, images)  # cores cut windows here
    assert largest_error(recipe, operator(got), images) <= TOLERANCE
