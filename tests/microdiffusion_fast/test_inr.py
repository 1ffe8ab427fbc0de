"""The INR: it fits the projections, hears nothing but them, and stops at their noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.inr import HashGridINR, INROptions, estimate_noise, fit_inr
from microdiffusion_fast.progress import Cancelled, ProgressEvent

SHAPE = (24, 24, 28)
QUICK = INROptions(levels=4, features=2, log2_hashmap_size=14, width=16, steps=80, tile=24)


def phantom() -> Tensor:
    """Soft balls at random places, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    axes = [torch.arange(n) for n in SHAPE]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    volume = torch.zeros(SHAPE)
    for _ in range(8):
        cz, cy, cx = (torch.rand(3, generator=generator) * torch.tensor(SHAPE)).tolist()
        distance = (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2
        volume = torch.maximum(volume, torch.exp(-distance / 18))
    return volume


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


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
    """Its projections come closer to the data than those of linear interpolation."""
    projections = operator(phantom())
    inr = fit_inr(projections, operator, options=QUICK)
    volume = inr.render()
    assert volume.shape == SHAPE
    misfit = rms(operator(volume) - projections)
    interpolated = rms(operator(operator.interpolate(projections)) - projections)
    assert misfit < 0.25 * rms(projections - projections.mean())
    assert misfit < interpolated


def test_fits_a_stack_narrower_than_a_tile() -> None:
    operator = AxialProjection(24, 6)
    projections = operator(phantom())[:, :9, :11]
    volume = fit_inr(projections, operator, options=QUICK).render()
    assert volume.shape == (24, 9, 11)
    assert rms(operator(volume) - projections) < 0.5 * rms(projections - projections.mean())


def test_seeds() -> None:
    operator = AxialProjection(24, 6)
    projections = operator(phantom())
    options = INROptions(levels=3, features=2, log2_hashmap_size=12, width=8, steps=5, tile=16)
    volumes = [
        fit_inr(projections, operator, options=options, seed=seed).render() for seed in (1, 1, 2)
    ]
    assert torch.equal(volumes[0], volumes[1])
    assert not torch.equal(volumes[0], volumes[2])


def test_render_equals_forward() -> None:
    inr = HashGridINR(SHAPE, 6.0, QUICK)
    inr.initialise(0.3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        inr.table.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
        whole = inr(slice(None), slice(None))
        patch = inr(slice(5, 9), slice(2, 20))
    for rows_at_once in (1, 7, 16, 100):
        rendered = inr.render(rows_at_once)
        assert not rendered.requires_grad
        torch.testing.assert_close(rendered, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(patch, whole[:, 5:9, 2:20], rtol=0, atol=1e-5)
    assert float(whole.std()) > 1e-3


def test_the_parts_of_the_mlp_make_one_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    inr = HashGridINR(SHAPE, 6.0, QUICK)
    inr.initialise(0.3, torch.Generator().manual_seed(0))
    whole = inr(slice(2, 9), slice(3, 17))
    monkeypatch.setattr(HashGridINR, "VOXELS_AT_ONCE", 100)
    torch.testing.assert_close(inr(slice(2, 9), slice(3, 17)), whole, rtol=0, atol=1e-6)


def test_starts_at_the_mean() -> None:
    inr = HashGridINR(SHAPE, 6.0, QUICK)
    inr.initialise(0.37, torch.Generator().manual_seed(0))
    assert float((inr.render() - 0.37).abs().max()) < 0.01


@pytest.mark.parametrize(("shape", "cell"), [((24, 24, 28), 6.0), ((200, 8, 8), 2.0)])
def test_cells_are_as_long_as_the_slab(shape: tuple[int, int, int], cell: float) -> None:
    """A slab is as long in the grid's coordinates as a pixel is wide, and all lies in [0, 1]."""
    inr = HashGridINR(shape, cell, QUICK)
    z, y, x = inr.axes
    assert float((z[1] - z[0]) * cell) == pytest.approx(float(y[1] - y[0]))
    assert float(y[1] - y[0]) == pytest.approx(float(x[1] - x[0]))
    assert all(0 < float(axis[0]) and float(axis[-1]) < 1 for axis in (z, y, x))
    finest = inr.spec.resolution(inr.spec.n_levels - 1)
    longest = max(shape[1], shape[2], shape[0] / cell)
    assert longest <= finest <= longest + 2


def test_stops_at_the_noise() -> None:
    """Pure noise is not fitted: the mean is as close as the noise lets it be."""
    operator = AxialProjection(24, 6)
    generator = torch.Generator().manual_seed(2)
    projections = 0.5 + 0.1 * torch.randn((4, 24, 24), generator=generator)
    seen: list[ProgressEvent] = []
    inr = fit_inr(
        projections,
        operator,
        options=QUICK,
        callback=lambda event: seen.append(event),
    )
    assert len(seen) < QUICK.steps
    assert rms(inr.render() - 0.5) < 0.1


def test_may_be_cancelled() -> None:
    operator = AxialProjection(24, 6)
    with pytest.raises(Cancelled, match="^fit INR"):
        fit_inr(operator(phantom()), operator, options=QUICK, callback=lambda event: event.done < 3)


@pytest.mark.parametrize(
    "name", ["levels", "features", "log2_hashmap_size", "width", "steps", "tile"]
)
def test_options_are_checked(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(InputError, match=f"^inr {name}: expected an integer of at least 1, got 0"):
        INROptions(**options)


# --- noise ---


@pytest.mark.parametrize("sigma", [0.005, 0.05, 3.0])
def test_noise_is_estimated(sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + sigma * torch.randn((4, 64, 64), generator=generator)
    assert estimate_noise(images) == pytest.approx(sigma, rel=0.1)


def test_noise_is_estimated_under_structure() -> None:
    generator = torch.Generator().manual_seed(0)
    operator = AxialProjection(24, 6)
    clean = operator(phantom())
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=generator)
    assert estimate_noise(noisy) == pytest.approx(0.05, rel=0.15)


def test_smooth_images_have_no_noise() -> None:
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    plane = (0.01 * rows + 0.02 * columns)[None].expand(3, -1, -1)
    assert estimate_noise(plane) < 1e-6
    waves = 0.5 + 0.5 * torch.sin(rows / 12) * torch.cos(columns / 10)
    assert estimate_noise(waves[None]) < 1e-4
    assert estimate_noise(torch.rand(2, 2, 64)) == 0.0  # too narrow to tell
