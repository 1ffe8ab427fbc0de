"""Metrics: the printed formulas, agreement with scikit-image, stated answers and the baselines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from microdiffusion_fast import metrics
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection

DATA = Path(__file__).parents[3] / "shared" / "data"


def pair(shape: tuple[int, ...] = (4, 20, 23), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.gamma(1.0, 40.0, shape).clip(0, 255)
    return x, (0.8 * x + rng.normal(10.0, 15.0, shape)).clip(0, 255)


def printed_ssim(x: np.ndarray, y: np.ndarray, L: float) -> float:
    """SSIM over one image, formula by formula as the supplement prints it."""
    c1, c2 = (0.01 * L) ** 2, (0.03 * L) ** 2
    c3 = c2 / 2
    cov = ((x - x.mean()) * (y - y.mean())).mean()
    luminance = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
    contrast = (2 * x.std() * y.std() + c2) / (x.var() + y.var() + c2)
    structure = (cov + c3) / (x.std() * y.std() + c3)
    return luminance * contrast * structure


def test_psnr_is_the_printed_formula_and_scikit_images() -> None:
    x, y = pair()
    slices = [10 * math.log10(255**2 / np.mean((a - b) ** 2)) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(metrics.psnr(x, y, per="slice"), slices, rtol=1e-12)
    assert metrics.psnr(x, y) == pytest.approx(np.mean(slices), rel=1e-12)
    expected = peak_signal_noise_ratio(x, y, data_range=255)
    assert metrics.psnr(x, y, per="volume") == pytest.approx(expected, abs=1e-9)
    assert metrics.psnr(x / 255, y / 255, data_range=1.0) == pytest.approx(np.mean(slices))


def test_global_ssim_is_the_printed_formula() -> None:
    x, y = pair()
    slices = [printed_ssim(a, b, 255.0) for a, b in zip(x, y, strict=True)]
    got = metrics.ssim(x, y, window="global", per="slice")
    np.testing.assert_allclose(got, slices, atol=1e-12)
    assert metrics.ssim(x, y, window="global") == pytest.approx(np.mean(slices), abs=1e-12)
    whole = metrics.ssim(x, y, window="global", per="volume")
    assert whole == pytest.approx(printed_ssim(x, y, 255.0), abs=1e-12)


@pytest.mark.parametrize(
    ("window", "options"),
    [
        ("uniform", {}),
        ("gaussian", {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}),
    ],
)
def test_windowed_ssim_is_scikit_images(window: Any, options: dict[str, Any]) -> None:
    x, y = pair((12, 19, 24))
    slices = [
        structural_similarity(a, b, data_range=255, **options) for a, b in zip(x, y, strict=True)
    ]
    got = metrics.ssim(x, y, window=window, per="slice")
    np.testing.assert_allclose(got, slices, atol=1e-6)
    assert metrics.ssim(x, y, window=window) == pytest.approx(np.mean(slices), abs=1e-6)
    volume = structural_similarity(x, y, data_range=255, **options)
    got_volume = metrics.ssim(x, y, window=window, per="volume")
    assert got_volume == pytest.approx(volume, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_otsu_is_scikit_images(seed: int) -> None:
    x, y = pair(seed=seed)
    for volume in (x, y, x * 1e4 - 3.0, np.round(y / 30)):
        assert metrics.otsu_threshold(volume) == threshold_otsu(volume)


def test_dice_is_the_printed_formula_with_each_volumes_threshold() -> None:
    x, y = pair()
    above_x, above_y = x > threshold_otsu(x), y > threshold_otsu(y)
    both, either = (above_x & above_y).sum(), above_x.sum() + above_y.sum()
    assert metrics.dice(x, y) == pytest.approx((2 * both + 1e-6) / (either + 1e-6), rel=1e-12)
    slices = [
        (2 * (a & b).sum() + 1e-6) / (a.sum() + b.sum() + 1e-6)
        for a, b in zip(above_x, above_y, strict=True)
    ]
    np.testing.assert_allclose(metrics.dice(x, y, per="slice"), slices, rtol=1e-12)
    assert metrics.dice(x, y, per="mean") == pytest.approx(np.mean(slices))
    fixed = 2 * ((x > 50) & (y > 60)).sum() / ((x > 50).sum() + (y > 60).sum())
    assert metrics.dice(x, y, threshold=(50.0, 60.0)) == pytest.approx(fixed, abs=1e-6)


def test_evaluate_maps_by_the_reference_only() -> None:
    x, y = pair((6, 30, 31))
    x, y = x * 100 + 1000, y * 100 + 1000
    low, high = np.percentile(x, (0.1, 99.9))
    assert metrics.intensity_window(x) == (low, high)
    a, b = (np.clip((v - low) / (high - low), 0, 1) * 255 for v in (x, y))
    result = metrics.evaluate(y, x)
    assert result.psnr == pytest.approx(metrics.psnr(a, b), rel=1e-9)
    assert result.ssim == pytest.approx(metrics.ssim(a, b), rel=1e-9)
    assert result.dice == pytest.approx(metrics.dice(a, b), rel=1e-9)
    assert result.as_dict() == {"psnr": result.psnr, "ssim": result.ssim, "dice": result.dice}
    # Units do not matter, the test volume's own range does.
    scaled = metrics.evaluate(y * 3.5 + 7, x * 3.5 + 7)
    assert scaled.psnr == pytest.approx(result.psnr, abs=1e-6)
    assert metrics.evaluate(y * 2, x).psnr < result.psnr - 1


def test_evaluate_takes_otsus_range_from_the_mapped_extremes() -> None:
    """Volumes that do not reach black or white have narrower histograms than [0, 255]."""
    x, y = pair((6, 30, 31))
    for intensity in ((-400.0, 700.0), (10.0, 100.0)):
        low, high = intensity
        a, b = (np.clip((v - low) / (high - low), 0, 1) * 255 for v in (x, y))
        above_x, above_y = a > threshold_otsu(a), b > threshold_otsu(b)
        expected = 2 * (above_x & above_y).sum() / (above_x.sum() + above_y.sum())
        got = metrics.evaluate(y, x, intensity=intensity).dice
        assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("window", ["global", "uniform", "gaussian"])
def test_evaluate_compares_dtypes_as_they_are(window: Any) -> None:
    x, y = pair((3, 20, 20))
    x, y = (x * 200).astype(np.uint16), (y * 200).astype(np.float32)
    got = metrics.evaluate(y, x, window=window).as_dict()
    expected = metrics.evaluate(y.astype(float), x.astype(float), window=window).as_dict()
    assert got == pytest.approx(expected, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1e-6, 1.0, 255.0, 65535.0]),
    st.floats(-1e6, 1e6),
    st.sampled_from(["global", "uniform", "gaussian"]),
)
def test_ssim_is_symmetric_and_never_above_one(
    seed: int, amplitude: float, offset: float, window: Any
) -> None:
    rng = np.random.default_rng(seed)
    x = offset + amplitude * rng.random((2, 12, 12))
    y = x + amplitude * rng.choice([0.0, 1e-9, 1.0]) * rng.random(x.shape)
    pers: list[Any] = ["slice", "mean"]
    for per in pers:
        values = metrics.ssim(x, y, data_range=amplitude, window=window, per=per)
        assert np.all(values <= 1.0)
        other = metrics.ssim(y, x, data_range=amplitude, window=window, per=per)
        np.testing.assert_allclose(values, other, atol=1e-6)


def test_bfloat16_is_evaluated_as_the_float32_that_it_is() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand((4, 16, 16), generator=generator).bfloat16()
    y = (x.float() + 0.1 * torch.rand(x.shape, generator=generator)).bfloat16()
    assert metrics.intensity_window(x) == metrics.intensity_window(x.float())
    half, full = metrics.evaluate(y, x), metrics.evaluate(y.float(), x.float())
    assert half.as_dict() == pytest.approx(full.as_dict(), rel=1e-9)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, ">u2", "<f4", np.float16]
)
def test_dtypes_and_containers_agree(dtype: Any) -> None:
    x, y = (np.round(v) for v in pair((3, 16, 16)))
    expected = metrics.psnr(x, y), metrics.ssim(x, y), metrics.dice(x, y)
    a, b = x.astype(dtype), y.astype(dtype)
    a.flags.writeable = False
    assert (metrics.psnr(a, b), metrics.ssim(a, b), metrics.dice(a, b)) == expected
    c, d = (torch.from_numpy(v.copy()) for v in (x, y))
    assert (metrics.psnr(c, b), metrics.ssim(a, d), metrics.dice(c, d)) == expected
    flipped = metrics.ssim(a[::-1, :, ::-1], b[::-1, :, ::-1])
    assert flipped == pytest.approx(expected[1], abs=1e-12)


def test_a_single_image_is_one_slice() -> None:
    x, y = pair((1, 20, 20))
    for metric in (metrics.psnr, metrics.ssim, metrics.dice):
        assert metric(x[0], y[0]) == metric(x, y)
    assert metrics.ssim(x[0], y[0], per="volume") == metrics.ssim(x[0], y[0])


def test_identical_and_constant_images_have_stated_answers() -> None:
    x, y = pair()
    assert metrics.evaluate(x, x) == metrics.Evaluation(psnr=math.inf, ssim=1.0, dice=1.0)
    for window in ("global", "uniform", "gaussian"):
        assert metrics.ssim(x, x, window=window) == 1.0
    y[0] = x[0]
    assert metrics.psnr(x, y) == math.inf
    assert np.isinf(metrics.psnr(x, y, per="slice")).tolist() == [True, False, False, False]
    assert math.isfinite(metrics.psnr(x, y, per="volume"))
    flat, other = np.full((2, 9, 9), 10.0), np.full((2, 9, 9), 30.0)
    c1 = 2.55**2
    luminance = (2 * 10 * 30 + c1) / (10**2 + 30**2 + c1)
    assert metrics.ssim(flat, other) == pytest.approx(luminance)
    assert metrics.ssim(flat, other, window="global") == pytest.approx(luminance)
    assert metrics.otsu_threshold(flat) == 10.0
    assert metrics.dice(flat, other) == 1.0
    assert metrics.psnr(flat, other) == pytest.approx(20 * math.log10(255 / 20))


def test_bad_input_names_the_argument() -> None:
    x, y = pair()
    broken = y.copy()
    broken[1, 2, 3], broken[0, 0, 0] = np.nan, np.inf
    checked: list[Any] = [metrics.psnr, metrics.ssim, metrics.dice]
    for metric in checked:
        for dtype in (np.float16, np.float32, np.float64):
            with pytest.raises(InputError, match=r"^test: expected finite values, got 2 NaN"):
                metric(x.astype(dtype), broken.astype(dtype))
        with pytest.raises(InputError, match=r"^test: expected shape"):
            metric(x, y[:-1])
        with pytest.raises(InputError, match=r"^test: expected shape"):
            metric(x[:1], y[0])
        with pytest.raises(InputError, match=r"^per: expected"):
            metric(x, y, per="each")
        with pytest.raises(InputError, match=r"^reference: expected a volume"):
            metric(x[None], y[None])
        with pytest.raises(InputError, match=r"^reference: expected real"):
            metric(x.astype(complex), y)
    with pytest.raises(InputError, match=r"^test: expected finite"):
        metrics.evaluate(broken, x)
    with pytest.raises(InputError, match=r"^reference: expected finite"):
        metrics.evaluate(x, broken)
    infinite = y.copy()
    infinite[3, 4, 5] = np.inf  # Clipped to white, if nobody looked.
    with pytest.raises(InputError, match=r"^test: expected finite values, got 1 NaN"):
        metrics.evaluate(infinite, x, intensity=(0.0, 255.0))
    with pytest.raises(InputError, match=r"^volume: expected finite values, got 2 NaN"):
        metrics.otsu_threshold(broken)
    with pytest.raises(InputError, match=r"^volume: expected finite values, got 2 NaN"):
        metrics.to_grey_levels(broken, 0.0, 1.0)
    with pytest.raises(InputError, match=r"^test: expected finite"):
        metrics.dice(x, broken, threshold=10.0)
    with pytest.raises(InputError, match=r"^test: expected shape"):
        metrics.evaluate(x[:, :-1], x)
    with pytest.raises(InputError, match=r"^reference: expected a 0\.1 percentile"):
        metrics.evaluate(x, np.full_like(x, 3.0))
    with pytest.raises(InputError, match=r"^intensity: expected"):
        metrics.evaluate(x, y, intensity=(5.0, 5.0))
    with pytest.raises(InputError, match=r"^reference: expected at least 7 voxels"):
        metrics.ssim(x[:, :6], y[:, :6])
    with pytest.raises(InputError, match=r"^reference: expected at least 11 voxels"):
        metrics.ssim(x, y, window="gaussian", per="volume")
    with pytest.raises(InputError, match=r"^window: expected"):
        metrics.ssim(x, y, window="hann")  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"^data_range: expected"):
        metrics.psnr(x, y, data_range=0.0)
    with pytest.raises(InputError, match=r"^threshold: expected"):
        metrics.dice(x, y, threshold="li")  # type: ignore[call-overload]


BASELINES = {
    "vesselexpress_brain_100": (
        ("30.65", ".925", ".655"),
        ("30.97", ".926", ".628"),
        ("31.70", ".930", ".679"),
    ),
    "trailmap_A_dev_130x128x128": (
        ("29.98", ".819", ".706"),
        ("30.29", ".818", ".617"),
        ("31.02", ".833", ".728"),
    ),
    "cellseg3d_nuclei_124": (
        ("30.61", ".856", ".730"),
        ("31.02", ".864", ".656"),
        ("31.66", ".873", ".754"),
    ),
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_of_the_shared_volumes_to_the_printed_digits(name: str) -> None:
    """Forward model and metrics together, against a table computed independently.

    The table's conventions: the volume is clipped to its percentiles and mapped to [0, 255] before
    it is projected; lateral sizes are cropped to multiples of 4; only covered slices are compared;
    reconstructions are clipped to [0, 255] and not rounded.
    """
    path = DATA / f"{name}.tif"
    if not path.is_file():
        pytest.skip(f"the shared volume {name}.tif is absent")
    import tifffile

    volume = tifffile.imread(path)
    grey = metrics.to_grey_levels(volume, *metrics.intensity_window(volume))
    grey = grey[:, : grey.shape[1] // 4 * 4, : grey.shape[2] // 4 * 4]
    A = AxialProjection(grey.shape[0], 6)
    y = A(grey)
    linear = A.interpolate(y)
    methods = (A.interpolate(y, "nearest"), linear, A.consistent(linear, y))
    for reconstruction, expected in zip(methods, BASELINES[name], strict=True):
        result = metrics.evaluate(
            reconstruction[A.covered], grey[A.covered], intensity=(0.0, 255.0)
        )
        got = (f"{result.psnr:.2f}", f"{result.ssim:.3f}"[1:], f"{result.dice:.3f}"[1:])
        assert got == expected
