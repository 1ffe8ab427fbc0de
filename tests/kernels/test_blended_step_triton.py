"""blended_step in Triton's interpreter: every part of a step against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microdiffusion_fast.kernels import _backend
from microdiffusion_fast.kernels.blended_step import COLUMNS
from microdiffusion_fast.kernels.blended_step.reference import blended_step_reference

if _backend.triton_missing is not None:
    pytest.skip(f"triton: {_backend.triton_missing}", allow_module_level=True)

from microdiffusion_fast.kernels.blended_step import triton_kernel
from microdiffusion_fast.kernels.counter_noise.triton_kernel import counter_noise_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROW = {
    "p": -0.7, "q": 1.3, "w": 1.8, "low": -1.5, "high": 1.2, "trust": 0.6,
    "a": 0.4, "b": 0.5, "c": -0.2, "d": 0.3, "gamma": 0.35, "key": 11.0,
}  # fmt: skip
SHAPE = (13, 5, 7)
Arguments = dict[str, Any]


def case(*parts: str, shape: tuple[int, ...] = SHAPE, **geometry: Any) -> Arguments:
    """The reference's arguments of a step with these parts beside x, prior and cond."""
    generator = torch.Generator().manual_seed(0)
    names = ("x", "prior", "cond", "uncond", "noise", "history", "projections")
    draws = {name: torch.randn(shape, generator=generator).to(DEVICE) for name in names}
    draws["projections"] = draws["projections"][: geometry.pop("count", 2)].clone()
    rows = [[0.0] * len(COLUMNS), [ROW[c] for c in COLUMNS]]
    table = torch.tensor(rows, dtype=torch.float64, device=DEVICE)
    chosen = {name: draws[name] for name in ("x", "prior", "cond", *parts)}
    return {"table": table, "step": torch.tensor(1, device=DEVICE), **chosen, **geometry}


def advance(
    arguments: Arguments, key: list[int] | None = None, words: Tensor | None = None
) -> Arguments:
    """The kernel on a copy of the arguments."""
    copy = {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    for name in ("x", "prior", "cond"):  # clone makes some layouts contiguous
        assert copy[name].stride() == arguments[name].stride()
    triton_kernel.blended_step_triton(
        copy["x"],
        copy["prior"],
        copy["cond"],
        copy["table"],
        copy["step"],
        copy.get("uncond"),
        copy.get("noise"),
        key or [],
        words,
        copy.get("history"),
        copy.get("projections"),
        copy.get("weights", []),
        copy.get("stride", 1),
        copy.get("start", 0),
    )
    return copy


def by_reference(arguments: Arguments, dtype: torch.dtype | None = None) -> Arguments:
    """The reference on a copy of the arguments, its volumes in `dtype`."""
    copy = {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    for name, value in copy.items():
        if dtype is not None and isinstance(value, Tensor) and value.ndim == 3:
            copy[name] = value.to(dtype)
    blended_step_reference(**copy)
    return copy


def drawn(arguments: Arguments, key: list[int]) -> Tensor:
    """The noise of `key` by the kernel of counter_noise."""
    noise = torch.full(arguments["x"].shape, float("nan"), device=DEVICE)
    counter_noise_triton(
        noise, seed=key[0], stream=key[1], step=11, offset=key[2:5], volume_shape=key[5:8]
    )
    return noise


PARTS = [(), ("uncond",), ("noise",), ("history",), ("uncond", "noise", "history")]
GEOMETRIES = [
    pytest.param([1 / 6] * 6, 6, 0, 2, id="disjoint mean, a slice uncovered"),
    pytest.param([0.2, 0.5, 0.0, 0.3], 5, 2, 2, id="gaps, uneven, a zero"),
    pytest.param([0.5, 0.5], 1, 3, 1, id="one window, stride below its length"),
    pytest.param([1.0], 2, 0, 7, id="single slices"),
    pytest.param([0.05] * 5 + [0.15] * 5, 10, 2, 1, id="longer than what stays in registers"),
    pytest.param([0.3, 0.4, 0.3], 2, 1, 5, id="overlap"),
]
KEYS = [
    pytest.param((4, 6, 8), [3, 2, 0, 0, 0, 4, 6, 8], id="whole volume"),
    pytest.param(SHAPE, [3, 2, 0, 0, 0, *SHAPE], id="whole volume, odd"),
    pytest.param((4, 6, 8), [3, 2, 1, 0, 0, 9, 6, 8], id="planes"),
    pytest.param((4, 3, 8), [3, 2, 1, 2, 0, 9, 6, 8], id="some rows of planes"),
    pytest.param((4, 3, 7), [3, 2, 1, 2, 0, 9, 6, 7], id="some rows of odd planes"),
    pytest.param((4, 6, 8), [3, 2, 1, 2, 4, 9, 11, 12], id="tile in step with the quads"),
    pytest.param((4, 6, 8), [3, 2, 1, 2, 3, 9, 11, 12], id="tile out of step"),
    pytest.param((4, 5, 7), [3, 2, 1, 2, 3, 9, 11, 13], id="odd tile"),
    pytest.param((6, 3, 4), [-1, 2**32 - 1, 5000, 7, 8, 6006, 4000, 4000], id="huge volume"),
    pytest.param((1, 1, 12), [3, 0, 0, 0, 2**62 + 2, 1, 1, 2**62 + 20], id="huge row"),
]


class TestParts:
    @pytest.mark.parametrize("parts", PARTS)
    @pytest.mark.parametrize("shape", [SHAPE, (3, 16, 32)], ids=["odd", "even"])
    def test_equals_the_reference(self, parts: tuple[str, ...], shape: tuple[int, ...]) -> None:
        arguments = case(*parts, shape=shape)
        result, expected = advance(arguments), by_reference(arguments)
        assert torch.equal(result["x"], expected["x"])
        if "history" in parts:
            assert torch.equal(result["history"], expected["history"])

    @pytest.mark.parametrize(("weights", "stride", "start", "count"), GEOMETRIES)
    @pytest.mark.parametrize("parts", [(), ("uncond", "noise", "history")])
    def test_consistency(
        self,
        as_accurate: Callable[..., None],
        parts: tuple[str, ...],
        weights: list[float],
        stride: int,
        start: int,
        count: int,
    ) -> None:
        geometry = {"weights": weights, "stride": stride, "start": start, "count": count}
        arguments = case(*parts, "projections", **geometry)
        result, plain = advance(arguments), by_reference(arguments)
        exact = by_reference(arguments, torch.float64)
        for name in ("x", "history") if "history" in parts else ("x",):
            as_accurate(result[name], plain[name], exact[name])

    @settings(max_examples=30)
    @given(
        dtypes=st.lists(
            st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), min_size=7, max_size=7
        ),
        float32_table=st.booleans(),
    )
    def test_any_mix_of_dtypes(self, dtypes: list[torch.dtype], float32_table: bool) -> None:
        geometry = {"weights": [0.2, 0.5, 0.3], "stride": 4, "start": 1}
        arguments = case("uncond", "noise", "history", "projections", shape=(9, 3, 5), **geometry)
        names = ("x", "prior", "cond", "uncond", "noise", "history", "projections")
        for name, dtype in zip(names, dtypes, strict=True):
            arguments[name] = arguments[name].to(dtype)
        if float32_table:
            arguments["table"] = arguments["table"].float()
        result, expected = advance(arguments), by_reference(arguments)
        for name in ("x", "history"):
            assert result[name].dtype == arguments[name].dtype
            # The interpreter cuts bfloat16 where a GPU rounds: one unit in the last place.
            tolerance = torch.finfo(result[name].dtype).eps
            torch.testing.assert_close(
                result[name], expected[name], rtol=tolerance, atol=max(tolerance * 0.1, 1e-6)
            )

    @pytest.mark.parametrize("name", ["x", "cond", "history"])
    def test_a_nan_stays_one(self, name: str) -> None:
        arguments = case("uncond", "history")
        arguments[name][1, 2, 3] = float("nan")
        result, expected = advance(arguments), by_reference(arguments)
        torch.testing.assert_close(result["x"], expected["x"], rtol=0, atol=0, equal_nan=True)
        assert result["x"].isnan().sum() == 1

    def test_many_programs(self) -> None:
        """Blocks of columns times slabs, the last of each not full."""
        shape, geometry = (9, 31, 37), {"weights": [0.5, 0.5], "stride": 3, "start": 1}
        arguments = case("uncond", "projections", shape=shape, **geometry)
        result, expected = advance(arguments), by_reference(arguments)
        torch.testing.assert_close(result["x"], expected["x"], rtol=0, atol=1e-6)

    def test_writes_nothing_else(self) -> None:
        arguments = case("uncond", "projections", weights=[0.5, 0.5], stride=3, start=1)
        buffer = torch.zeros(4096, device=DEVICE)
        state = buffer[1024 : 1024 + 13 * 5 * 7].view(SHAPE)
        state.copy_(arguments["x"])
        expected = by_reference(arguments)["x"]
        triton_kernel.blended_step_triton(
            state, arguments["prior"], arguments["cond"], arguments["table"], arguments["step"],
            arguments["uncond"], None, [], None, None, arguments["projections"], [0.5, 0.5], 3, 1,
        )  # fmt: skip
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-6)
        assert (buffer[:1024] == 0).all()
        assert (buffer[1024 + 13 * 5 * 7 :] == 0).all()


class TestDrawnNoise:
    @pytest.mark.parametrize(("shape", "key"), KEYS)
    def test_is_that_of_counter_noise(self, shape: tuple[int, ...], key: list[int]) -> None:
        """Bit for bit, by quads of voxels or voxel by voxel."""
        arguments = case("uncond", shape=shape)
        handed = advance(arguments | {"noise": drawn(arguments, key)})
        assert torch.equal(advance(arguments, key)["x"], handed["x"])

    @pytest.mark.parametrize(("shape", "key"), KEYS[:-1])
    @pytest.mark.parametrize("stride", [1, 2], ids=["overlap", "fused"])
    def test_beside_consistency(self, shape: tuple[int, ...], key: list[int], stride: int) -> None:
        geometry = {"weights": [0.3, 0.7], "stride": stride, "start": 1, "count": 3 - stride}
        arguments = case("projections", shape=shape, **geometry)
        handed = advance(arguments | {"noise": drawn(arguments, key)})
        assert torch.equal(advance(arguments, key)["x"], handed["x"])

    @pytest.mark.parametrize(("shape", "key"), KEYS)
    @pytest.mark.parametrize("overlap", [False, True])
    def test_words_on_the_device(
        self, shape: tuple[int, ...], key: list[int], overlap: bool
    ) -> None:
        """They say seed, stream and place; the key then says only how quads lie."""
        geometry = {"weights": [0.3, 0.7], "stride": 1, "count": 2} if overlap else {}
        arguments = case(*(["projections"] if overlap else []), shape=shape, **geometry)
        expected = advance(arguments, key)["x"]
        seed, stream, z, y, x, _, height, width = key
        first = (z * height + y) * width + x
        words = torch.tensor([seed, stream, first], device=DEVICE)
        captured = [seed ^ 5, stream ^ 3, 0, 0, first % 4, *key[5:]]
        assert torch.equal(advance(arguments, captured, words)["x"], expected)

    @pytest.mark.parametrize("reason", ["float64 state", "strided state"])
    def test_where_the_reference_runs(self, reason: str) -> None:
        arguments, key = case("history"), [3, 2, 0, 0, 0, *SHAPE]
        if reason == "float64 state":
            arguments["x"] = arguments["x"].double()
        else:
            arguments["x"] = arguments["x"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
        expected = by_reference(arguments | {"noise": drawn(arguments, key)})
        assert torch.equal(advance(arguments, key)["x"], expected["x"])

    def test_planes_beyond_32_bits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Too many columns to divide in 32 bits: the noise is drawn before the step."""
        arguments, key = case(shape=(4, 5, 7)), [3, 2, 1, 2, 3, 9, 11, 13]
        expected = advance(arguments, key)["x"]
        monkeypatch.setattr(triton_kernel, "_MOST_COLUMNS", 35)
        assert torch.equal(advance(arguments, key)["x"], expected)
