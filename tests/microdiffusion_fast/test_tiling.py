"""The tile plan: every voxel once, whole shards, all that a core depends on, and no lists."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdiffusion_fast.denoiser import ALIGN, CONTEXT
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.tiling import Reach, TilePlan, plan_tiles
from microdiffusion_fast.tiling_budget import (
    Footprint,
    default_layout,
    fit_tiles,
    memory_bytes,
    predict,
)
from microdiffusion_fast.tiling_windows import Span, Windows

REACH = Reach(halo=8, step=2, context=CONTEXT, align=ALIGN, steps=1)
FOOTPRINT = Footprint(
    fixed=0,
    image=8,
    held=0,
    encode=1500,
    kept=0,
    features=512,
    keep=False,
    head=1000,
    state=24,
    core=4,
    chunk=0,
    encode_work=300_000,
    head_work=260_000,
)


@st.composite
def windows_of(draw: st.DrawFn, *, overlap: bool = True) -> Windows:
    step_length = draw(st.integers(2, 7))
    stride = draw(st.integers(1 if overlap else step_length, 9))
    count = draw(st.integers(2, 9))
    start = draw(st.integers(0, 8))
    end = start + (count - 1) * stride + step_length
    depth = end + draw(st.integers(0, stride - 1))
    weights = np.array(
        draw(st.lists(st.integers(1, 9), min_size=step_length, max_size=step_length))
    )
    centre = float(np.arange(step_length) @ weights / weights.sum())
    return Windows(depth, count, step_length, stride, start, start + centre)


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    windows = draw(windows_of())
    shape = (windows.depth, draw(st.integers(8, 70)), draw(st.integers(8, 70)))
    shards = draw(st.tuples(st.integers(1, 20), st.integers(1, 30), st.integers(1, 30)))
    core = draw(st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60)))
    reach = replace(REACH, steps=draw(st.integers(1, 3)))
    return plan_tiles(shape, windows, reach, shards=shards, core=core)


@given(plans())
def test_every_voxel_is_written_once_and_shards_are_whole(plan: TilePlan) -> None:
    written = np.zeros(plan.shape, np.int32)
    owners = 0
    for tile in plan:
        for shard in plan.shards_of(tile):
            owners += 1
            written[shard.slices] += 1
            for span, size, step in zip(shard, plan.shape, plan.shards, strict=True):
                assert span.start % step == 0
                assert span.stop == min(span.start + step, size)
    assert written.min() == written.max() == 1
    assert owners == np.prod([-(-n // s) for n, s in zip(plan.shape, plan.shards, strict=True)])


@given(plans())
def test_what_a_tile_reads_and_computes_holds_its_core(plan: TilePlan) -> None:
    for tile in plan:
        for axis in range(3):
            size = plan.shape[axis] if axis else plan.windows.count
            assert 0 <= tile.read[axis].start < tile.read[axis].stop <= size
            assert tile.state[axis].hull(tile.core[axis]) == tile.state[axis]
        for axis in (1, 2):
            size, read, core = plan.shape[axis], tile.read[axis], tile.core[axis]
            state = tile.state[axis]
            assert read.hull(state) == read
            assert read.start % ALIGN == 0 and (read.stop % ALIGN == 0 or read.stop == size)
            further = (plan.reach.steps - 1) * plan.reach.step
            assert read.start <= max(core.start - plan.reach.halo - further, 0)
            assert read.stop >= min(core.stop + plan.reach.halo + further, size)
            assert state.start <= max(core.start - plan.reach.step - further, 0)
            assert state.stop >= min(core.stop + plan.reach.step + further, size)


def dependencies(plan: TilePlan, core: Span) -> tuple[list[set[int]], set[int], set[int]]:
    """By brute force: slices the network gives at each step, last first; windows; projections."""
    windows = plan.windows
    centres = [windows.first + windows.stride * k for k in range(windows.count)]
    extents = [
        set(
            range(
                windows.start + windows.stride * k,
                windows.start + windows.stride * k + windows.step_length,
            )
        )
        for k in range(windows.count)
    ]
    reach = max(windows.step_length, windows.stride) / 2
    inside = [z for z in range(windows.depth) if min(abs(z - c) for c in centres) <= reach]

    def consistent(slices: set[int]) -> set[int]:
        held = set(slices)
        if windows.overlap:
            return set(range(windows.depth))
        for extent in extents:
            if extent & slices:
                held |= extent
        return held

    wanted, steps = set(range(*core)), []
    for _ in range(plan.reach.steps):
        given = {min(max(z, inside[0]), inside[-1]) for z in consistent(wanted)}
        steps.append(given)
        near = {z + d for z in given for d in (-1, 0, 1)}
        wanted = {min(max(z, 0), windows.depth - 1) for z in near}
    seen = {int(np.argmin([abs(z - c) for c in centres])) for z in steps[-1]}
    read = {
        min(max(k + d, 0), windows.count - 1) for k in seen for d in range(-CONTEXT, CONTEXT + 1)
    }
    for z in consistent(wanted):  # interpolation, as `AxialProjection.interpolate` has it
        position = min(max((z - windows.first) / windows.stride, 0.0), windows.count - 1.0)
        below = min(int(position), max(windows.count - 2, 0))
        read |= {below, min(below + 1, windows.count - 1)}
    return steps, seen, read


@given(plans())
def test_a_tile_asks_for_all_that_its_core_depends_on_along_z(plan: TilePlan) -> None:
    for part in plan.axial:
        steps, seen, read = dependencies(plan, part.core)
        for needed, output in zip(steps, reversed(part.outputs), strict=True):
            assert needed <= set(range(*output))
            assert set(range(*output)) <= set(range(*part.state))
        assert seen <= set(range(*part.windows))
        assert read <= set(range(*part.read))
        assert seen <= read


@given(windows_of(overlap=False), st.integers(1, 3))
def test_a_tile_asks_for_little_more(windows: Windows, steps: int) -> None:
    """A core of one window takes `steps` windows more on either side for its states, and the
    context of one fewer for what it reads."""
    reach = replace(REACH, steps=steps)
    shape = (windows.depth, 64, 64)
    plan = plan_tiles(shape, windows, reach, shards=(1, 64, 64), core=(windows.stride, 64, 64))
    for part in plan.axial:
        # a core may cut windows at both of its ends
        assert part.read.length <= 2 * (steps + 1 + CONTEXT) + 3
        assert part.state.length <= (2 * steps + 3) * windows.stride + 2 * windows.step_length


def test_overlapping_windows_keep_whole_columns() -> None:
    windows = Windows(48, 15, 6, 3, 0, 2.5)
    plan = plan_tiles((48, 64, 64), windows, REACH, shards=(6, 32, 32), core=(6, 32, 32))
    assert plan.grid == (1, 2, 2)
    assert all(tile.core.z == tile.state.z == Span(0, 48) for tile in plan)
    assert len(list(plan.shards_of(plan[0]))) == 8


def test_cores_between_windows_compute_no_window_twice() -> None:
    windows = Windows(240, 40, 6, 6, 0, 2.5)
    plan = plan_tiles((240, 64, 64), windows, REACH, shards=(60, 64, 64), core=(60, 64, 64))
    assert sum(part.windows.length for part in plan.axial) == windows.count
    assert [part.read.length for part in plan.axial] == [12, 14, 14, 12]


def test_a_terabyte_is_planned_without_a_list_of_tiles() -> None:
    windows = Windows(8192, 1365, 6, 6, 0, 2.5)
    shape = (8192, 16384, 2048)
    _, shards = default_layout(shape, 6)
    tracemalloc.start()
    plan = fit_tiles(
        shape, windows, REACH, shards=shards, footprint=FOOTPRINT, memory=memory_bytes("4GiB")
    )
    prediction = predict(plan, FOOTPRINT, pixels=1365 * 16384 * 2048, itemsize=2)
    shards_written = sum(1 for tile in plan for _ in plan.shards_of(tile))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert shards_written == np.prod([-(-n // s) for n, s in zip(shape, shards, strict=True)])
    assert peak < 8 * 2**20  # of Python objects
    assert prediction.memory <= 4 * 2**30
    assert prediction.bytes_out == 8192 * 16384 * 2048 * 4
    assert prediction.bytes_in == 2 * 1365 * 16384 * 2048 and prediction.reread == 1.0
    assert 1.0 < prediction.work < 1.5
    assert prediction.tiles == len(plan) > 100


@given(plans(), st.integers(1, 400))
def test_automatic_tiles_keep_the_budget(plan: TilePlan, mebibytes: int) -> None:
    arguments = {"shards": plan.shards, "footprint": FOOTPRINT}
    try:
        fitted = fit_tiles(
            plan.shape, plan.windows, plan.reach, memory=mebibytes * 2**20, **arguments
        )
    except InputError as error:
        assert error.argument == "memory"
        least = plan_tiles(
            plan.shape, plan.windows, plan.reach, shards=plan.shards, core=plan.shards
        )
        assert predict(least, FOOTPRINT, pixels=0, itemsize=2).memory > mebibytes * 2**20
        return
    prediction = predict(fitted, FOOTPRINT, pixels=0, itemsize=2)
    assert prediction.memory <= mebibytes * 2**20
    more = fit_tiles(plan.shape, plan.windows, plan.reach, memory=2**50, **arguments)
    assert predict(more, FOOTPRINT, pixels=0, itemsize=2).work <= prediction.work


def test_one_tile_where_all_fits() -> None:
    windows = Windows(96, 16, 6, 6, 0, 2.5)
    plan = fit_tiles(
        (96, 300, 200), windows, REACH, shards=(32, 64, 64), footprint=FOOTPRINT, memory=2**40
    )
    prediction = predict(plan, FOOTPRINT, pixels=16 * 300 * 200, itemsize=4)
    assert (len(plan), prediction.reread, prediction.work) == (1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [("4GiB", 2**32), ("1.5 GiB", 3 * 2**29), ("500MB", 500_000_000), ("2g", 2 * 10**9), (64, 64)],
)
def test_memory_sizes(memory: int | str, expected: int) -> None:
    assert memory_bytes(memory) == expected


@pytest.mark.parametrize("memory", ["lots", "", "-1GiB", "4 GiBit", True, None])
def test_memory_that_is_none(memory: object) -> None:
    with pytest.raises(InputError, match="^memory: expected"):
        memory_bytes(memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [1, 5, 6, 40])
def test_default_layout(stride: int) -> None:
    for shape in itertools.product((7, 100, 513), repeat=3):
        chunks, shards = default_layout(shape, stride)
        for size, chunk, shard in zip(shape, chunks, shards, strict=True):
            assert 1 <= chunk <= size and shard % chunk == 0
        assert shards[0] % stride == 0 or shards[0] >= shape[0]


def test_bad_sizes() -> None:
    windows = Windows(48, 8, 6, 6, 0, 2.5)
    with pytest.raises(InputError, match="^core: expected three sizes"):
        plan_tiles((48, 64, 64), windows, REACH, shards=(6, 6, 6), core=(0, 6, 6))
    with pytest.raises(InputError, match="^shape: expected a depth of 48"):
        plan_tiles((50, 64, 64), windows, REACH, shards=(6, 6, 6), core=(6, 6, 6))
    with pytest.raises(IndexError):
        plan_tiles((48, 64, 64), windows, REACH, shards=(6, 6, 6), core=(6, 6, 6))[-1]
