"""One row of a suite: verify, warm up, then time it against its peers and a memcpy in alternation.

pytest-benchmark runs and times ours; its `setup` hook, called before every round, is where the
peers and the memcpy take their turn. Each round thus sees one state of a machine whose speed
swings, and what is reported are ratios within rounds. bench/README.md says how to read them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.figures import ratios, roofline, spread
from bench.memory import peak_extra_bytes, poisoned_memory

SMOKE = os.environ.get("MDF_BENCH_SMOKE", "0") not in ("", "0")
DEVICE = torch.device(os.environ.get("MDF_BENCH_DEVICE", "cpu"))

# Calls between two readings of the clock: on a GPU one call is not long against a synchronisation.
CALLS = 5 if DEVICE.type == "cuda" and not SMOKE else 1
# Of a row and of the peers that say nothing else; odd, so that a median is one of the ratios.
ROUNDS = 2 if SMOKE else 11

INFINITY = float("inf")

T = TypeVar("T")
Json = dict[str, Any]


class Unavailable(Exception):
    """A peer that cannot take part in this run; the text says why and ends up in the results."""


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        run: one call.
        prepare: before every call, outside the clock: fresh inputs.
        rounds: of how many rounds it is part; None of all. For peers that take long.
        same: whether its result is that of ours, and compared.
    """

    run: Callable[[], Any]
    prepare: Callable[[], object] = lambda: None
    rounds: int | None = None
    same: bool = True


Peer = Callable[[], Contender]


@dataclass(frozen=True)
class Row:
    """One row of the results.

    Attributes:
        name: what bars and comparisons find it by.
        about: one line for people.
        size: what it works on, for people.
        ours: the contender that pytest-benchmark times.
        peers: name -> function that makes a contender; its imports may fail, which is reported.
        floor_bytes: every operand read once and every result written once; None for no roofline.
        exact: the float64 truth of `view(result)`.
        tolerance: largest error of ours against it.
        view: the part of a result that is compared, if not all of it.
        rounds: times everything takes its turn.
    """

    name: str
    about: str
    size: str
    ours: Contender
    peers: dict[str, Peer] = field(default_factory=dict)
    floor_bytes: float | None = None
    exact: Callable[[], Any] | None = None
    tolerance: float = 0.0
    view: Callable[[Any], Any] = lambda result: result
    rounds: int = ROUNDS


Measure = Callable[[Row], Json]


def choose(*, smoke: T, cpu: T, cuda: T) -> T:
    """The one of three sizes that this run takes."""
    if SMOKE:
        return smoke
    return cuda if DEVICE.type == "cuda" else cpu


def normal(shape: Sequence[int], seed: int) -> Tensor:
    """Seeded standard normals, float32, on the device of the run."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, device=DEVICE)


def uniform(shape: Sequence[int], seed: int, high: float = 1.0) -> Tensor:
    """Seeded uniform numbers in [0, high), float32, on the device of the run."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.rand(tuple(shape), generator=generator, device=DEVICE).mul_(high)


def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """`torch.compile(function)` for static shapes; left out of smoke runs, where it takes longest.

    Raises:
        Unavailable: in a smoke run.
    """
    if SMOKE:
        raise Unavailable("skipped in a smoke run")
    return torch.compile(function, fullgraph=True, dynamic=False)


def on_cpu_only() -> None:
    """For peers that know no GPU: they have their place in the CPU results.

    Raises:
        Unavailable: in a run on a GPU.
    """
    if DEVICE.type != "cpu":
        raise Unavailable("a CPU library: see the CPU results")


def measure(benchmark: Any, row: Row) -> Json:
    """Verifies and times a row; returns what goes into the results, and hands it to the fixture.

    Raises:
        AssertionError: ours is off by more than the row's tolerance.
    """
    record = _begin(benchmark, row)
    exact = None if row.exact is None else _comparable(row.exact())
    with poisoned_memory():
        verified = _call(row, row.ours)
    _verify(record, row, verified, exact)

    peers: dict[str, Contender] = {}
    entries: dict[str, Json] = {}
    for name, make in row.peers.items():
        entries[name] = _warmed(row, make, peers, name, verified, exact)
    del exact, verified
    row.ours.prepare()
    record["peak_extra_bytes"] = peak_extra_bytes(row.ours.run, DEVICE)

    copy = _memcpy(row.floor_bytes)
    turns: dict[str, dict[int, float]] = {name: {} for name in peers}
    copies: dict[int, float] = {}
    order = list(peers)
    played = 0

    def take_turns() -> None:
        """Everything but ours, in an order that rotates from round to round; the memcpy last."""
        nonlocal played
        shift = played % max(len(order), 1)
        for name in order[shift:] + order[:shift]:
            if played in _rounds_of(peers[name], row.rounds):
                turns[name][played] = _timed(peers[name])
        row.ours.prepare()
        if copy is not None:
            copies[played] = _timed(copy)
        played += 1

    benchmark.pedantic(lambda: _calls(row.ours), setup=take_turns, rounds=row.rounds)
    ours = dict(enumerate(seconds / CALLS for seconds in benchmark.stats.stats.data))

    record |= {"seconds": spread(list(ours.values())), "rounds": row.rounds}
    if row.floor_bytes is not None:
        record |= roofline(row.floor_bytes, ours, copies)
    for name, taken in turns.items():
        entries[name] |= {"seconds": spread(list(taken.values())), "rounds": len(taken)}
        entries[name]["speedup"] = ratios(taken, ours)
    record |= {"peers": entries, "status": "measured"}
    return record


def measure_once(benchmark: Any, row: Row) -> Json:
    """`measure` for what takes minutes: one call, timed, watched and verified; no peers.

    Raises:
        AssertionError: ours is off by more than the row's tolerance.
    """
    record = _begin(benchmark, row)
    found: list[Any] = []

    def run() -> None:
        found.append(row.ours.run())
        _synchronise()

    peak = peak_extra_bytes(lambda: benchmark.pedantic(run, rounds=1), DEVICE)
    exact = None if row.exact is None else _comparable(row.exact())
    _verify(record, row, _comparable(row.view(found[0])), exact)
    record |= {"peak_extra_bytes": peak, "seconds": spread(benchmark.stats.stats.data)}
    record |= {"rounds": 1, "peers": {}, "status": "measured"}
    return record


def _begin(benchmark: Any, row: Row) -> Json:
    """The record of a row, wrong until it is verified and complete."""
    torch.compiler.reset()  # compiled peers of other rows, whose recompilations count as ours
    benchmark.group = row.name.partition(".")[0]
    record = {"row": row.name, "about": row.about, "size": row.size, "status": "wrong"}
    benchmark.extra_info["row"] = record
    return record


def _verify(record: Json, row: Row, found: Tensor | None, exact: Tensor | None) -> None:
    error = _difference(found, exact)
    record["error"] = error
    assert error is None or error <= row.tolerance, (
        f"{row.name}: error {error:.3g} against float64, tolerance {row.tolerance:.3g}"
    )


def _warmed(
    row: Row, make: Peer, peers: dict[str, Contender], name: str, verified: Any, exact: Any
) -> Json:
    """Makes a peer and calls it twice or, where it takes seconds, once; says how far it is off."""
    try:
        peer = make()
        result = _call(row, peer)
        if peer.rounds is None:
            _call(row, peer)
    except ImportError as missing:
        return {"status": f"not installed: {missing}"}
    except Unavailable as reason:
        return {"status": str(reason)}
    except Exception as failure:  # a broken peer must not take our figures with it
        return {"status": f"failed: {type(failure).__name__}: {failure}"[:200]}
    peers[name] = peer
    error, difference = _difference(result, exact), _difference(result, verified)
    return {"status": "measured", "error": error, "difference": difference}


def _call(row: Row, contender: Contender) -> Any:
    contender.prepare()
    result = contender.run()
    return _comparable(row.view(result)) if contender.same else None


def _calls(contender: Contender) -> None:
    for _ in range(CALLS):
        contender.run()
    _synchronise()


def _timed(contender: Contender) -> float:
    """Seconds of one call."""
    contender.prepare()
    _synchronise()
    begun = time.perf_counter()
    _calls(contender)
    return (time.perf_counter() - begun) / CALLS


def _synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _memcpy(floor_bytes: float | None) -> Contender | None:
    """A copy between two buffers that reads and writes `floor_bytes` in all."""
    if floor_bytes is None:
        return None
    source = torch.ones(max(int(floor_bytes) // 8, 1), dtype=torch.float32, device=DEVICE)
    target = torch.zeros_like(source)
    copy = Contender(lambda: target.copy_(source))
    _timed(copy)
    return copy


def _rounds_of(contender: Contender, rounds: int) -> set[int]:
    """The rounds that a contender is part of, evenly spread."""
    count = min(contender.rounds or rounds, rounds)
    return {(2 * i + 1) * rounds // (2 * count) for i in range(count)}


def _comparable(result: Any) -> Tensor:
    parts = result if isinstance(result, tuple) else (result,)
    return torch.cat([torch.as_tensor(p).detach().double().cpu().flatten() for p in parts])


def _difference(found: Any, expected: Any) -> float | None:
    """Largest difference; equal infinities agree, NaN agrees with nothing."""
    if found is None or expected is None:
        return None
    assert found.shape == expected.shape, f"{list(found.shape)}, not {list(expected.shape)}"
    gap = torch.where(found == expected, 0.0, (found - expected).abs())
    return float(gap.nan_to_num(nan=INFINITY, posinf=INFINITY).max())
