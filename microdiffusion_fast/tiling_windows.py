"""Intervals, blocks, and where the projections lie along z: index arithmetic, no arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

_TIE = 1e-6  # slices: two window centres this close to equally far are both taken for the nearest


class Span(NamedTuple):
    """Indices from start up to stop, along one axis."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def hull(self, other: Span) -> Span:
        """The smallest span that holds both."""
        return Span(min(self.start, other.start), max(self.stop, other.stop))

    def within(self, outer: Span) -> slice:
        """Where this span lies in an array that covers `outer`."""
        return slice(self.start - outer.start, self.stop - outer.start)


class Box(NamedTuple):
    """A block of voxels, or of projections (z) and pixels."""

    z: Span
    y: Span
    x: Span

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.z.length, self.y.length, self.x.length

    @property
    def offset(self) -> tuple[int, int, int]:
        return self.z.start, self.y.start, self.x.start

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        return slice(*self.z), slice(*self.y), slice(*self.x)

    def within(self, outer: Box) -> tuple[slice, slice, slice]:
        """Where this box lies in an array that covers `outer`."""
        return self.z.within(outer.z), self.y.within(outer.y), self.x.within(outer.x)


@dataclass(frozen=True)
class Windows:
    """Where the projections lie along z.

    Attributes:
        depth: slices Z of the volume.
        count: projections K.
        step_length: slices that one integrates.
        stride: slices between the starts of two.
        start: first slice of the first.
        first: weighted centre of the first, in slices.
    """

    depth: int
    count: int
    step_length: int
    stride: int
    start: int
    first: float

    @property
    def overlap(self) -> bool:
        """Whether windows share slices: their consistency then couples all of a column."""
        return self.stride < self.step_length and self.count > 1

    @property
    def inside(self) -> Span:
        """Slices near enough to a window to be predicted; beyond them the last one is repeated."""
        reach = max(self.step_length, self.stride) / 2
        last = self.first + self.stride * (self.count - 1)
        start = max(0, math.floor(self.first - reach) - 1)
        while abs(start - self.first) > reach:
            start += 1
        end = min(self.depth, math.ceil(last + reach) + 2) - 1
        while abs(end - last) > reach:
            end -= 1
        return Span(start, end + 1)

    def extent(self, windows: Span) -> Span:
        """The slices from the first to the last of the windows."""
        start = self.start + self.stride * windows.start
        return Span(start, self.start + self.stride * (windows.stop - 1) + self.step_length)

    def touching(self, slices: Span) -> Span:
        """The windows that hold one of the slices; empty in a gap between windows."""
        low = (slices.start - self.start - self.step_length) // self.stride + 1
        high = -((self.start - slices.stop) // self.stride)
        low = min(max(low, 0), self.count)
        return Span(low, max(min(high, self.count), low))

    def nearest(self, slices: Span) -> Span:
        """The windows whose centre is the nearest to one of the slices."""
        low = math.ceil((slices.start - self.first - _TIE) / self.stride - 0.5)
        high = math.floor((slices.stop - 1 - self.first + _TIE) / self.stride + 0.5)
        last = self.count - 1
        return Span(min(max(low, 0), last), min(max(high, 0), last) + 1)

    def whole(self, slices: Span) -> Span:
        """The slices and all of every window among them, of the nearest one where there is none."""
        windows = self.touching(slices)
        return slices.hull(self.extent(windows if windows.length else self.nearest(slices)))

    def interpolating(self, slices: Span) -> Span:
        """The projections that linear interpolation takes for the slices."""
        last = self.count - 1
        low = math.floor((slices.start - self.first - _TIE) / self.stride)
        high = math.ceil((slices.stop - 1 - self.first + _TIE) / self.stride)
        return Span(min(max(low, 0), max(last - 1, 0)), min(max(high, 1), last) + 1)
