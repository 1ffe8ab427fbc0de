"""Bad arguments of the operators: every one is refused by name, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from microdiffusion_fast.kernels import checks
from microdiffusion_fast.kernels.axial_projection import (
    axial_backprojection,
    axial_projection,
    axial_pseudo_inverse,
)
from microdiffusion_fast.kernels.blended_step import COLUMNS, NoiseKey, blended_step
from microdiffusion_fast.kernels.blended_step.checks import check_memory
from microdiffusion_fast.kernels.counter_noise import counter_noise
from microdiffusion_fast.kernels.volume_metrics import evaluate_sums, overlap_counts
from microdiffusion_fast.kernels.windowed_ssim import windowed_ssim

NAN, INF = math.nan, math.inf
SHAPE = (8, 9, 10)
V = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
FLOAT8 = V.to(torch.float8_e4m3fn)
SPARSE = V.to_sparse()


def words(*values: int) -> NoiseKey:
    return NoiseKey(0, words=torch.tensor(values))


def table(**columns: float) -> torch.Tensor:
    row = dict.fromkeys(COLUMNS, 0.0) | {"low": -INF, "high": INF} | columns
    return torch.tensor([[row[name] for name in COLUMNS]], dtype=torch.float64)


def step_case(**change: Any) -> dict[str, Any]:
    case = {name: V.clone() for name in ("x", "prior", "cond")}
    return case | {"table": table(), "step": torch.tensor(0)} | change


P = torch.rand(2, 9, 10, generator=torch.Generator().manual_seed(1))
STEP: list[tuple[str, dict[str, Any]]] = [
    ("x", {"x": V.clone().as_strided(SHAPE, (45, 5, 1))}),
    ("x", {"x": FLOAT8}),
    ("x", {"x": SPARSE}),
    ("x", {"x": V.clone().requires_grad_()}),
    ("history", {"history": V.clone().requires_grad_()}),
    ("prior", {"prior": FLOAT8}),
    ("cond", {"cond": None}),
    ("step", {"step": torch.tensor(1)}),
    ("step", {"step": torch.tensor(-1)}),
    ("step", {"step": torch.tensor(1), "x": V.double()}),
    ("step", {"step": None}),
    ("key", {"table": table(key=2.5), "noise": NoiseKey(0)}),
    ("key", {"table": table(key=2.5), "noise": NoiseKey(0), "x": V.double()}),
    ("key", {"table": table(key=NAN), "noise": NoiseKey(0)}),
    ("key", {"table": table(key=INF), "noise": NoiseKey(0)}),
    *[(name, {"table": table(**{name: NAN})}) for name in COLUMNS],
    *[(name, {"table": table(**{name: -INF})}) for name in ("p", "a", "d", "trust", "gamma")],
    ("noise", {"noise": words(1, -5, 0)}),
    ("noise", {"noise": words(1, 0, -1)}),
    ("noise", {"noise": words(1, 0, 1)}),
    ("noise", {"noise": words(1, 0, 2**62)}),
    ("noise", {"noise": words(1, 0, 1), "x": V.double()}),
    *[("stride", {"projections": P, "stride": value}) for value in (True, 2.5, "2", 2**70, 0)],
    *[
        ("start", {"projections": P, "stride": 2, "start": value})
        for value in (0.5, None, True, -1, 2**70, 7)
    ],
    *[
        ("weights", {"projections": P, "weights": value})
        for value in (0.5, "ab", torch.ones(1, 2), torch.tensor(1.0), [1e-200] * 2, [1e200] * 2)
    ],
    ("projections", {"projections": FLOAT8}),
]


def ids(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(value)
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(("argument", "change"), STEP, ids=ids)
def test_blended_step(argument: str, change: dict[str, Any]) -> None:
    case = step_case(**change)
    dense = case["x"].layout is torch.strided
    before = case["x"].detach().clone()
    with pytest.raises((ValueError, TypeError), match=rf"^{argument}: expected .+, got "):
        blended_step(**case)
    assert not dense or torch.equal(case["x"].detach().float(), before.float())


PARTS: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {
    "interleaved": lambda: torch.rand(*SHAPE, 2).unbind(-1),  # type: ignore[return-value]
    "channels": lambda: torch.rand(8, 2, 9, 10).unbind(1),  # type: ignore[return-value]
    "halves of rows": lambda: torch.rand(8, 9, 20).split(10, 2),  # type: ignore[return-value]
    "every other slice": lambda: (lambda f: (f[::2], f[1::2]))(torch.rand(16, 9, 10)),
}


class TestMemory:
    @pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
    def test_parts_of_one_array(self, parts: Callable[[], Any]) -> None:
        x, prior = parts()
        case = step_case(x=x, prior=prior, cond=V, table=table(p=1.0, a=1.0))
        assert not torch.equal(x, V)
        blended_step(**case)
        assert torch.equal(x, V)

    def test_table_inside_the_state(self) -> None:
        x = V.double()
        inside = x.view(-1)[: len(COLUMNS)].view(1, -1)
        with pytest.raises(ValueError, match="^table: expected memory apart from x"):
            blended_step(**step_case(x=x, table=inside.zero_()))

    def test_words_inside_the_state(self) -> None:
        x = torch.zeros(SHAPE, dtype=torch.float64)
        key = NoiseKey(0, words=x.view(-1)[:3].view(torch.int64))
        with pytest.raises(ValueError, match="^noise: expected memory apart from x"):
            blended_step(**step_case(x=x, noise=key))

    def test_against_sets_of_elements(self) -> None:
        """Pairs of slices of one array overlap exactly where they have an element in common."""
        buffer, random = torch.arange(6 * 7 * 8.0).view(6, 7, 8), np.random.default_rng(0)
        found = set()
        for _ in range(300):
            steps, shape = random.integers(1, 4, 3), random.integers(1, 3, 3)
            views = []
            for _ in range(2):
                low = [
                    random.integers(0, n - (s - 1) * k)
                    for n, s, k in zip((6, 7, 8), shape, steps, strict=True)
                ]
                cut = (
                    slice(a, a + (s - 1) * k + 1, k)
                    for a, s, k in zip(low, shape, steps, strict=True)
                )
                views.append(buffer[tuple(cut)])
            meets = bool(set(views[0].flatten().tolist()) & set(views[1].flatten().tolist()))
            found.add(meets)
            if meets:
                with pytest.raises(ValueError, match="^prior: expected memory apart from x"):
                    check_memory(views[0], None, {"prior": views[1]})
            else:
                check_memory(views[0], None, {"prior": views[1]})
        assert found == {True, False}

    def test_without_memory(self) -> None:
        """Tensors of the meta device and fake ones have no memory to share, nor values."""
        meta = {name: v.to("meta") for name, v in step_case().items()}
        blended_step(**meta)
        with FakeTensorMode():
            fake = {name: torch.zeros(SHAPE) for name in ("x", "prior", "cond")}
            steps = {
                "table": torch.zeros(1, len(COLUMNS)),
                "step": torch.zeros((), dtype=torch.int64),
            }
            blended_step(**fake, **steps)


def test_in_place_by_the_rule_of_torch() -> None:
    x = V.clone().requires_grad_()
    with torch.no_grad():
        blended_step(**step_case(x=x))
    assert torch.equal(x.detach(), torch.zeros(SHAPE))


def project(**change: Any) -> Any:
    options = {"x": V, "weights": [0.5, 0.5], "stride": 2, "start": 0, "count": 4}
    return axial_projection(**(options | change))


def backproject(**change: Any) -> Any:
    options = {"y": V, "weights": [0.5, 0.5], "stride": 2, "start": 0, "depth": 16}
    return axial_backprojection(**(options | change))


def invert(**change: Any) -> Any:
    options = {"y": V, "weights": [0.5, 0.5], "stride": 2, "start": 0, "depth": 16}
    return axial_pseudo_inverse(**(options | change))


def sums(**change: Any) -> Any:
    return evaluate_sums(**({"reference": V, "test": V} | change))


def overlaps(**change: Any) -> Any:
    return overlap_counts(**({"reference": V, "test": V, "thresholds": (0.5, 0.5)} | change))


def ssim(**change: Any) -> Any:
    return windowed_ssim(**({"reference": V, "test": V, "data_range": 1.0} | change))


def noise(**change: Any) -> Any:
    return counter_noise(**({"shape": (2, 3, 4), "seed": 0, "step": 0} | change))


NO_VOLUME = (None, np.zeros(SHAPE), SPARSE)
NO_INTEGER = (True, 1.5, 2.0, None, "1", 2**70, -1)
NO_NUMBER = (True, None, "1", NAN, INF, [1.0], 10**400)
NO_LIMITS = (3, "ab", 0.5, (1,), (None, 1), (0, 1, 2), (1, 0), (0, NAN), (0, "1"))
NO_WEIGHTS = (None, 0.5, "ab", [[1.0]], torch.ones(1, 2), torch.tensor(1.0), [], [0.0])
NO_WEIGHTS += ([1e-200], [1e200], [NAN], ["1"], [True], [1j])  # type: ignore[assignment]
BAD: dict[Callable[..., Any], dict[str, tuple[Any, ...]]] = {
    project: {
        "x": (*NO_VOLUME, FLOAT8, V.long(), V[0], torch.tensor(1.0)),
        "weights": NO_WEIGHTS,
        "stride": (*NO_INTEGER, 0),
        "start": NO_INTEGER,
        "count": (*NO_INTEGER, 0),
    },
    invert: {
        "y": (*NO_VOLUME, FLOAT8, V.long(), V[0], torch.tensor(1.0), V[:0]),
        "weights": NO_WEIGHTS,
        "stride": (*NO_INTEGER, 0),
        "start": NO_INTEGER,
        "depth": (*NO_INTEGER, 15, 2**62),
    },
    sums: {
        "reference": NO_VOLUME,
        "test": NO_VOLUME,
        "scale": NO_NUMBER,
        "offset": NO_NUMBER,
        "clip": (*NO_LIMITS, (0, INF)),
        "ranges": (3, "ab", 0.5, (0, 1), ((0, 1),), ((0, 1), None), ((0, 1), (0, INF))),
    },
    overlaps: {
        "reference": NO_VOLUME,
        "test": NO_VOLUME,
        "thresholds": ((0.5,), None, 0.5, ("a", "b"), "ab", (0.5, None), (0.5, NAN), (0, 1, 2)),
        "scale": NO_NUMBER,
        "offset": NO_NUMBER,
        "clip": NO_LIMITS,
    },
    ssim: {
        "reference": (*NO_VOLUME, V > 0),
        "test": (*NO_VOLUME, V > 0),
        "data_range": (*NO_NUMBER, 0.0, -1.0, 1e-200, 1e200),
        "window": (None, "hann", 7),
        "ndim": (2.0, None, "2", True, 1, 4),
        "scale": NO_NUMBER,
        "offset": NO_NUMBER,
        "clip": NO_LIMITS,
    },
    noise: {
        "shape": ((2**40,) * 3, (2**20, 2**20, 2**21), (-1, 2, 2), None, (2, 2), (2, 2, True)),
        "device": ("banana", 1.5, object()),
        "seed": (True, 1.5, None, -1, 2**64),
    },
}
BAD[backproject] = BAD[invert]


@pytest.mark.parametrize("function", BAD, ids=lambda function: function.__name__)
def test_refused_by_name(function: Callable[..., Any]) -> None:
    function()
    for argument, values in BAD[function].items():
        for value in values:
            with pytest.raises((ValueError, TypeError)) as error:
                function(**{argument: value})
            expected = f"{argument}: expected "
            assert str(error.value).startswith(expected), (argument, value)
            assert ", got " in str(error.value), (argument, value)


def test_nothing() -> None:
    """Maps of nothing are nothing; means, sums and extremes of nothing are refused."""
    for empty in (V[:, :0], V[:, :, :0]):
        assert project(x=empty).shape == (4, *empty.shape[1:])
        assert invert(y=empty).shape == (16, *empty.shape[1:])
    assert noise(shape=(0, 3, 4)).shape == (0, 3, 4)
    got = ssim(reference=V[:0], test=V[:0])
    assert got.shape == (0,) and got.dtype == torch.float64
    for function in (sums, overlaps):
        with pytest.raises(ValueError, match="^reference: expected a volume .* not empty"):
            function(reference=V[:0], test=V[:0])
    with pytest.raises(ValueError, match="^reference: expected at least 7"):
        ssim(reference=V[:0], test=V[:0], ndim=3)


def test_numbers_of_numpy_and_torch() -> None:
    assert checks.integer("n", np.uint8(3)) == checks.integer("n", torch.tensor(3)) == 3
    for value in (np.float32(0.5), torch.tensor(0.5), 0.5):
        assert checks.number("v", value) == 0.5
    for weights in ((0.5, 2), np.array([0.5, 2]), torch.tensor([0.5, 2]), [np.float32(0.5), 2]):
        taps = checks.taps("weights", weights)
        assert taps == [0.5, 2.0] and all(type(tap) is float for tap in taps)
    assert checks.limits("clip", np.array([0.0, 1.0]), "limits") == (0.0, 1.0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_break(dynamic: bool) -> None:
    """The checks trace, with numbers that depend on the shape too."""

    def every(x: torch.Tensor, projections: torch.Tensor, state: torch.Tensor) -> list[Any]:
        count, depth = x.shape[0] // 2, x.shape[0] * 2
        blended_step(
            state, x, x, steps, counter, noise=NoiseKey(3), projections=projections, stride=4
        )
        return [
            project(x=x, count=count),
            backproject(y=x, depth=depth),
            invert(y=x, depth=depth),
            ssim(reference=x, test=x * 0.5, clip=(0, 1), scale=2),
            overlaps(reference=x, test=x * 0.5, clip=(0.0, 1)),
            noise(shape=(2, 3, 4), device="cpu"),
            state,
        ]

    steps, counter = table(p=1.0, a=1.0, d=1.0, key=4.0), torch.tensor(0)
    compiled = torch.compile(every, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for got, expected in zip(compiled(V, P, V.clone()), every(V, P, V.clone()), strict=True):
        torch.testing.assert_close(got, expected)
