"""counter_noise: the generator's integers, the normals, and that noise belongs to voxels."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.counter_noise import counter_noise
from microdiffusion_fast.kernels.counter_noise.reference import (
    box_muller,
    counter_noise_reference,
    philox4x32,
)

needs_native = pytest.mark.skipif(
    _backend.native is None, reason=f"native module: {_backend.native_missing}"
)

# Published known answers: Random123, tests/kat_vectors, the lines "philox4x32 10".
KNOWN_ANSWERS = [
    pytest.param(
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        id="zeros",
    ),
    pytest.param(
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
        id="ones",
    ),
    pytest.param(
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
        id="pi",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def reference_words(counter: list[int], key: list[int]) -> list[int]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    return [int(word) for word in philox4x32((c0, c1, c2, c3), (key[0], key[1]))]


def reference_noise(shape: tuple[int, int, int], **options: Any) -> Tensor:
    defaults: dict[str, Any] = {"stream": 0, "offset": (0, 0, 0), "volume_shape": shape}
    return counter_noise_reference(shape, **(defaults | options))


BOTH = [
    pytest.param(counter_noise, id="op"),
    pytest.param(reference_noise, id="reference"),
]


class TestPhilox:
    @pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
    def test_reference_known_answers(self, counter: str, key: str, expected: str) -> None:
        assert reference_words(words(counter), words(key)) == words(expected)

    @needs_native
    @pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
    def test_native_known_answers(self, counter: str, key: str, expected: str) -> None:
        assert _backend.native is not None
        assert list(_backend.native.philox4x32(words(counter), words(key))) == words(expected)

    @needs_native
    @given(
        counter=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
        key=st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2),
    )
    def test_native_equals_reference(self, counter: list[int], key: list[int]) -> None:
        assert _backend.native is not None
        assert list(_backend.native.philox4x32(counter, key)) == reference_words(counter, key)


class TestNormals:
    def test_extreme_words_are_finite(self) -> None:
        ends = torch.tensor([0, 1, 2**31, 2**32 - 2, 2**32 - 1])
        word0, word1 = torch.meshgrid(ends, ends, indexing="ij")
        normals = torch.stack(box_muller(word0, word1))
        assert normals.isfinite().all()
        largest = math.sqrt(-2 * math.log(2.0**-33))
        assert normals.abs().max().item() == pytest.approx(largest, rel=1e-9)

    def test_counter_layout(self) -> None:
        """Voxel 4i + j of the volume takes lane j of the counter (i, step, stream)."""
        seed, step, stream = (7 << 32) | 9, 11, 13
        noise = counter_noise((2, 3, 5), seed=seed, step=step, stream=stream).flatten().double()
        for voxel in range(noise.numel()):
            word = reference_words([voxel // 4, 0, step, stream], [9, 7])
            pair = word[:2] if voxel % 4 < 2 else word[2:]
            radius = math.sqrt(-2 * math.log((pair[0] + 0.5) / 2**32))
            angle = 2 * math.pi * (pair[1] + 0.5) / 2**32
            expected = radius * (math.sin(angle) if voxel % 2 else math.cos(angle))
            assert noise[voxel].item() == pytest.approx(expected, rel=1e-7, abs=1e-12)

    @pytest.mark.parametrize("draw", BOTH)
    def test_distribution(self, draw: Callable[..., Tensor]) -> None:
        x = draw((50, 100, 100), seed=20240601, step=5).double().flatten()
        n = x.numel()
        # Five standard errors of each moment of a standard normal.
        for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            error = (x.pow(power).mean() - moment).abs().item()
            assert error < 5 * math.sqrt(variance / n), f"moment {power}"
        assert stats.kstest(x.numpy(), "norm").pvalue > 1e-3

    def test_neighbours_are_uncorrelated(self) -> None:
        x = counter_noise((64, 64, 64), seed=3, step=0).double().flatten()
        for lag in (1, 2, 3, 4, 64, 64 * 64):
            assert abs((x[lag:] * x[:-lag]).mean().item()) < 5 / math.sqrt(len(x) - lag), lag

    @needs_native
    def test_native_against_float64(self) -> None:
        """The float32 result is the float64 normal rounded once, all but always the same way."""
        shape = (64, 64, 67)
        exact = reference_noise(shape, seed=1, step=2, dtype=torch.float64).numpy()
        native = counter_noise(shape, seed=1, step=2, device="cpu").numpy()
        spacing = np.spacing(np.abs(native)).astype(np.float64)
        assert np.max(np.abs(native - exact) / spacing) < 0.501
        rounded = exact.astype(np.float32)
        assert np.count_nonzero(native != rounded) <= 2


@st.composite
def blocks(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A volume's shape and a block in it: rows start anywhere in a group of four voxels."""
    volume = tuple(draw(st.integers(1, 13)) for _ in range(3))
    offset = tuple(draw(st.integers(0, v - 1)) for v in volume)
    shape = tuple(draw(st.integers(1, v - o)) for v, o in zip(volume, offset, strict=True))
    return volume, offset, shape


class TestVoxelsOwnTheirNoise:
    @pytest.mark.parametrize("draw", BOTH)
    @given(case=blocks(), seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**32 - 1))
    def test_block_is_a_slice_of_the_whole(
        self,
        draw: Callable[..., Tensor],
        case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
        seed: int,
        step: int,
    ) -> None:
        volume, offset, shape = case
        whole = draw(volume, seed=seed, step=step)
        block = draw(shape, seed=seed, step=step, offset=offset, volume_shape=volume)
        region = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
        assert torch.equal(block, whole[region])

    @needs_native
    @given(case=blocks(), seed=st.integers(0, 2**64 - 1), stream=st.integers(0, 2**32 - 1))
    def test_native_equals_reference(
        self,
        case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
        seed: int,
        stream: int,
    ) -> None:
        volume, offset, shape = case
        options = {"seed": seed, "step": 3, "stream": stream}
        options |= {"offset": offset, "volume_shape": volume}
        a, b = counter_noise(shape, **options), reference_noise(shape, **options)
        torch.testing.assert_close(a, b, rtol=2.0**-23, atol=0.0)

    @pytest.mark.parametrize(
        ("shape", "offset", "volume"),
        [
            pytest.param((1, 1, 70_001), (0, 0, 3), (1, 1, 70_005), id="longer than a work item"),
            pytest.param((2, 150, 121), (1, 0, 0), (4, 150, 121), id="whole planes"),
            pytest.param((3, 2, 1), (0, 1, 6), (3, 4, 9), id="one voxel a row"),
        ],
    )
    def test_work_division_does_not_show(
        self, shape: tuple[int, ...], offset: tuple[int, ...], volume: tuple[int, ...]
    ) -> None:
        options: dict[str, Any] = {"seed": 17, "step": 4, "stream": 1}
        whole = counter_noise(volume, **options)
        region = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
        block = counter_noise(shape, offset=offset, volume_shape=volume, **options)
        assert torch.equal(block, whole[region])
        expected = reference_noise(
            shape,  # type: ignore[arg-type]
            offset=offset,
            volume_shape=volume,
            **options,
        )
        torch.testing.assert_close(block, expected, rtol=2.0**-23, atol=0.0)

    def test_reference_chunks_do_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        options: dict[str, Any] = {"seed": 1, "step": 1, "offset": (0, 1, 2)}
        options["volume_shape"] = (5, 9, 60)
        whole = reference_noise((4, 7, 53), **options)
        module = counter_noise_reference.__globals__
        for chunk in (1, 5, 13):
            monkeypatch.setitem(module, "_CHUNK", chunk)
            assert torch.equal(reference_noise((4, 7, 53), **options), whole)

    @needs_native
    def test_thread_count_does_not_show(self) -> None:
        assert _backend.native is not None
        results = []
        for threads in (1, 2, 3, 7):
            out = torch.full((9, 40, 333), float("nan"))
            _backend.native.counter_noise(out, (1, 2, 3), (11, 43, 337), 5, 6, 7, threads)
            results.append(out)
        assert results[0].isfinite().all()
        for other in results[1:]:
            assert torch.equal(results[0], other)

    @needs_native
    def test_instruction_set_does_not_show(self) -> None:
        assert _backend.native is not None
        chosen, results = _backend.native.isa(), []
        try:
            for isa in ("baseline", "avx2", "avx512"):
                with contextlib.suppress(ValueError):  # not on this machine
                    _backend.native.use_isa(isa)
                    results.append(counter_noise((5, 33, 333), seed=5, step=6, stream=7))
        finally:
            _backend.native.use_isa(chosen)
        for other in results[1:]:
            assert torch.equal(results[0], other)

    @needs_native
    def test_concurrent_calls(self) -> None:
        """Kernels run outside the interpreter lock: side by side they must not disturb."""
        results: dict[int, Tensor] = {}

        def work(step: int) -> None:
            results[step] = counter_noise((8, 64, 64), seed=0, step=step)

        threads = [threading.Thread(target=work, args=(step,)) for step in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for step, result in results.items():
            assert torch.equal(result, counter_noise((8, 64, 64), seed=0, step=step))

    @pytest.mark.parametrize("draw", BOTH)
    @pytest.mark.parametrize(
        "first",
        [
            pytest.param(2**31 - 3, id="int32 voxel index"),
            pytest.param(2**32 + 1, id="uint32 voxel index"),
            pytest.param(2**34 - 5, id="uint32 counter word"),
            pytest.param(2**62 + 2, id="high counter word"),
            pytest.param(2**63 - 13, id="last index of all"),
        ],
    )
    def test_huge_volumes(self, draw: Callable[..., Tensor], first: int) -> None:
        """The counter's two words follow the 64-bit index across every 32-bit boundary."""
        noise = draw(
            (1, 1, 12), seed=21, step=1, offset=(0, 0, first), volume_shape=(1, 1, first + 12)
        )
        for i, value in enumerate(noise.flatten().tolist()):
            quad, lane = divmod(first + i, 4)
            word = reference_words([quad % 2**32, quad >> 32, 1, 0], [21, 0])
            pair = box_muller(*(torch.tensor(w) for w in (word[:2] if lane < 2 else word[2:])))
            assert value == pytest.approx(pair[lane % 2].item(), rel=1e-6)

    def test_huge_volume_shape(self) -> None:
        """(z * Y + y) * X + x is taken in 64 bits: the same voxel through two volume shapes."""
        a = counter_noise(
            (1, 1, 8), seed=2, step=0, offset=(5000, 7, 9), volume_shape=(6000, 4000, 4000)
        )
        flat = (5000 * 4000 + 7) * 4000 + 9
        b = counter_noise(
            (1, 1, 8), seed=2, step=0, offset=(0, 0, flat), volume_shape=(1, 1, flat + 8)
        )
        assert flat > 2**34
        assert torch.equal(a, b)

    @pytest.mark.parametrize("draw", BOTH)
    def test_seed_step_and_stream_are_independent(self, draw: Callable[..., Tensor]) -> None:
        base: dict[str, int] = {"seed": 5, "step": 6, "stream": 7}
        others: list[dict[str, int]] = [
            {"seed": 6},
            {"seed": 5 + 2**32},
            {"seed": 5 + 2**63},
            {"step": 7},
            {"stream": 6},
            {"step": 7, "stream": 6},
            {"step": 6 + 2**31},
        ]
        x = draw((32, 32, 32), **base).double().flatten()
        for change in others:
            y = draw((32, 32, 32), **(base | change)).double().flatten()
            assert abs((x * y).mean().item()) < 5 / math.sqrt(len(x)), change


class TestOp:
    def test_opcheck(self) -> None:
        arguments = (torch.zeros(2, 3, 5), 7, 1, 0, (0, 0, 1), (4, 5, 9))
        torch.library.opcheck(torch.ops.microdiffusion_fast.counter_noise.default, arguments)

    def test_compiles_without_a_graph_break(self) -> None:
        def step(x: Tensor, seed: int) -> Tensor:
            return x + 2 * counter_noise(tuple(x.shape), seed=seed, step=1)

        compiled = torch.compile(step, fullgraph=True, backend="eager")
        x = torch.zeros(2, 3, 5)
        for seed in (3, 4, 2**63 + 1):
            assert torch.equal(compiled(x, seed), step(x, seed))

    def test_every_voxel_is_written(self, poisoned_memory: None) -> None:
        assert torch.empty(1).isnan().all()
        assert counter_noise((3, 5, 131), seed=0, step=0).isfinite().all()
        assert reference_noise((3, 5, 131), seed=0, step=0).isfinite().all()

    def test_result(self) -> None:
        noise = counter_noise((2, 3, 4), seed=0, step=0)
        assert noise.shape == (2, 3, 4)
        assert noise.dtype == torch.float32
        assert noise.device.type == "cpu"
        assert not noise.requires_grad

    def test_shape_without_data(self) -> None:
        noise = counter_noise((2, 3, 4), seed=0, step=0, device="meta")
        assert (noise.shape, noise.device.type) == ((2, 3, 4), "meta")

    def test_numpy_integers_pass(self) -> None:
        a = counter_noise((np.int64(2), 3, 4), seed=np.uint64(2**64 - 1), step=np.int32(4))
        assert torch.equal(a, counter_noise((2, 3, 4), seed=2**64 - 1, step=4))

    @pytest.mark.parametrize(
        ("change", "error", "argument"),
        [
            ({"shape": (2, 2)}, ValueError, "shape"),
            ({"shape": 8}, ValueError, "shape"),
            ({"shape": (-1, 2, 2)}, ValueError, "shape"),
            ({"shape": (2.0, 2, 2)}, TypeError, "shape"),
            ({"seed": -1}, ValueError, "seed"),
            ({"seed": 2**64}, ValueError, "seed"),
            ({"seed": 1.0}, TypeError, "seed"),
            ({"seed": None}, TypeError, "seed"),
            ({"step": -1}, ValueError, "step"),
            ({"step": 2**32}, ValueError, "step"),
            ({"step": True}, TypeError, "step"),
            ({"stream": -1}, ValueError, "stream"),
            ({"stream": 2**32}, ValueError, "stream"),
            ({"offset": (1, 0, 0)}, ValueError, "volume_shape"),
            ({"offset": (-1, 0, 0), "volume_shape": (9, 9, 9)}, ValueError, "offset"),
            ({"offset": (0, 8, 0), "volume_shape": (9, 9, 9)}, ValueError, "offset"),
            ({"volume_shape": (9, 9)}, ValueError, "volume_shape"),
            ({"volume_shape": (2**21, 2**21, 2**21)}, ValueError, "volume_shape"),
        ],
    )
    def test_bad_arguments(
        self, change: dict[str, Any], error: type[Exception], argument: str
    ) -> None:
        options: dict[str, Any] = {"shape": (2, 2, 2), "seed": 0, "step": 0} | change
        shape = options.pop("shape")
        with pytest.raises(error, match=rf"^{argument}: expected .+, got "):
            counter_noise(shape, **options)
