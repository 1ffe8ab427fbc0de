"""The Triton kernel of windowed_ssim against the float64 reference, in Triton's interpreter."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.windowed_ssim import reference

if _backend.triton_missing is not None:
    pytest.skip(f"triton: {_backend.triton_missing}", allow_module_level=True)

from microdiffusion_fast.kernels.windowed_ssim.triton_kernel import windowed_ssim_triton

Window = Literal["uniform", "gaussian"]
CASES: list[tuple[Window, int]] = [
    ("uniform", 2),
    ("uniform", 3),
    ("gaussian", 2),
    ("gaussian", 3),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def exact(x: Tensor, y: Tensor, data_range: float, window: Window, ndim: int) -> Tensor:
    similarity = reference.ssim_slices if ndim == 2 else reference.ssim_volume
    return similarity(x, y, data_range, window)


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    y = x + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.to(DEVICE), y.to(DEVICE)


def assert_right(x: Tensor, y: Tensor, data_range: float, window: Window, ndim: int) -> None:
    if ndim == 2:  # A few slices tell as much, and the interpreter is slow.
        x, y = x[4:7], y[4:7]
    got = windowed_ssim_triton(x, y, data_range, window, ndim)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, exact(x, y, data_range, window, ndim), rtol=0, atol=1e-6)
    assert bool((got <= 1.0).all())


# One tile; just more than one along each axis for either window; more planes than one program does.
@pytest.mark.parametrize(("window", "ndim"), CASES)
@pytest.mark.parametrize("shape", [(11, 11, 11), (13, 33, 34), (12, 11, 59), (21, 17, 13)])
def test_shapes(shape: tuple[int, int, int], window: Window, ndim: int) -> None:
    assert_right(*pair(*shape), 1.0, window, ndim)


@pytest.mark.parametrize(("window", "ndim"), CASES)
def test_the_smallest_volume(window: Window, ndim: int) -> None:
    size = 7 if window == "uniform" else 11
    x, y = pair(size, size, size)
    assert_right(x, y, 1.0, window, ndim)


def regimes() -> dict[str, tuple[Tensor, Tensor, float]]:
    x, y = pair(12, 14, 35)
    hot = x > 0.999
    step = (torch.arange(35, device=DEVICE) > 17).double().expand(12, 14, 35)
    return {
        "far from zero": ((x + 1e4).float(), (y + 1e4).float(), 1.0),
        "float64, farther": (x + 1e6, y + 1e6, 1.0),
        "uint16 about 30000": (
            (x * 400 + 3e4).to(torch.uint16),
            (y * 400 + 3e4).to(torch.uint16),
            400.0,
        ),
        "constant": (torch.full_like(x, 3e4), torch.full_like(x, 3e4 + 7), 255.0),
        "steps": (step.float(), (0.9 * step.roll(5, 2) + 0.05).float(), 1.0),
        "dark with hot voxels": ((x * 1e-3 + hot).float(), (y * 1e-3 + 0.8 * hot).float(), 1.0),
        "volumes far apart": (x.float(), y.float() + 1e3, 1.0),
    }


@pytest.mark.parametrize(("window", "ndim"), CASES)
@pytest.mark.parametrize("regime", regimes())
def test_float32_suffices(regime: str, window: Window, ndim: int) -> None:
    assert_right(*regimes()[regime], window, ndim)


@pytest.mark.parametrize(("window", "ndim"), CASES)
@pytest.mark.parametrize(
    "types",
    [
        (torch.uint8, torch.uint16),
        (torch.bfloat16, torch.float16),
        (torch.float32, torch.float64),
        (torch.int16, torch.uint8),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "mapping", [(1.0, 0.0, None), (0.25, -3.0, None), (0.25, -3.0, (2.0, 40.0))]
)
def test_types_and_the_map(
    types: tuple[torch.dtype, torch.dtype],
    mapping: tuple[float, float, tuple[float, float] | None],
    window: Window,
    ndim: int,
) -> None:
    depth = 11 if ndim == 3 else 2
    x, y = ((v * 200).clamp(0, 250).to(t) for v, t in zip(pair(depth, 13, 14), types, strict=True))
    got = windowed_ssim_triton(x, y, 50.0, window, ndim, *mapping)
    mapped = [reference.mapped(v, *mapping) for v in (x, y)]
    torch.testing.assert_close(got, exact(*mapped, 50.0, window, ndim), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("window", "ndim"), CASES)
@pytest.mark.parametrize("clip", [None, (7003.3, 7003.6)])
def test_the_map_far_from_zero(clip: tuple[float, float] | None, window: Window, ndim: int) -> None:
    """Neither the product nor a limit can be a float32: half a unit of one is 2e-4 here."""
    depth = 11 if ndim == 3 else 2
    x, y = ((v + 1e4).float() for v in pair(depth, 13, 14))
    mapping = (0.7, 3.1, clip)
    got = windowed_ssim_triton(x, y, 0.7, window, ndim, *mapping)
    mapped = [reference.mapped(v, *mapping) for v in (x, y)]
    torch.testing.assert_close(got, exact(*mapped, 0.7, window, ndim), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("window", "ndim"), CASES)
@pytest.mark.parametrize("clip", [(0.2, 0.7), (0.0, 1.0)])
def test_limits_without_a_map(clip: tuple[float, float], window: Window, ndim: int) -> None:
    x, y = (v.float() for v in pair(11 if ndim == 3 else 2, 13, 14))
    got = windowed_ssim_triton(x, y, 1.0, window, ndim, 1.0, 0.0, clip)
    mapped = [reference.mapped(v, 1.0, 0.0, clip) for v in (x, y)]
    torch.testing.assert_close(got, exact(*mapped, 1.0, window, ndim), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("window", "ndim"), CASES)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_identical_is_exactly_one(scale: float, window: Window, ndim: int) -> None:
    x = pair(11 if ndim == 3 else 2, 13, 14)[0].float() * scale
    for data_range in (1.0, scale):
        got = windowed_ssim_triton(x, x, data_range, window, ndim)
        assert bool((got == 1.0).all())


@pytest.mark.parametrize(("window", "ndim"), CASES)
def test_same_bits_again_and_without_neighbours(window: Window, ndim: int) -> None:
    x, y = (v.float() for v in pair(12, 13, 34))
    got = windowed_ssim_triton(x, y, 1.0, window, ndim)
    assert torch.equal(got, windowed_ssim_triton(x, y, 1.0, window, ndim))
    if ndim == 2:
        alone = windowed_ssim_triton(x[5:6], y[5:6], 1.0, window, ndim)
        assert torch.equal(got[5:6], alone)


@pytest.mark.parametrize(("window", "ndim"), CASES)
def test_nan_is_not_hidden(window: Window, ndim: int) -> None:
    x, y = pair(12, 13, 14)
    y[5, 6, 7] = float("nan")
    got = windowed_ssim_triton(x, y, 1.0, window, ndim, 1.0, 0.0, (0.0, 1.0)).cpu()
    assert torch.equal(got.isnan(), (torch.arange(12) == 5) if ndim == 2 else torch.tensor(True))


@pytest.mark.parametrize(("window", "ndim"), CASES)
def test_views(window: Window, ndim: int) -> None:
    x, y = pair(14, 16, 30)
    for view in (
        (slice(1, 13), slice(2, 15), slice(3, 29)),
        (slice(None), slice(None), slice(None, None, 2)),
    ):
        got = windowed_ssim_triton(x[view], y[view], 1.0, window, ndim)
        copy = windowed_ssim_triton(x[view].contiguous(), y[view].contiguous(), 1.0, window, ndim)
        assert torch.equal(got, copy)


@pytest.mark.parametrize("ndim", [2, 3])
def test_addresses_past_two_to_the_31(ndim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 3 GB of address space; on a CPU a few pages of it are ever touched, unless they are filled.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    storage = torch.empty(3_000_000_000, dtype=torch.uint8, device=DEVICE)
    far = storage.as_strided((8, 7, 9), (400_000_000, 16, 1))
    x, y = ((v * 200).clamp(0, 255).to(torch.uint8) for v in pair(8, 7, 9))
    far.copy_(x)
    want = windowed_ssim_triton(x, y, 255.0, "uniform", ndim)
    assert torch.equal(windowed_ssim_triton(far, y, 255.0, "uniform", ndim), want)
