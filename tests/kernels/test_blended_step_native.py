"""blended_step on a CPU: bit for bit the reference, whatever threads and instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.blended_step import COLUMNS, NoiseKey, blended_step
from microdiffusion_fast.kernels.blended_step.reference import blended_step_reference
from microdiffusion_fast.kernels.counter_noise import counter_noise

if _backend.native is None:
    pytest.skip(f"native module: {_backend.native_missing}", allow_module_level=True)
native = _backend.native

ROW = {
    "p": -0.7, "q": 1.3, "w": 1.8, "low": -1.5, "high": 1.2, "trust": 0.6,
    "a": 0.4, "b": 0.5, "c": -0.2, "d": 0.3, "gamma": 0.35, "key": 11.0,
}  # fmt: skip
SHAPE = (13, 33, 37)  # odd, and more columns than a loop takes at a time
# torch sums the slices of a column in order, but for a plane's last columns beyond whole vectors.
EVEN = (13, 96, 96)  # more columns than a tile of a window
MEAN = {"weights": [1 / 6] * 6, "stride": 6, "start": 1}
UNEVEN = {"weights": [0.2, 0.5, 0.0, 0.3], "stride": 5, "start": 2}


def table(dtype: torch.dtype = torch.float64) -> Tensor:
    rows = [[0.0] * len(COLUMNS), [ROW[c] for c in COLUMNS]]
    return torch.tensor(rows, dtype=dtype)


def case(*parts: str, shape: tuple[int, ...] = SHAPE, **geometry: Any) -> dict[str, Any]:
    """Arguments of a step with these parts beside x, prior and cond."""
    generator = torch.Generator().manual_seed(0)
    names = ("x", "prior", "cond", "uncond", "noise", "history", "projections")
    draws = {name: torch.randn(shape, generator=generator) for name in names}
    draws["projections"] = draws["projections"][: geometry.pop("count", 2)].clone()
    chosen = {name: draws[name] for name in ("x", "prior", "cond", *parts)}
    return {"table": table(), "step": torch.tensor(1), **chosen, **geometry}


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}


def by_reference(arguments: dict[str, Any]) -> dict[str, Any]:
    arguments = copied(arguments)
    blended_step_reference(**arguments)
    return arguments


PARTS = [
    (),
    ("uncond",),
    ("noise",),
    ("history",),
    ("uncond", "noise", "history"),
]


class TestBits:
    @pytest.mark.parametrize("parts", PARTS)
    @pytest.mark.parametrize(
        "geometry", [{}, MEAN, {**MEAN, "start": 0}], ids=["plain", "inside", "from the first"]
    )
    def test_equals_the_reference(self, parts: tuple[str, ...], geometry: dict[str, Any]) -> None:
        parts = (*parts, "projections") if geometry else parts
        arguments = case(*parts, shape=EVEN if geometry else SHAPE, **geometry)
        expected = by_reference(arguments)
        blended_step(**arguments)
        assert torch.equal(arguments["x"], expected["x"])
        if "history" in parts:
            assert torch.equal(arguments["history"], expected["history"])

    @given(
        narrow=st.sets(
            st.sampled_from(["x", "prior", "cond", "uncond", "noise", "history", "projections"])
        ),
        float32_table=st.booleans(),
    )
    def test_any_mix_with_bfloat16(self, narrow: set[str], float32_table: bool) -> None:
        arguments = case("uncond", "noise", "history", "projections", shape=(13, 8, 8), **MEAN)
        for name in narrow:
            arguments[name] = arguments[name].bfloat16()
        if float32_table:
            arguments["table"] = arguments["table"].float()
        expected = by_reference(arguments)
        blended_step(**arguments)
        for name in ("x", "history"):
            assert torch.equal(arguments[name], expected[name]), name

    def test_bfloat16_rounds_as_torch_does(self) -> None:
        values = torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, 3.4e38, 1e-40, float("inf")])
        nan = torch.tensor([float("nan")])
        cond = torch.cat([values, -values, nan]).view(1, 1, -1)
        x = torch.zeros_like(cond, dtype=torch.bfloat16)
        neutral = torch.tensor([[1.0, 0, 0, -torch.inf, torch.inf, 0, 1, 0, 0, 0, 0, 0]])
        blended_step(x, torch.zeros_like(cond), cond, neutral, torch.tensor(0))
        torch.testing.assert_close(x, cond.bfloat16(), rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_values_that_are_not_finite(self, bad: float) -> None:
        for name in ("x", "cond", "history"):
            arguments = case("uncond", "noise", "history", shape=(3, 5, 7))
            arguments[name][1, 2, 3] = bad
            expected = by_reference(arguments)
            blended_step(**arguments)
            torch.testing.assert_close(
                arguments["x"], expected["x"], rtol=0, atol=0, equal_nan=True
            )

    @pytest.mark.parametrize("key", [None, NoiseKey(5, 2, (2, 1, 3), (20, 99, 101))])
    def test_instruction_set_and_threads_do_not_show(self, key: NoiseKey | None) -> None:
        arguments = case("uncond", "history", "projections", shape=EVEN, **UNEVEN)
        arguments["noise"] = key
        results = []
        for isa in self.instruction_sets():
            for threads in (1, 2, 3, 7):
                native.use_isa(isa)
                torch.set_num_threads(threads)
                one = copied(arguments)
                blended_step(**one)
                results.append(one)
        for other in results[1:]:
            assert torch.equal(results[0]["x"], other["x"])
            assert torch.equal(results[0]["history"], other["history"])

    @pytest.fixture(autouse=True)
    def restored(self) -> Iterator[None]:
        isa, threads = native.isa(), torch.get_num_threads()
        yield
        native.use_isa(isa)
        torch.set_num_threads(threads)

    @staticmethod
    def instruction_sets() -> list[str]:
        found = []
        for isa in ("baseline", "avx2", "avx512"):
            try:
                native.use_isa(isa)
            except ValueError:
                continue
            found.append(isa)
        return found


class TestConsistency:
    @pytest.mark.parametrize(
        ("weights", "stride", "start", "count"),
        [
            pytest.param([0.2, 0.5, 0.0, 0.3], 5, 2, 2, id="gaps, uneven, a zero"),
            pytest.param([0.1, 0.6, 0.3], 3, 0, 4, id="disjoint, uneven"),
            pytest.param([0.25] * 4, 6, 1, 2, id="mean with gaps"),
            pytest.param([0.5, 0.5], 1, 3, 1, id="one window, stride below its length"),
            pytest.param([1.0], 2, 0, 7, id="single slices"),
            pytest.param([0.3, 0.4, 0.3], 2, 1, 5, id="overlap"),
        ],
    )
    def test_against_float64(
        self,
        as_accurate: Callable[..., None],
        weights: list[float],
        stride: int,
        start: int,
        count: int,
    ) -> None:
        geometry = {"weights": weights, "stride": stride, "start": start, "count": count}
        arguments = case("uncond", "noise", "history", "projections", **geometry)
        plain = by_reference(arguments)
        exact = by_reference(
            {k: v.double() if isinstance(v, Tensor) and v.ndim == 3 else v
             for k, v in arguments.items()}
        )  # fmt: skip
        blended_step(**arguments)
        for name in ("x", "history"):
            as_accurate(arguments[name], plain[name], exact[name])

    def test_long_windows(self) -> None:
        """Tiles get narrower as windows get longer; the bits stay."""
        for slices in (3, 65, 400, 1100):
            geometry = {"weights": [1 / slices] * slices, "stride": slices, "count": 1}
            arguments = case("projections", shape=(1101, 3, 47), **geometry)
            whole = copied(arguments)
            blended_step(**arguments)
            for column in (slice(0, 20), slice(20, 47)):
                part = copied(whole)
                for name in ("x", "prior", "cond", "projections"):
                    part[name] = whole[name][..., column].contiguous()
                blended_step(**part)
                assert torch.equal(part["x"], arguments["x"][..., column])


class TestDrawnNoise:
    @given(
        first=st.tuples(st.integers(0, 8), st.integers(0, 20), st.integers(0, 20)),
        size=st.tuples(st.integers(1, 5), st.integers(1, 13), st.integers(1, 17)),
    )
    def test_a_tile_is_a_part_of_the_whole(
        self, first: tuple[int, int, int], size: tuple[int, int, int]
    ) -> None:
        whole = case("uncond", "history")
        region = tuple(slice(o, o + n) for o, n in zip(first, size, strict=True))
        tile = {
            k: v[region].contiguous() if isinstance(v, Tensor) and v.ndim == 3 else v
            for k, v in whole.items()
        }
        blended_step(**whole, noise=NoiseKey(5, 2))
        blended_step(**tile, noise=NoiseKey(5, 2, first, SHAPE))
        assert torch.equal(tile["x"], whole["x"][region])

    @pytest.mark.parametrize("first", [2**31 - 3, 2**34 - 5, 2**62 + 2, 2**63 - 13])
    def test_huge_volumes(self, first: int) -> None:
        place = {"offset": (0, 0, first), "volume_shape": (1, 1, first + 12)}
        drawn = case(shape=(1, 1, 12))
        given = copied(drawn)
        blended_step(**drawn, noise=NoiseKey(3, **place))  # type: ignore[arg-type]
        noise = counter_noise((1, 1, 12), seed=3, step=11, **place)  # type: ignore[arg-type]
        blended_step(**given, noise=noise)
        assert torch.equal(drawn["x"], given["x"])

    @pytest.mark.parametrize("word", [2.0**24 + 1, 2.0**32 - 1])
    def test_large_step_words(self, word: float) -> None:
        arguments = case(shape=(2, 3, 5))
        arguments["table"][1, COLUMNS.index("key")] = word
        given = copied(arguments)
        blended_step(**arguments, noise=NoiseKey(3))
        blended_step(**given, noise=counter_noise((2, 3, 5), seed=3, step=int(word)))
        assert torch.equal(arguments["x"], given["x"])

    @pytest.mark.parametrize("word", [-1.0, 2.0**32])
    def test_step_words_out_of_range(self, word: float) -> None:
        arguments = case(shape=(2, 3, 5))
        arguments["table"][1, COLUMNS.index("key")] = word
        with pytest.raises(ValueError, match=r"^key: expected an integer in \[0, 2\^32\)"):
            blended_step(**arguments, noise=NoiseKey(3))


class TestWhatItTakes:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    @pytest.mark.parametrize("name", ["x", "cond", "history"])
    def test_other_dtypes_go_to_the_reference(self, name: str, dtype: torch.dtype) -> None:
        arguments = case("uncond", "noise", "history")
        arguments[name] = arguments[name].to(dtype)
        expected = by_reference(arguments)
        blended_step(**arguments)
        assert torch.equal(arguments["x"], expected["x"])

    @pytest.mark.parametrize("name", ["x", "cond", "history", "noise", "projections"])
    def test_layouts(self, name: str) -> None:
        arguments = case("uncond", "noise", "history", "projections", shape=EVEN, **MEAN)
        expected = by_reference(arguments)
        arguments[name] = arguments[name].permute(2, 0, 1).contiguous().permute(1, 2, 0)
        blended_step(**arguments)
        assert torch.equal(arguments["x"], expected["x"])

    def test_predictions_with_a_gradient(self) -> None:
        arguments = case("uncond")
        expected = by_reference(arguments)
        arguments["cond"].requires_grad_()
        with torch.no_grad():
            blended_step(**arguments)
        assert torch.equal(arguments["x"], expected["x"])

    @pytest.mark.parametrize("step", [-1, 2])
    def test_a_row_that_is_not_there(self, step: int) -> None:
        arguments = case()
        with pytest.raises(ValueError, match=r"^step: expected a row in \[0, 2\), got"):
            blended_step(**(arguments | {"step": torch.tensor(step)}))

    def test_the_module_checks_its_memory(self) -> None:
        """Called by hand with what does not fit, it refuses instead of writing elsewhere."""
        x, row = torch.zeros(4, 2, 3), [0.0] * 11
        good: list[Any] = [
            x,
            x.clone(),
            x.clone(),
            None,
            None,
            None,
            None,
            row,
            None,
            [],
            1.0,
            1,
            0,
            1,
        ]
        native.blended_step(*good)
        for index, value in (
            (1, torch.zeros(4, 2, 2)),
            (2, x.double()),
            (3, torch.zeros(3, 2, 3)),
        ):
            with pytest.raises(ValueError, match="volumes: expected"):
                native.blended_step(*good[:index], value, *good[index + 1 :])
        windows = [*good[:6], torch.zeros(2, 2, 3), row, None, [0.5] * 3, 1.0, 3, 0, 1]
        with pytest.raises(ValueError, match="start: expected disjoint windows inside x"):
            native.blended_step(*windows)
        key = (0, 0, 0, (0, 0, 0), (3, 2, 3))
        with pytest.raises(ValueError, match="offset: expected the block inside the volume"):
            native.blended_step(*good[:8], key, *good[9:])
