"""counter_noise in Triton's interpreter: the published integers, float32 normals, blocks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.counter_noise.reference import (
    box_muller,
    counter_noise_reference,
    philox4x32,
)

if _backend.triton_missing is not None:
    pytest.skip(f"triton: {_backend.triton_missing}", allow_module_level=True)

import triton
import triton.language as tl

from microdiffusion_fast.kernels.counter_noise import triton_kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Published known answers: Random123, tests/kat_vectors, the lines "philox4x32 10".
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@triton.jit
def _words_kernel(out, quad, seed, step, stream):
    words = triton_kernel.philox_words(tl.load(quad + tl.arange(0, 2)), seed, step, stream)
    for i in tl.static_range(4):
        tl.store(out + 2 * i + tl.arange(0, 2), words[i].to(tl.int64))


@triton.jit
def _box_muller_kernel(out, words, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word0 = tl.load(words + 2 * i).to(tl.uint32)
    word1 = tl.load(words + 2 * i + 1).to(tl.uint32)
    n0, n1 = triton_kernel.box_muller(word0, word1)
    tl.store(out + 2 * i, n0)
    tl.store(out + 2 * i + 1, n1)


def kernel_words(counter: list[int], key: list[int]) -> list[int]:
    signed = [(high << 32 | low) for low, high in (counter[:2], key)]
    quad, seed = (n - (n >> 63 << 64) for n in signed)
    out = torch.empty(4, 2, dtype=torch.int64, device=DEVICE)
    quads = torch.tensor([quad, quad], device=DEVICE)
    _words_kernel[(1,)](out, quads, seed, *counter[2:])
    assert torch.equal(out[:, 0], out[:, 1])
    return out[:, 0].tolist()


def draw(shape: tuple[int, ...], **options: Any) -> Tensor:
    defaults: dict[str, Any] = {
        "seed": 3, "step": 4, "stream": 0, "offset": (0, 0, 0), "volume_shape": shape,
    }  # fmt: skip
    out = torch.full(shape, float("nan"), device=DEVICE)
    triton_kernel.counter_noise_triton(out, **(defaults | options))
    return out


def exact(shape: tuple[int, ...], **options: Any) -> Tensor:
    defaults: dict[str, Any] = {
        "seed": 3, "step": 4, "stream": 0, "offset": (0, 0, 0), "volume_shape": shape,
    }  # fmt: skip
    return counter_noise_reference(
        shape, dtype=torch.float64, device=DEVICE, **(defaults | options)
    )


def assert_normals(result: Tensor, expected: Tensor) -> None:
    """Within the relative error that the kernel's docstring states; a NaN fails.

    Next to a multiple of a quarter turn the float64 reference itself is off by some 1e-15.
    """
    excess = (result.double() - expected).abs() - 4e-7 * expected.abs()
    assert excess.max().item() < 1e-14


class TestIntegers:
    @pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
    def test_known_answers(self, counter: str, key: str, expected: str) -> None:
        given_words, key_words, answer = (
            [int(word, 16) for word in text.split()] for text in (counter, key, expected)
        )
        assert kernel_words(given_words, key_words) == answer

    @given(
        counter=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
        key=st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2),
    )
    def test_equal_the_reference(self, counter: list[int], key: list[int]) -> None:
        c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
        expected = philox4x32((c0, c1, c2, c3), (key[0], key[1]))
        assert kernel_words(counter, key) == [int(word) for word in expected]


class TestNormals:
    def test_every_kind_of_word(self) -> None:
        """Ends, the change of formula at sqrt(1/2), powers of two, and words drawn at random."""
        edges = [0, 1, 2, 2**31, 2**32 - 2, 2**32 - 1, 0xB504F333, 0xB504F334, 0xB504F335]
        edges += [2**k + d for k in range(2, 32) for d in (-1, 0, 1)]
        grid = torch.cartesian_prod(torch.tensor(edges), torch.tensor(edges))
        random = torch.randint(0, 2**32, (32768 - len(grid), 2), generator=torch.manual_seed(0))
        words = torch.cat([grid, random])
        out = torch.full(words.shape, float("nan"), device=DEVICE)
        _box_muller_kernel[(32,)](out, words.to(DEVICE), BLOCK=1024, enable_fp_fusion=False)
        assert_normals(out.cpu(), torch.stack(box_muller(*words.unbind(1)), dim=1))

    def test_closer_than_plain_float32(self) -> None:
        """The same formula in float32 torch loses more."""
        words = torch.randint(0, 2**32, (32768, 2), generator=torch.manual_seed(1))
        out = torch.empty(words.shape, device=DEVICE)
        _box_muller_kernel[(32,)](out, words.to(DEVICE), BLOCK=1024, enable_fp_fusion=False)
        u, v = ((words.float() + 0.5) * 2.0**-32).unbind(1)
        radius = torch.sqrt(-2 * torch.log(u))
        plain = torch.stack(
            [radius * torch.cos(2 * math.pi * v), radius * torch.sin(2 * math.pi * v)], dim=1
        )
        expected = torch.stack(box_muller(*words.unbind(1)), dim=1)
        assert (out.cpu() - expected).abs().max() < (plain - expected).abs().max()


@st.composite
def blocks(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A volume's shape and a block in it: rows start anywhere in a group of four voxels."""
    volume = tuple(draw(st.integers(1, 13)) for _ in range(3))
    offset = tuple(draw(st.integers(0, v - 1)) for v in volume)
    shape = tuple(draw(st.integers(1, v - o)) for v, o in zip(volume, offset, strict=True))
    return volume, offset, shape


class TestBlocks:
    @settings(max_examples=50)
    @given(case=blocks(), seed=st.integers(0, 2**64 - 1), stream=st.integers(0, 2**32 - 1))
    def test_a_block_is_a_slice_of_the_whole(
        self, case: tuple[tuple[int, ...], ...], seed: int, stream: int
    ) -> None:
        volume, offset, shape = case
        whole = draw(volume, seed=seed, stream=stream)
        place: dict[str, Any] = {"offset": offset, "volume_shape": volume}
        block = draw(shape, seed=seed, stream=stream, **place)
        region = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
        assert torch.equal(block, whole[region])
        assert_normals(block, exact(shape, seed=seed, stream=stream, **place))

    @pytest.mark.parametrize(
        ("shape", "offset", "volume"),
        [
            pytest.param((3, 20, 32), (0, 0, 0), (3, 20, 32), id="whole volume"),
            pytest.param((2, 21, 33), (1, 0, 0), (4, 21, 33), id="planes, misaligned"),
            pytest.param((2, 9, 41), (1, 3, 5), (4, 21, 64), id="rows, misaligned"),
            pytest.param((1, 1, 3001), (0, 0, 2), (1, 1, 3007), id="many programs"),
        ],
    )
    def test_layouts(
        self, shape: tuple[int, ...], offset: tuple[int, ...], volume: tuple[int, ...]
    ) -> None:
        place: dict[str, Any] = {"offset": offset, "volume_shape": volume}
        assert_normals(draw(shape, **place), exact(shape, **place))

    @pytest.mark.parametrize("first", [2**31 - 3, 2**32 + 1, 2**34 - 5, 2**62 + 2, 2**63 - 13])
    def test_huge_volumes(self, first: int) -> None:
        """The counter's two words follow the 64-bit index across every 32-bit boundary."""
        place: dict[str, Any] = {"offset": (0, 0, first), "volume_shape": (1, 1, first + 12)}
        assert_normals(draw((1, 1, 12), **place), exact((1, 1, 12), **place))
        rows: dict[str, Any] = {"offset": (5000, 7, 9), "volume_shape": (6000, 4000, 4001)}
        assert_normals(draw((2, 3, 7), **rows), exact((2, 3, 7), **rows))

    def test_writes_nothing_else(self) -> None:
        """Programs past the end of the block leave the memory behind it alone."""
        buffer = torch.zeros(2000, device=DEVICE)
        out = buffer[:105].view(3, 5, 7)
        options: dict[str, Any] = {"seed": 1, "step": 1, "stream": 0}
        triton_kernel.counter_noise_triton(
            out, offset=(1, 2, 3), volume_shape=(6, 9, 11), **options
        )
        assert (buffer[:105] != 0).all()
        assert (buffer[105:] == 0).all()


class TestTheStepWord:
    @pytest.mark.parametrize("step", [0, 1, 2**24 + 1, 2**31 + 5, 2**32 - 1])
    def test_on_the_device(self, step: int) -> None:
        """A step that the host does not know draws the same noise."""
        word = torch.tensor(step, device=DEVICE)
        assert torch.equal(draw((2, 3, 5), step=word), draw((2, 3, 5), step=step))
        assert_normals(draw((2, 3, 5), step=step), exact((2, 3, 5), step=step))

    @pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**63 + 5, 2**64 - 1])
    def test_signed_seeds(self, seed: int) -> None:
        """The dispatcher's integers are signed: the upper half of the seeds arrives as negative."""
        signed = seed - (seed >> 63 << 64)
        assert_normals(draw((2, 3, 5), seed=signed), exact((2, 3, 5), seed=seed))
