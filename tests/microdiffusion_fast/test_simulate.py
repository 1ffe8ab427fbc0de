"""The simulator: same seed same bits, physics of blur and noise, plausible structures."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.measure import label

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.simulate import (
    KINDS,
    Cells,
    Neurites,
    Noise,
    Nuclei,
    Optics,
    Textures,
    Tissue,
    Vessels,
    random_volume,
    simulate_projections,
    simulate_volume,
)
from microdiffusion_fast.simulation.fields import gaussian_blur, smooth_field
from microdiffusion_fast.simulation.geometry import random_rotations, scattered_points
from microdiffusion_fast.simulation.raster import stamp_balls, stamp_ellipsoids

SHAPE = (32, 48, 56)
SHARP = Optics(psf_sigma=(0, 0, 0), halo=0, background=0)


def moment(volume: NDArray[np.float32], axis: int) -> float:
    """Variance of the light's position along an axis, in voxels squared."""
    others = tuple(a for a in range(3) if a != axis)
    profile = volume.sum(axis=others, dtype=np.float64)
    place = np.arange(volume.shape[axis])
    mean = (profile * place).sum() / profile.sum()
    return float((profile * (place - mean) ** 2).sum() / profile.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_volume_is_finite_in_range_and_seeded(kind: str) -> None:
    volume = simulate_volume(kind, SHAPE, seed=3)
    assert volume.shape == SHAPE
    assert volume.dtype == np.float32
    assert np.isfinite(volume).all()
    assert 0 <= volume.min() < 0.3
    assert 0.9 < volume.max() <= 1
    assert np.array_equal(volume, simulate_volume(kind, SHAPE, seed=3))
    assert not np.array_equal(volume, simulate_volume(kind, SHAPE, seed=4))


@pytest.mark.parametrize("noise", [True, False])
def test_random_volume_is_finite_in_range_and_seeded(noise: bool) -> None:
    for seed in range(12):
        volume = random_volume(seed, SHAPE, noise=noise)
        assert volume.shape == SHAPE
        assert volume.dtype == np.float32
        assert np.isfinite(volume).all()
        assert volume.min() >= 0
        assert volume.max() <= 1
        assert volume.std() > 0.005, "nothing to see"
    assert np.array_equal(volume, random_volume(11, SHAPE, noise=noise))


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    """The numbers come out of single-threaded code alone: no BLAS, no OpenMP."""
    code = (
        "import hashlib\n"
        "from microdiffusion_fast.simulate import random_volume\n"
        "volumes = [random_volume(s, (32, 48, 56)).tobytes() for s in range(6)]\n"
        "print(hashlib.sha256(b''.join(volumes)).hexdigest())\n"
    )
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    digests = set()
    for threads in ("1", "2"):
        env = os.environ | dict.fromkeys(names, threads)
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_random_volumes_differ_widely() -> None:
    volumes = [random_volume(seed, SHAPE) for seed in range(40)]
    medians = np.array([np.median(v) for v in volumes])
    spreads = np.array([v.std() for v in volumes])
    assert np.quantile(medians, 0.9) > 4 * np.quantile(medians, 0.1)
    assert np.quantile(spreads, 0.9) > 2 * np.quantile(spreads, 0.1)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("vessels", 0.005, 0.15), ("neurites", 0.002, 0.1), ("nuclei", 0.02, 0.35)],
)
def test_foreground_fraction_is_that_of_the_kind(kind: str, low: float, high: float) -> None:
    for seed in range(4):
        bright = simulate_volume(kind, (48, 64, 64), seed=seed, optics=SHARP) > 0.2
        assert low < bright.mean() < high


def test_cells_fill_space_and_are_as_large_as_asked() -> None:
    """Walls part every cell from its neighbours, and there is one cell to a site."""
    rng = np.random.default_rng(0)
    walls = Cells(diameter=12.0, warp=0.0, membrane=1.0, body=0.0).render((64, 64, 64), rng)
    pieces, count = label(walls < 0.2, return_num=True, connectivity=1)
    # sites at least 12 apart: a volume of 0.7 to 1.4 diameters cubed each, cut ones beside
    assert 64**3 / (1.4 * 12) ** 3 < count < 80**3 / (0.7 * 12) ** 3
    assert np.bincount(pieces.ravel())[1:].max() < 0.1 * walls.size
    bodies = Cells(diameter=12.0, membrane=0.5, body=5.0, stained=0.3, variation=0.0)
    shown = bodies.render((64, 64, 64), np.random.default_rng(0)) > 0.3
    assert 0.15 < shown.mean() < 0.4


def test_kinds_differ_in_shape() -> None:
    """Nuclei are many separate pieces, vessels one network."""

    def pieces(kind: str) -> tuple[int, float]:
        bright = simulate_volume(kind, (48, 64, 64), seed=1, optics=SHARP) > 0.1
        names, count = label(bright, return_num=True, connectivity=3)
        largest = np.bincount(names[bright]).max() / bright.sum()
        return count, float(largest)

    many, share = pieces("nuclei")
    few, network = pieces("vessels")
    assert many > 30
    assert share < 0.2
    assert few < many
    assert network > 0.5


@pytest.mark.parametrize("look", [Vessels(trunks=1, missing=1.0), Vessels(trunks=0, spacing=20)])
def test_tubes_have_no_gaps(look: Vessels) -> None:
    """Stamps along a centreline touch: no crumbs beside the tubes."""
    volume = look.render((64, 64, 64), np.random.default_rng(5))
    names, count = label(volume > 0.05, return_num=True, connectivity=3)
    sizes = np.bincount(names.reshape(-1))[1:]
    assert count >= 1
    # crumbs would be the mark of stamps that do not touch
    assert sizes[sizes < 8].sum() < 0.01 * sizes.sum()


def test_single_tube_is_one_piece_of_the_right_volume() -> None:
    out = np.zeros((40, 40, 40), dtype=np.float32)
    along = np.linspace(5, 35, 120)
    points = np.stack([along, 0.5 * along + 8, 0.3 * along + 12], axis=1)
    radius = np.full(120, 2.2)
    stamp_balls(out, points, radius, np.ones(120))
    _, count = label(out > 0.5, return_num=True)
    assert count == 1
    length = np.linalg.norm(points[-1] - points[0])
    expected = np.pi * 2.2**2 * length + 4 / 3 * np.pi * 2.2**3
    assert out.sum() == pytest.approx(expected, rel=0.08)


def test_small_balls_fade_instead_of_vanishing() -> None:
    light = []
    for radius in (0.2, 0.4, 0.6):
        total = 0.0
        for shift in np.linspace(0, 1, 5, endpoint=False):
            out = np.zeros((9, 9, 9), dtype=np.float32)
            stamp_balls(out, np.array([[4.0, 4.0, 4.0 + shift]]), np.array([radius]), np.ones(1))
            assert out.max() > 0
            total += float(out.sum())
        light.append(total)
    assert light[0] < light[1] < light[2]


def test_balls_outside_are_clipped_not_wrapped() -> None:
    out = np.zeros((8, 8, 8), dtype=np.float32)
    centres = np.array([[-20.0, 4, 4], [4, 4, 30.0], [4, 4, 8.0]])
    stamp_balls(out, centres, np.full(3, 2.0), np.ones(3))
    assert out[:, :, :5].max() == 0
    assert out[4, 4, 7] > 0.9


def test_aspect_flattens_structures_along_z() -> None:
    out = np.zeros((31, 31, 31), dtype=np.float32)
    stamp_balls(out, np.array([[30.0, 15, 15]]), np.array([8.0]), np.ones(1), aspect=2.0)
    assert moment(out, 1) / moment(out, 0) == pytest.approx(4, rel=0.1)


def test_ellipsoid_has_its_volume_in_any_direction() -> None:
    rng = np.random.default_rng(0)
    axes = np.array([[6.0, 4.0, 3.0]])
    for turned in random_rotations(4, rng):
        out = np.zeros((24, 24, 24), dtype=np.float32)
        stamp_ellipsoids(out, np.full((1, 3), 11.6), axes, turned[None], np.ones(1))
        assert out.sum() == pytest.approx(4 / 3 * np.pi * 72, rel=0.06)


def test_ellipsoid_lies_along_the_rows_of_its_rotation() -> None:
    turned = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # half-axes along x, z, y
    out = np.zeros((25, 25, 25), dtype=np.float32)
    axes = np.array([[9.0, 6.0, 4.0]])
    stamp_ellipsoids(out, np.full((1, 3), 12.0), axes, turned[None], np.ones(1))
    measured = [moment(out, a) for a in range(3)]
    assert measured == pytest.approx([36 / 5, 16 / 5, 81 / 5], rel=0.06)


def test_rotations_are_orthonormal() -> None:
    turned = random_rotations(20, np.random.default_rng(1))
    assert np.allclose(turned @ turned.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(turned), 1)


def test_scattered_points_keep_their_distance_and_fill_the_box() -> None:
    points = scattered_points((40, 30, 50), 6.0, np.random.default_rng(2))
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(gaps, np.inf)
    assert gaps.min() >= 6.0
    # random sequential packing saturates near 0.73 points per distance cubed
    assert 0.45 < len(points) * 6.0**3 / (40 * 30 * 50) < 0.95
    assert (points.min(axis=0) < 6).all()
    assert (points.max(axis=0) > np.array([34, 24, 44])).all()


@pytest.mark.parametrize("scale", [1.0, 4.0, 20.0])
def test_smooth_field_varies_over_its_scale(scale: float) -> None:
    field = smooth_field((48, 48, 48), scale, np.random.default_rng(3))
    assert field.std() == pytest.approx(1, rel=0.4)
    near = float((field[:-1] * field[1:]).mean() / field.var())
    lag = min(3 * int(np.ceil(scale)), 40)
    far = float((field[:-lag] * field[lag:]).mean() / field.var())
    assert near > 0.2
    assert far < near - 0.1


def test_psf_widens_a_point_by_its_variance() -> None:
    point = np.zeros((41, 41, 41), dtype=np.float32)
    point[20, 20, 20] = 1
    image = Optics(psf_sigma=(2.5, 1.0, 1.5), halo=0, background=0).blur(point)
    assert [moment(image, a) for a in range(3)] == pytest.approx([6.25, 1.0, 2.25], rel=0.02)
    assert image.sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("sigma", [3.5, 6.0, 9.0])
def test_wide_blur_is_gaussian_though_pooled(sigma: float) -> None:
    point = np.zeros((9, 9, 161), dtype=np.float32)
    point[4, 4, 80] = 1
    image = gaussian_blur(point, (0, 0, sigma))[4, 4]
    place = np.arange(161) - 80
    exact = np.exp(-0.5 * (place / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    assert image.sum() == pytest.approx(1, rel=1e-4)
    assert np.abs(image - exact).max() < 0.02 * exact.max()


def test_halo_and_tail_keep_the_light() -> None:
    point = np.zeros((41, 41, 41), dtype=np.float32)
    point[20, 20, 20] = 1
    image = Optics(psf_sigma=(1, 1, 1), halo=0.3, tail=0.3, background=0).blur(point)
    assert image.sum() == pytest.approx(1, rel=0.01)
    assert moment(image, 1) > 1.5
    assert image[21:].sum() > image[:20].sum()


def test_blur_keeps_a_constant_up_to_the_border() -> None:
    flat = np.full((9, 10, 11), 0.7, dtype=np.float32)
    assert np.allclose(gaussian_blur(flat, (3.0, 2.0, 6.0)), 0.7, atol=1e-6)


def test_background_shading_and_stripes_do_what_they_say() -> None:
    empty = np.zeros(SHAPE, dtype=np.float32)
    rng = np.random.default_rng(0)
    assert np.allclose(Optics(background=0.2).apply(empty, rng), 0.2)
    striped = Optics(background=0.2, stripes=0.1).apply(empty, rng)
    assert np.ptp(striped, axis=2).max() < 1e-6  # shadows run along x
    assert np.ptp(striped, axis=1).max() > 0.01
    dimmed = Optics(background=0.2, attenuation=0.5).apply(empty, rng).mean(axis=(1, 2))
    assert sorted([dimmed[0], dimmed[-1]]) == pytest.approx([0.1, 0.2], rel=1e-4)


@pytest.mark.parametrize("photons", [20.0, 500.0])
@pytest.mark.parametrize("background", [0.0, 40.0])
def test_noise_has_the_variance_of_its_photons(photons: float, background: float) -> None:
    level, read = 0.6, 3.0
    flat = np.full((64, 64, 64), level, dtype=np.float32)
    noise = Noise(photons=photons, read_noise=read, background=background)
    image = noise.apply(flat, np.random.default_rng(7))
    variance = (level * photons + background + read**2) / photons**2
    assert image.mean() == pytest.approx(level, abs=5 * np.sqrt(variance / flat.size))
    assert image.var() == pytest.approx(variance, rel=0.02)


def test_no_noise_is_the_identity() -> None:
    ramp = np.linspace(0, 1, 1000, dtype=np.float32)
    still = Noise(photons=None).apply(ramp, np.random.default_rng(0))
    assert np.array_equal(still, ramp)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bit_depth_gives_its_levels_and_saturates(bits: int) -> None:
    ramp = np.linspace(-0.5, 1.5, 20001, dtype=np.float32)
    image = Noise(photons=None, bits=bits).apply(ramp, np.random.default_rng(0))
    assert len(np.unique(image)) == 2**bits
    assert (image.min(), image.max()) == (0, 1)
    assert np.abs(image - np.clip(ramp, 0, 1)).max() <= 0.5001 / (2**bits - 1)


def test_random_parameters_stay_plausible() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        z, y, x = Optics.random(rng).psf_sigma
        assert y == x
        assert y <= z <= max(4.0, y)
        vessels = Vessels.random(rng)
        assert 0.4 < vessels.capillary_radius[0] < vessels.trunk_radius[1] <= 8
        assert 0.4 <= Neurites.random(rng).radius[0] <= 2.5
        assert 1.3 <= Nuclei.random(rng).radius <= 8
        assert 5 <= Cells.random(rng).diameter <= 20
        assert Textures.random(rng).form in ("sheets", "filaments", "blobs")
        assert 0 < Tissue.random(rng).level < 0.5
        assert Noise.random(rng).photons is not None


@pytest.mark.parametrize("kind", ["vessels", "cells"])
def test_nothing_prefers_an_axis(kind: str) -> None:
    """Without a preferred direction, isotropic phantoms change as fast along z as along x."""
    ratios = []
    for seed in range(6):
        volume = simulate_volume(kind, (48, 48, 48), seed=seed, optics=SHARP)
        steps = [float(np.abs(np.diff(volume, axis=a)).mean()) for a in range(3)]
        ratios.append(steps[0] / np.sqrt(steps[1] * steps[2]))
    assert np.mean(ratios) == pytest.approx(1, abs=0.15)


def test_projections_are_means_of_slabs() -> None:
    volume = simulate_volume("nuclei", (32, 24, 24), seed=2)
    result = simulate_projections(volume, step_length=6, voxel_size=(2.0, 1.0, 1.0))
    expected = volume[:30].reshape(5, 6, 24, 24).mean(axis=1)
    assert np.allclose(result.images.numpy(), expected, atol=1e-6)
    assert (result.step_length, result.stride, result.start, result.depth) == (6, 6, 0, 32)
    assert result.voxel_size == (2.0, 1.0, 1.0)


def test_projections_of_counts_keep_their_units_and_carry_noise() -> None:
    volume = (simulate_volume("vessels", (24, 32, 32), seed=2) * 4000).astype(np.uint16)
    clean = simulate_projections(volume, step_length=4, stride=3, start=1).images
    assert 100 < float(clean.max()) <= 4000
    noise = Noise(photons=200.0)
    one = simulate_projections(volume, step_length=4, stride=3, start=1, noise=noise, seed=1)
    same = simulate_projections(volume, step_length=4, stride=3, start=1, noise=noise, seed=1)
    other = simulate_projections(volume, step_length=4, stride=3, start=1, noise=noise, seed=2)
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)
    full = float(volume.max())
    expected = float(clean.mean()) / full / 200 * full**2
    assert float(((one.images - clean) ** 2).mean()) == pytest.approx(expected, rel=0.15)


def test_bad_input_names_its_argument() -> None:
    volume = np.zeros((12, 16, 16), dtype=np.float32)
    holed = volume.copy()
    holed[3, 3, 3] = np.nan
    cases = [
        ("kind", lambda: simulate_volume("bones")),
        ("shape", lambda: simulate_volume("nuclei", (32, 32))),
        ("shape", lambda: simulate_volume("nuclei", (4, 32, 32))),
        ("shape", lambda: random_volume(0, (32, 32.5, 32))),  # type: ignore[arg-type]
        ("seed", lambda: random_volume(-1, SHAPE)),
        ("morphology", lambda: simulate_volume("nuclei", SHAPE, morphology=Vessels())),
        ("morphology", lambda: simulate_volume("mixed", SHAPE, morphology=Vessels())),
        ("psf_sigma", lambda: Optics(psf_sigma=(-1, 1, 1))),
        ("psf_sigma", lambda: Optics(psf_sigma=(1, 1))),  # type: ignore[arg-type]
        ("halo", lambda: Optics(halo=1.0)),
        ("photons", lambda: Noise(photons=0)),
        ("read_noise", lambda: Noise(read_noise=-1)),
        ("bits", lambda: Noise(bits=0)),
        ("step_length", lambda: simulate_projections(volume, step_length=1)),
        ("step_length", lambda: simulate_projections(volume, step_length=13)),
        ("step_length", lambda: simulate_projections(volume, step_length=6, start=7)),
        ("stride", lambda: simulate_projections(volume, step_length=6, stride=0)),
        ("weights", lambda: simulate_projections(volume, step_length=2, weights=(1.5, -0.5))),
        ("volume", lambda: simulate_projections(volume[0], step_length=6)),
        ("volume", lambda: simulate_projections(holed, step_length=6)),
    ]
    for name, call in cases:
        with pytest.raises(InputError, match=f"^{name}: expected "):
            call()
