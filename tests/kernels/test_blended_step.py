"""blended_step: the published updates, the blend, and what the op refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microdiffusion_fast.kernels.axial_projection import axial_projection
from microdiffusion_fast.kernels.blended_step import COLUMNS, NoiseKey, blended_step
from microdiffusion_fast.kernels.blended_step.reference import blended_step_reference
from microdiffusion_fast.kernels.counter_noise import counter_noise

SHAPE = (13, 5, 7)
NEUTRAL = {
    "p": 1.0, "q": 0.0, "w": 0.0, "low": -np.inf, "high": np.inf, "trust": 0.0,
    "a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "gamma": 0.0, "key": 0.0,
}  # fmt: skip


def make_table(*rows: dict[str, float], dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows of the neutral step (x becomes cond) with these columns changed."""
    for row in rows:
        assert set(row) <= set(COLUMNS)
    return torch.tensor([[(NEUTRAL | row)[c] for c in COLUMNS] for row in rows], dtype=dtype)


def volumes(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn((count, *SHAPE), generator=generator, dtype=torch.float64)
    return [draw.clone() for draw in draws.to(dtype)]


def step_tensor(value: int = 0) -> Tensor:
    return torch.tensor(value, dtype=torch.int64)


FULL_ROW = {
    "p": -0.7, "q": 1.3, "w": 1.8, "low": -1.5, "high": 1.2, "trust": 0.6,
    "a": 0.4, "b": 0.5, "c": -0.2, "d": 0.3, "gamma": 0.35, "key": 11.0,
}  # fmt: skip


def full_case(dtype: torch.dtype) -> dict[str, Any]:
    """Every part of a step at once."""
    x, prior, cond, uncond, noise, history = volumes(6, dtype=dtype)
    y = axial_projection(volumes(1, seed=9, dtype=dtype)[0], [0.2, 0.5, 0.3], 4, 1, 3)
    return {
        "x": x, "prior": prior, "cond": cond, "table": make_table({}, FULL_ROW, {}),
        "step": step_tensor(1), "uncond": uncond, "noise": noise, "history": history,
        "projections": y, "weights": [0.2, 0.5, 0.3], "stride": 4, "start": 1,
    }  # fmt: skip


def printed(case: dict[str, Any], row: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """The step in NumPy, float64, voxel sums written out; returns x and the new history."""
    names = ("x", "prior", "cond", "uncond", "noise", "history", "projections")
    x, prior, cond, uncond, noise, history, y = (case[n].double().numpy() for n in names)
    r = NEUTRAL | row
    weights, stride, start = case["weights"], case["stride"], case["start"]
    prediction = cond + r["w"] * (cond - uncond)
    x0 = np.minimum(np.maximum(r["p"] * prediction + r["q"] * x, r["low"]), r["high"])
    for k in range(len(y)):
        lo = start + k * stride
        mean = sum(w * x0[lo + i] for i, w in enumerate(weights))
        change = (y[k] - mean) / sum(w * w for w in weights)
        for i, w in enumerate(weights):
            x0[lo + i] = x0[lo + i] + r["trust"] * w * change
    previous = r["a"] * x0 + r["b"] * x + r["c"] * history + r["d"] * noise
    return previous + r["gamma"] * (prior - previous), x0


class TestTheStep:
    def test_equals_the_equations(self) -> None:
        case = full_case(torch.float64)
        expected, x0 = printed(case, FULL_ROW)
        blended_step(**case)
        np.testing.assert_allclose(case["x"].numpy(), expected, rtol=0, atol=1e-13)
        np.testing.assert_allclose(case["history"].numpy(), x0, rtol=0, atol=1e-13)

    @pytest.mark.parametrize(
        ("dtype", "atol"), [(torch.float32, 2e-6), (torch.bfloat16, 0.05), (torch.float16, 5e-3)]
    )
    def test_lower_precision(self, dtype: torch.dtype, atol: float) -> None:
        case = full_case(dtype)
        expected, _ = printed(case, FULL_ROW)
        blended_step(**case)
        assert case["x"].dtype == dtype
        np.testing.assert_allclose(case["x"].double().numpy(), expected, rtol=0, atol=atol)

    def test_half_precision_rounds_once(self) -> None:
        """The bfloat16 result is the float32 result rounded, not a chain of rounded steps."""
        case = full_case(torch.bfloat16)
        wide = {k: v.float() if k in {"x", "history"} else v for k, v in case.items()}
        blended_step(**case)
        blended_step(**wide)
        assert torch.equal(case["x"], wide["x"].bfloat16())

    def test_float32_table(self) -> None:
        narrow, wide = full_case(torch.float32), full_case(torch.float32)
        narrow["table"] = narrow["table"].float()
        blended_step(**narrow)
        blended_step(**wide)
        torch.testing.assert_close(narrow["x"], wide["x"], rtol=0, atol=0)

    def test_row_is_chosen_by_the_counter(self) -> None:
        prior, cond = volumes(2)
        table = make_table(*({"a": float(k)} for k in range(4)))
        counter = step_tensor(0)
        for k in range(4):
            x = volumes(1, seed=5)[0]
            blended_step(x, prior, cond, table, counter)
            assert torch.equal(x, k * cond)
            counter += 1
        assert counter.item() == 4

    @given(w=st.floats(-1, 5))
    def test_guidance_is_linear(self, w: float) -> None:
        """Equal predictions ignore w, and w = -1 leaves the unconditional one."""
        prior, cond, uncond = volumes(3)
        x = torch.zeros(SHAPE, dtype=torch.float64)
        table = make_table({"w": w})
        blended_step(x, prior, cond, table, step_tensor(), uncond=cond.clone())
        torch.testing.assert_close(x, cond, rtol=1e-12, atol=1e-12)
        blended_step(x, prior, cond, table, step_tensor(), uncond=uncond)
        torch.testing.assert_close(x, cond + w * (cond - uncond), rtol=1e-12, atol=1e-12)
        blended_step(x, prior, cond, make_table({"w": -1.0}), step_tensor(), uncond=uncond)
        assert torch.equal(x, uncond)

    def test_gamma_ends(self) -> None:
        """gamma 1 is the prior and gamma 0 the update, bit for bit."""
        prior, cond = volumes(2)
        for gamma, expected in ((1.0, prior), (0.0, cond)):
            x = volumes(1, seed=4)[0]
            blended_step(x, prior, cond, make_table({"gamma": gamma}), step_tensor())
            assert torch.equal(x, expected)

    @pytest.mark.parametrize(
        ("weights", "stride", "start"),
        [
            pytest.param([1 / 6] * 6, 6, 0, id="disjoint, a slice uncovered"),
            pytest.param([0.1, 0.6, 0.3], 4, 1, id="gaps, uneven"),
            pytest.param([0.3, 0.4, 0.3], 2, 0, id="overlap"),
        ],
    )
    def test_hard_consistency(self, weights: list[float], stride: int, start: int) -> None:
        count = (SHAPE[0] - start - len(weights)) // stride + 1
        truth, prior, cond = volumes(3, dtype=torch.float32)
        y = axial_projection(truth, weights, stride, start, count)
        x = torch.zeros(SHAPE)
        blended_step(
            x, prior, cond, make_table({"trust": 1.0}), step_tensor(),
            projections=y, weights=weights, stride=stride, start=start,
        )  # fmt: skip
        error = (axial_projection(x, weights, stride, start, count) - y).abs().max()
        assert error < 2e-6
        assert (x - cond).abs().max() > 0.1

    def test_default_geometry_is_the_disjoint_mean(self) -> None:
        prior, cond = volumes(2)
        y = volumes(1, seed=7)[0][:3]
        results = []
        for geometry in (
            {"stride": 4},
            {"weights": [0.25] * 4},
            {"weights": torch.full((4,), 0.25)},
        ):
            x = torch.zeros(SHAPE, dtype=torch.float64)
            table = make_table({"trust": 1.0})
            blended_step(x, prior, cond, table, step_tensor(), projections=y, **geometry)  # type: ignore[arg-type]
            results.append(x)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        torch.testing.assert_close(results[0][:12].unflatten(0, (3, 4)).mean(1), y)

    def test_limits_come_before_consistency(self) -> None:
        prior, cond = volumes(2)
        y = torch.full((3, *SHAPE[1:]), 5.0, dtype=torch.float64)
        table = make_table({"low": -0.5, "high": 0.5, "trust": 1.0}, {"low": -0.5, "high": 0.5})
        x = torch.zeros(SHAPE, dtype=torch.float64)
        blended_step(x, prior, cond, table, step_tensor(1))
        assert x.min() == -0.5
        assert x.max() == 0.5
        blended_step(x, prior, cond, table, step_tensor(0), projections=y, stride=4)
        torch.testing.assert_close(x[:12].unflatten(0, (3, 4)).mean(1), y)

    def test_strided_views(self) -> None:
        """Volumes need not be contiguous."""
        dense, strided = full_case(torch.float64), full_case(torch.float64)
        for name in ("x", "cond", "history", "noise"):
            strided[name] = strided[name].permute(2, 0, 1).contiguous().permute(1, 2, 0)
            assert not strided[name].is_contiguous()
        blended_step(**dense)
        blended_step(**strided)
        torch.testing.assert_close(strided["x"], dense["x"])
        torch.testing.assert_close(strided["history"], dense["history"])


class TestNoise:
    def test_drawn_in_the_step(self) -> None:
        """The key draws what counter_noise draws, with the step word of the row."""
        prior, cond = volumes(2, dtype=torch.float32)
        table = make_table({"d": 0.5, "key": 3.0}, {"d": 0.5, "key": 987.0})
        place: dict[str, Any] = {"offset": (2, 1, 3), "volume_shape": (20, 9, 11)}
        for row, word in ((0, 3), (1, 987)):
            for seed in (0, 12, 2**64 - 1):
                drawn, handed = torch.zeros(SHAPE), torch.zeros(SHAPE)
                key = NoiseKey(seed, 2, **place)
                noise = counter_noise(SHAPE, seed=seed, step=word, stream=2, **place)
                blended_step(drawn, prior, cond, table, step_tensor(row), noise=key)
                blended_step(handed, prior, cond, table, step_tensor(row), noise=noise)
                assert torch.equal(drawn, handed)
                assert not torch.equal(drawn, cond)

    def test_does_not_change_with_the_dtype(self) -> None:
        zero = torch.zeros(SHAPE, dtype=torch.float64)
        table = make_table({"a": 0.0, "d": 1.0, "key": 5.0})
        wide = torch.zeros(SHAPE, dtype=torch.float64)
        narrow = torch.zeros(SHAPE)
        for x in (wide, narrow):
            blended_step(x, zero, zero, table, step_tensor(), noise=NoiseKey(1))
        assert torch.equal(wide.float(), narrow)

    def test_whole_volume_by_default(self) -> None:
        zero = torch.zeros(SHAPE)
        table = make_table({"a": 0.0, "d": 1.0, "key": 5.0})
        x = torch.zeros(SHAPE)
        blended_step(x, zero, zero, table, step_tensor(), noise=NoiseKey(1))
        assert torch.equal(x, counter_noise(SHAPE, seed=1, step=5))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_words_stand_for_seed_stream_and_place(self, dtype: torch.dtype) -> None:
        place = {"offset": (3, 1, 2), "volume_shape": tuple(n + 5 for n in SHAPE)}
        words = NoiseKey(2**64 - 3, 7, **place).new_words(SHAPE)
        expected, result = full_case(dtype), full_case(dtype)
        expected["noise"] = NoiseKey(2**64 - 3, 7, **place)
        result["noise"] = NoiseKey(1, 1, (0, 0, 0), place["volume_shape"], words)
        blended_step(**expected)
        blended_step(**result)
        assert torch.equal(result["x"], expected["x"])


BLOCK = [7, 1, 0, 0, 1, *(n + 2 for n in SHAPE)]


class TestOp:
    @pytest.mark.parametrize(
        ("parts", "key", "words"),
        [
            pytest.param({}, [], None, id="bare"),
            pytest.param({"uncond", "noise", "history", "projections"}, [], None, id="everything"),
            pytest.param({"history"}, BLOCK, None, id="drawn noise"),
            pytest.param({"history"}, BLOCK, torch.tensor([2, 4, 9]), id="words"),
        ],
    )
    def test_opcheck(self, parts: set[str], key: list[int], words: Tensor | None) -> None:
        case = full_case(torch.float32)
        optional = [case[name] if name in parts else None for name in ("uncond", "noise")]
        arguments = (
            *(case[name] for name in ("x", "prior", "cond", "table", "step")),
            *optional,
            key,
            words,
            case["history"] if "history" in parts else None,
            case["projections"] if "projections" in parts else None,
            case["weights"], case["stride"], case["start"],
        )  # fmt: skip
        torch.library.opcheck(torch.ops.microdiffusion_fast.blended_step.default, arguments)

    def test_compiles_without_a_graph_break(self) -> None:
        case, expected = full_case(torch.float32), full_case(torch.float32)

        def advance(case: dict[str, Any]) -> None:
            blended_step(**case)

        torch.compile(advance, fullgraph=True, backend="eager")(case)
        blended_step(**expected)
        assert torch.equal(case["x"], expected["x"])
        assert torch.equal(case["history"], expected["history"])

    def test_is_the_reference(self) -> None:
        case, expected = full_case(torch.float64), full_case(torch.float64)
        blended_step(**case)
        blended_step_reference(**expected)
        assert torch.equal(case["x"], expected["x"])

    def test_writes_nothing_else(self) -> None:
        case, copy = full_case(torch.float64), full_case(torch.float64)
        blended_step(**case)
        for name in ("prior", "cond", "uncond", "noise", "projections", "table", "step"):
            assert torch.equal(case[name], copy[name]), name

    def test_empty(self) -> None:
        empty = torch.zeros(0, 5, 7)
        blended_step(empty, empty.clone(), empty.clone(), make_table({}), step_tensor())
        assert empty.shape == (0, 5, 7)

    def test_a_row_that_is_not_there(self) -> None:
        x, prior, cond = volumes(3)
        before = x.clone()
        with pytest.raises(ValueError, match=r"^step: expected a row in \[0, 1\), got 1"):
            blended_step(x, prior, cond, make_table({}), step_tensor(1))
        assert torch.equal(x, before)


Z = torch.zeros
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": Z(3, 4)}, ValueError, "x"),
    ({"x": Z(SHAPE, dtype=torch.int32)}, TypeError, "x"),
    ({"x": np.zeros(SHAPE)}, TypeError, "x"),
    ({"x": Z(1, 5, 7).expand(SHAPE)}, ValueError, "x"),
    ({"prior": Z(13, 5, 6)}, ValueError, "prior"),
    ({"prior": Z(1, 5, 7)}, ValueError, "prior"),
    ({"cond": Z(SHAPE, dtype=torch.uint8)}, TypeError, "cond"),
    ({"cond": Z(SHAPE, device="meta")}, ValueError, "cond"),
    ({"uncond": Z(13, 5)}, ValueError, "uncond"),
    ({"noise": Z(13, 5, 8)}, ValueError, "noise"),
    ({"noise": 3}, TypeError, "noise"),
    ({"noise": NoiseKey(-1)}, ValueError, "seed"),
    ({"noise": NoiseKey(2**64)}, ValueError, "seed"),
    ({"noise": NoiseKey(0, offset=(1, 0, 0))}, ValueError, "volume_shape"),
    ({"noise": NoiseKey(0, offset=(0, 0), volume_shape=(99, 99, 9))}, ValueError, "offset"),
    ({"noise": NoiseKey(0, offset=(1, 0, 0), volume_shape=SHAPE)}, ValueError, "offset"),
    ({"noise": NoiseKey(0, stream=-1)}, ValueError, "stream"),
    ({"noise": NoiseKey(0, words=torch.zeros(3))}, TypeError, "noise"),
    ({"noise": NoiseKey(0, words=torch.zeros(2, dtype=torch.int64))}, ValueError, "noise"),
    ({"history": Z(12, 5, 7)}, ValueError, "history"),
    ({"history": Z(1, 5, 7).expand(SHAPE)}, ValueError, "history"),
    ({"table": Z(3, len(COLUMNS) + 1)}, ValueError, "table"),
    ({"table": Z(0, len(COLUMNS))}, ValueError, "table"),
    ({"table": Z(3, len(COLUMNS)).half()}, TypeError, "table"),
    ({"table": Z(3, len(COLUMNS), device="meta")}, ValueError, "table"),
    ({"step": 1}, TypeError, "step"),
    ({"step": torch.tensor(1.0)}, TypeError, "step"),
    ({"step": torch.tensor([0, 1])}, ValueError, "step"),
    ({"projections": Z(3, 5, 6)}, ValueError, "projections"),
    ({"projections": Z(0, 5, 7)}, ValueError, "projections"),
    ({"projections": Z(3, 5, 7), "weights": None, "stride": None}, ValueError, "weights"),
    ({"projections": Z(3, 5, 7), "weights": []}, ValueError, "weights"),
    ({"projections": Z(3, 5, 7), "stride": 0}, ValueError, "stride"),
    ({"projections": Z(3, 5, 7), "start": -1}, ValueError, "start"),
    ({"projections": Z(3, 5, 7), "weights": [0.5, np.inf]}, ValueError, "weights"),
    ({"projections": Z(4, 5, 7)}, ValueError, "start"),
    ({"table": make_table({"gamma": 0.5}, {"gamma": -0.1}, {})}, ValueError, "gamma"),
    ({"table": make_table({}, {}, {"gamma": 1.01})}, ValueError, "gamma"),
    ({"table": make_table({}, {"gamma": np.nan}, {})}, ValueError, "gamma"),
]


class TestRefusals:
    @pytest.mark.parametrize(("change", "error", "argument"), BAD)
    def test_bad_arguments(
        self, change: dict[str, Any], error: type[Exception], argument: str
    ) -> None:
        case = full_case(torch.float32)
        before = case["x"].clone()
        with pytest.raises(error, match=rf"^{argument}: expected .+, got "):
            blended_step(**(case | change))
        assert torch.equal(case["x"], before)

    @pytest.mark.parametrize("name", ["prior", "cond", "uncond", "noise", "history"])
    def test_shared_memory(self, name: str) -> None:
        case = full_case(torch.float32)
        buffer = torch.zeros(SHAPE[0] + 1, *SHAPE[1:])
        for shared in (case["x"], case["x"][:]):
            with pytest.raises(ValueError, match=rf"^{name}: expected memory apart from x"):
                blended_step(**(case | {name: shared}))
        with pytest.raises(ValueError, match=rf"^{name}: expected memory apart from x"):
            blended_step(**(case | {"x": buffer[1:], name: buffer[:-1]}))

    def test_memory_shared_with_the_history(self) -> None:
        case = full_case(torch.float32)
        with pytest.raises(ValueError, match=r"^cond: expected memory apart from history"):
            blended_step(**(case | {"cond": case["history"]}))

    def test_projections_inside_the_state(self) -> None:
        case = full_case(torch.float32)
        with pytest.raises(ValueError, match=r"^projections: expected memory apart from x"):
            blended_step(**(case | {"projections": case["x"][:3]}))

    def test_neighbours_in_one_buffer_pass(self) -> None:
        """Parts of one allocation that do not overlap are no fault."""
        buffer = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
        cond = buffer[1].clone()
        blended_step(buffer[0], buffer[1], buffer[1], make_table({}), step_tensor())
        assert torch.equal(buffer[0], cond)
