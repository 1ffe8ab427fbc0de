"""windowed_ssim: agreement with scikit-image, bounds, precision and independence of slices."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from microdiffusion_fast.kernels.windowed_ssim import window_size, windowed_ssim

OPTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
}
Window = Literal["uniform", "gaussian"]


def pair(shape: tuple[int, int, int], offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    x = offset + 255 * rng.random(shape) ** 3
    return torch.from_numpy(x), torch.from_numpy(x + rng.normal(0, 20, shape))


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
@pytest.mark.parametrize("shape", [(11, 11, 11), (13, 17, 30), (20, 12, 11)])
@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_scikit_image_agrees(window: Window, shape: tuple[int, int, int], offset: float) -> None:
    x, y = pair(shape, offset)
    planes = [
        structural_similarity(a, b, data_range=255, **OPTIONS[window])
        for a, b in zip(x.numpy(), y.numpy(), strict=True)
    ]
    got = windowed_ssim(x, y, data_range=255, window=window)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), planes, atol=1e-7)
    volume = structural_similarity(x.numpy(), y.numpy(), data_range=255, **OPTIONS[window])
    got = windowed_ssim(x, y, data_range=255, window=window, ndim=3)
    assert float(got) == pytest.approx(volume, abs=1e-7)


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_identical_is_one_and_nothing_is_above(window: Window, ndim: Literal[2, 3]) -> None:
    x, _ = pair((12, 12, 12))
    for scale in (1e-12, 1.0, 1e9):
        values = windowed_ssim(x * scale, x * scale, data_range=1.0, window=window, ndim=ndim)
        assert bool((values == 1.0).all())
        close = windowed_ssim(
            x * scale, x * scale * (1 + 1e-15), data_range=1.0, window=window, ndim=ndim
        )
        assert bool((close <= 1.0).all()) and bool((close > 0.999).all())


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_large_means_do_not_cancel_the_variance(window: Window) -> None:
    x, y = pair((2, 16, 16))
    x, y = x / 255, y / 255
    # Far from zero the luminance term is 1 and only contrast and structure are left.
    far = windowed_ssim(x + 2.0**24, y + 2.0**24, data_range=1.0, window=window)
    farther = windowed_ssim(x + 2.0**20, y + 2.0**20, data_range=1.0, window=window)
    torch.testing.assert_close(far, farther, rtol=0, atol=1e-6)


def test_slices_do_not_depend_on_their_neighbours() -> None:
    x, y = pair((5, 20, 20))
    whole = windowed_ssim(x, y, data_range=255)
    for z in range(5):
        assert torch.equal(
            windowed_ssim(x[z : z + 1], y[z : z + 1], data_range=255), whole[z, None]
        )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.bfloat16])
def test_dtypes_are_read_natively(dtype: torch.dtype) -> None:
    x, y = (v.clamp(0, 250).round().to(dtype) for v in pair((3, 12, 12)))
    got = windowed_ssim(x, y, data_range=255)
    assert torch.equal(got, windowed_ssim(x.double(), y.double(), data_range=255))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("window", ["uniform", "gaussian"])
@pytest.mark.parametrize("clip", [None, (20.0, 90.0)])
def test_the_map_is_applied_on_load(
    window: Window, ndim: Literal[2, 3], clip: tuple[float, float] | None
) -> None:
    x, y = pair((11, 12, 13))
    options: dict[str, Any] = {"data_range": 80.0, "window": window, "ndim": ndim}
    got = windowed_ssim(x, y, scale=0.25, offset=9.0, clip=clip, **options)
    mapped = [v * 0.25 + 9.0 if clip is None else (v * 0.25 + 9.0).clamp(*clip) for v in (x, y)]
    torch.testing.assert_close(got, windowed_ssim(*mapped, **options), rtol=0, atol=1e-12)


def test_opcheck() -> None:
    x, y = pair((11, 12, 13))
    operator = torch.ops.microdiffusion_fast.windowed_ssim.default
    for window in OPTIONS:
        for ndim in (2, 3):
            options = (255.0, window, ndim, 2.0, 1.0, [0.0, 200.0])
            torch.library.opcheck(operator, (x.float(), y.float(), *options))


def test_errors() -> None:
    x = torch.zeros(9, 9, 9)
    assert (window_size("uniform"), window_size("gaussian")) == (7, 11)
    with pytest.raises(ValueError, match="one shape"):
        windowed_ssim(x, x[1:], data_range=1.0)
    with pytest.raises(ValueError, match="at least 11 voxels along the last 2 axes"):
        windowed_ssim(x, x, data_range=1.0, window="gaussian")
    with pytest.raises(ValueError, match="at least 7 voxels along the last 3 axes"):
        windowed_ssim(x[:6], x[:6], data_range=1.0, ndim=3)
    assert windowed_ssim(x[:6], x[:6], data_range=1.0).shape == (6,)
    with pytest.raises(ValueError, match="data_range"):
        windowed_ssim(x, x, data_range=0.0)
    with pytest.raises(ValueError, match="window: expected"):
        windowed_ssim(x, x, data_range=1.0, window="hann")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip: expected limits"):
        windowed_ssim(x, x, data_range=1.0, clip=(1.0, 0.0))
    with pytest.raises(ValueError, match="scale: expected a finite number"):
        windowed_ssim(x, x, data_range=1.0, scale=float("inf"))
    with pytest.raises(ValueError, match="test: expected a tensor on cpu"):
        windowed_ssim(x, x.to("meta"), data_range=1.0)
    with pytest.raises(TypeError, match="test: expected a real dtype"):
        windowed_ssim(x, x > 0, data_range=1.0)
    with pytest.raises(ValueError, match="ndim: expected"):
        windowed_ssim(x, x, data_range=1.0, ndim=1)  # type: ignore[arg-type]
