"""The native kernel of windowed_ssim against the float64 reference: values, types, bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.windowed_ssim import reference, windowed_ssim

pytestmark = pytest.mark.skipif(
    _backend.native is None, reason=f"native kernels: {_backend.native_missing}"
)

Window = Literal["uniform", "gaussian"]
Ndim = Literal[2, 3]
CASES: list[tuple[Window, Ndim]] = [
    ("uniform", 2),
    ("uniform", 3),
    ("gaussian", 2),
    ("gaussian", 3),
]


def exact(x: Tensor, y: Tensor, data_range: float, window: Window, ndim: Ndim) -> Tensor:
    similarity = reference.ssim_slices if ndim == 2 else reference.ssim_volume
    return similarity(x, y, data_range, window)


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    return x, x + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def restored() -> Iterator[Any]:
    """The native module; instruction set and threads are as before afterwards."""
    assert _backend.native is not None
    isa, threads = _backend.native.isa(), torch.get_num_threads()
    yield _backend.native
    _backend.native.use_isa(isa)
    torch.set_num_threads(threads)


def regimes() -> dict[str, tuple[Tensor, Tensor, float]]:
    x, y = pair(13, 29, 31)
    hot = x > 0.999
    step = (torch.arange(31) > 15).double().expand(13, 29, 31)
    return {
        "plain": (x, y, 1.0),
        "float32": (x.float(), y.float(), 1.0),
        "far from zero": ((x + 1e4).float(), (y + 1e4).float(), 1.0),
        "farther": (x + 2.0**24, y + 2.0**24, 1.0),
        "uint16 about 30000": (
            (x * 400 + 3e4).to(torch.uint16),
            (y * 400 + 3e4).to(torch.uint16),
            400.0,
        ),
        "constant": (torch.full_like(x, 3e4), torch.full_like(x, 3e4 + 7), 255.0),
        "steps": (step, 0.9 * step.roll(5, 2) + 0.05, 1.0),
        "range far below the steps": (step * 10, step * 10 + 0.1 * x, 0.3),
        "dark": ((x * 3).to(torch.uint8), (x * 3 + y.abs()).to(torch.uint8), 255.0),
        "dark with hot voxels": (x * 1e-3 + hot, y * 1e-3 + 0.8 * hot, 1.0),
        "very hot voxels": (x + 1e4 * hot, y + 9e3 * hot, 1.0),
        "volumes far apart": (x, y + 1e3, 1.0),
    }


@pytest.mark.parametrize(("window", "ndim"), CASES)
@pytest.mark.parametrize("regime", regimes())
def test_agrees_with_the_reference(regime: str, window: Window, ndim: Ndim) -> None:
    x, y, data_range = regimes()[regime]
    got = windowed_ssim(x, y, data_range=data_range, window=window, ndim=ndim)
    want = exact(x, y, data_range, window, ndim)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    assert bool((got <= 1.0).all())


@pytest.mark.usefixtures("poisoned_memory")
@given(
    shape=st.tuples(st.integers(11, 50), st.integers(11, 70), st.integers(11, 40)),
    case=st.sampled_from(CASES),
    seed=st.integers(0, 9),
)
def test_any_shape(shape: tuple[int, int, int], case: tuple[Window, Ndim], seed: int) -> None:
    x, y = pair(*shape, seed=seed)
    got = windowed_ssim(x, y, data_range=0.7, window=case[0], ndim=case[1])
    torch.testing.assert_close(got, exact(x, y, 0.7, *case), rtol=0, atol=1e-12)


# More columns and rows than a block has, and a last block of another size.
@pytest.mark.parametrize(("window", "ndim"), CASES)
@pytest.mark.parametrize("shape", [(11, 11, 600), (11, 131, 269), (79, 17, 11), (37, 41, 43)])
def test_several_blocks(shape: tuple[int, int, int], window: Window, ndim: Ndim) -> None:
    x, y = pair(*shape)
    got = windowed_ssim(x, y, data_range=1.0, window=window, ndim=ndim)
    torch.testing.assert_close(got, exact(x, y, 1.0, window, ndim), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("window", "ndim"), CASES)
def test_the_smallest_volume(window: Window, ndim: Ndim) -> None:
    size = 7 if window == "uniform" else 11
    x, y = pair(size if ndim == 3 else 1, size, size)
    got = windowed_ssim(x, y, data_range=1.0, window=window, ndim=ndim)
    torch.testing.assert_close(got, exact(x, y, 1.0, window, ndim), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("window", "ndim"), CASES)
def test_same_bits_for_any_instruction_set_and_thread_count(
    restored: Any, window: Window, ndim: Ndim
) -> None:
    x, y = (v.float() for v in pair(45, 61, 67))
    seen = []
    for isa in ("baseline", "avx2", "avx512"):
        try:
            restored.use_isa(isa)
        except ValueError:  # Not one of this machine.
            continue
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            seen.append(windowed_ssim(x, y, data_range=1.0, window=window, ndim=ndim))
    assert len(seen) >= 3
    assert all(torch.equal(other, seen[0]) for other in seen[1:])


@pytest.mark.parametrize(("window", "ndim"), CASES)
@pytest.mark.parametrize(
    "types",
    [
        (torch.uint8, torch.float32),
        (torch.uint16, torch.uint8),
        (torch.bfloat16, torch.float64),
        (torch.float16, torch.int16),
    ],
    ids=str,
)
def test_two_types_and_the_map(
    types: tuple[torch.dtype, torch.dtype], window: Window, ndim: Ndim
) -> None:
    x, y = ((v * 200).clamp(0, 250).to(t) for v, t in zip(pair(12, 13, 14), types, strict=True))
    options: dict[str, Any] = {"data_range": 50.0, "window": window, "ndim": ndim}
    got = windowed_ssim(x, y, scale=0.25, offset=-3.0, clip=(2.0, 40.0), **options)
    mapped = [(v.double() * 0.25 - 3.0).clamp(2.0, 40.0) for v in (x, y)]
    torch.testing.assert_close(got, exact(*mapped, 50.0, window, ndim), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("window", "ndim"), CASES)
def test_nan_is_not_hidden(window: Window, ndim: Ndim) -> None:
    x, y = pair(12, 13, 14)
    y[5, 6, 7] = float("nan")
    got = windowed_ssim(x, y, data_range=1.0, window=window, ndim=ndim, clip=(0.0, 1.0))
    assert torch.equal(got.isnan(), (torch.arange(12) == 5) if ndim == 2 else torch.tensor(True))


@pytest.mark.parametrize(("window", "ndim"), CASES)
def test_views_of_leaves(window: Window, ndim: Ndim) -> None:
    x, y = (v.requires_grad_() for v in pair(14, 16, 30))
    options: dict[str, Any] = {"data_range": 1.0, "window": window, "ndim": ndim}
    for view in (
        (slice(1, 13), slice(2, 15), slice(3, 29)),
        (slice(None), slice(None), slice(None, None, 2)),
    ):
        got = windowed_ssim(x[view], y[view], **options)
        with pytest.raises(RuntimeError, match="no autograd formula"):
            got.sum().backward()
        assert torch.equal(
            got, windowed_ssim(x[view].contiguous(), y[view].contiguous(), **options)
        )


@pytest.mark.parametrize("ndim", [2, 3])
def test_addresses_past_two_to_the_31(ndim: Ndim) -> None:
    # 3 GB of address space, of which a few pages are ever touched.
    storage = torch.empty(3_000_000_000, dtype=torch.uint8)
    far = storage.as_strided((8, 7, 9), (400_000_000, 16, 1))
    x, y = ((v * 200).clamp(0, 255).to(torch.uint8) for v in pair(8, 7, 9))
    far.copy_(x)
    want = windowed_ssim(x, y, data_range=255.0, ndim=ndim)
    assert torch.equal(windowed_ssim(far, y, data_range=255.0, ndim=ndim), want)


@pytest.mark.parametrize(("window", "ndim"), CASES)
def test_compiles_whole(window: Window, ndim: Ndim) -> None:
    x, y = pair(12, 13, 14)

    def ssim(x: Tensor, y: Tensor) -> Tensor:
        return 1.0 - windowed_ssim(x, y * 1.5, data_range=1.0, window=window, ndim=ndim)

    compiled = torch.compile(ssim, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, y), ssim(x, y))


def test_the_module_checks_what_it_is_given(restored: Any) -> None:
    x = torch.zeros(7, 8, 9)
    taps, rest = [0.0] * 11, ([1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0], 1)
    sums = torch.empty(7, dtype=torch.float64)
    for arguments in ((sums, x, x[:, :6]), (sums[1:], x, x)):
        with pytest.raises(ValueError, match="expected"):
            restored.windowed_ssim(*arguments, False, False, taps, *rest)
    with pytest.raises(TypeError, match="volume: expected"):
        restored.windowed_ssim(sums, x.int(), x, False, False, taps, *rest)
