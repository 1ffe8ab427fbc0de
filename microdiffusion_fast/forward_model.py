"""The forward model: a stack of projections is the volume averaged over axial windows."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.kernels.axial_projection import (
    axial_backprojection,
    axial_projection,
    axial_pseudo_inverse,
    gram_condition,
)

_SUM_TOLERANCE = 1e-5


class AxialProjection:
    """Linear operator A from a volume [Z, Y, X] to its axial projections [K, Y, X].

    Window k covers `[start + k*stride, start + k*stride + step_length)`. A stride equal to
    `step_length` (the default) makes the windows disjoint, a smaller one makes them overlap, a
    larger one leaves gaps. Slices that no window sees (gaps, and the ends where Z is not a
    multiple of the stride) are `~covered`: A ignores them, A^T and A^+ leave them zero,
    `consistent` leaves them as they are.

    All operations are per column `(y, x)`, work in any floating dtype on any device, and are
    differentiable.

    Args:
        depth: Number of slices Z of the volume.
        step_length: Slices integrated into one projection, s >= 1.
        stride: Slices between window starts; default `step_length`.
        weights: Axial weights [s], non-negative, summing to 1 (to 1e-5; then scaled to sum to 1 in
            float64); default uniform, the mean.
        start: First slice of the first window.
        count: Number of windows K; default as many as fit.

    Raises:
        InputError: if the geometry is not possible.

    Examples:
        >>> import torch
        >>> A = AxialProjection(depth=6, step_length=3)
        >>> x = torch.arange(6.0)[:, None, None]
        >>> A(x).flatten().tolist()
        [1.0, 4.0]
        >>> A.pseudo_inverse(A(x)).flatten().tolist()
        [1.0, 1.0, 1.0, 4.0, 4.0, 4.0]

    Source: MicroDiffusion (arXiv 2403.10815), section 3.
    """

    def __init__(
        self,
        depth: int,
        step_length: int,
        *,
        stride: int | None = None,
        weights: Sequence[float] | np.ndarray | Tensor | None = None,
        start: int = 0,
        count: int | None = None,
    ) -> None:
        self.depth = _integer("depth", depth, 1)
        self.step_length = _integer("step_length", step_length, 1)
        self.stride = self.step_length if stride is None else _integer("stride", stride, 1)
        self.start = _integer("start", start, 0)
        if self.start + self.step_length > self.depth:
            room = f"at most {self.depth - self.start} (depth {self.depth}, start {self.start})"
            raise InputError("step_length", room, self.step_length)
        fitting = (self.depth - self.start - self.step_length) // self.stride + 1
        self.count = fitting if count is None else _integer("count", count, 1)
        if self.count > fitting:
            geometry = f"depth {depth}, step_length {step_length}, stride {self.stride}"
            expected = f"at most {fitting} windows ({geometry}, start {start})"
            raise InputError("count", expected, self.count)
        self._taps = _checked_weights(weights, self.step_length)

    def __repr__(self) -> str:
        windows = f"step_length={self.step_length}, stride={self.stride}, start={self.start}"
        return f"AxialProjection(depth={self.depth}, {windows}, count={self.count})"

    @property
    def weights(self) -> Tensor:
        """Axial weights, float64 [s], summing to 1."""
        return torch.tensor(self._taps, dtype=torch.float64)

    @property
    def windows(self) -> list[tuple[int, int]]:
        """First and past-the-end slice of every window."""
        starts = range(self.start, self.start + self.count * self.stride, self.stride)
        return [(lo, lo + self.step_length) for lo in starts]

    @property
    def centres(self) -> Tensor:
        """Weighted centre of every window in slices, float64 [K]: 2.5 for the mean of slices 0 to
        5.
        """
        centre = math.fsum(i * w for i, w in enumerate(self._taps))
        return self.start + centre + self.stride * torch.arange(self.count, dtype=torch.float64)

    @property
    def covered(self) -> Tensor:
        """Slices that at least one window sees with a weight above zero, bool [Z]."""
        mask = torch.zeros(self.depth, dtype=torch.bool)
        for lo, _ in self.windows:
            for tap, weight in enumerate(self._taps):
                mask[lo + tap] |= weight > 0.0
        return mask

    @property
    def condition(self) -> float:
        """Condition number of `A A^T`: 1 without overlap, about K^2 for even overlap; A^+ is damped
        above 1e10.
        """
        return gram_condition(self._taps, self.stride, self.count)

    def __call__(self, x: Tensor) -> Tensor:
        """`A x`: [Z, Y, X] -> [K, Y, X]."""
        self._check("x", x, self.depth)
        return axial_projection(x, self._taps, self.stride, self.start, self.count)

    def adjoint(self, y: Tensor) -> Tensor:
        """`A^T y`: [K, Y, X] -> [Z, Y, X]."""
        self._check("y", y, self.count)
        return axial_backprojection(y, self._taps, self.stride, self.start, self.depth)

    @property
    def T(self) -> Callable[[Tensor], Tensor]:
        """The adjoint, to be written `A.T(y)`."""
        return self.adjoint

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """`A^+ y = A^T (A A^T)^-1 y`, the volume of least norm with the projections y: [K, Y, X] ->
        [Z, Y, X].
        """
        self._check("y", y, self.count)
        return axial_pseudo_inverse(y, self._taps, self.stride, self.start, self.depth)

    def consistent(self, x: Tensor, y: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        """`x + weight * A^+ (y - A x)`: the nearest volume to x whose projections are y (for weight
        1).

        Args:
            x: Volume [Z, Y, X].
            y: Projections [K, Y, X].
            weight: 1 for exact consistency, less for a step towards it; a number, or a tensor that
                broadcasts to x.

        Returns:
            Volume [Z, Y, X]; slices that no window sees are those of x.
        """
        residual = y - self(x)
        return x + weight * self.pseudo_inverse(residual)

    def interpolate(self, y: Tensor, mode: Literal["linear", "nearest"] = "linear") -> Tensor:
        """Interpolate projections along z between the window centres; constant beyond the first and
        last centre.

        Args:
            y: Projections [K, Y, X].
            mode: "linear", or "nearest" for the projection with the nearest centre (the earlier one
                of two).

        Returns:
            Volume [Z, Y, X] in the dtype of y.

        Raises:
            InputError: for another mode or a wrong shape.
        """
        self._check("y", y, self.count)
        if mode not in ("linear", "nearest"):
            raise InputError("mode", "'linear' or 'nearest'", repr(mode))
        first = float(self.centres[0])
        slices = torch.arange(self.depth, dtype=torch.float64)
        position = ((slices - first) / self.stride).clamp(0.0, self.count - 1.0)
        if mode == "nearest":
            return y[(position - 0.5).ceil().clamp(min=0.0).long().to(y.device)]
        below = position.floor().clamp(max=max(self.count - 2.0, 0.0))
        above = (below + 1.0).clamp(max=self.count - 1.0)
        fraction = (position - below).to(dtype=y.dtype, device=y.device)[:, None, None]
        low, high = y[below.long().to(y.device)], y[above.long().to(y.device)]
        return torch.lerp(low, high, fraction)

    def A(self, x: Tensor) -> Tensor:
        """`A x`, under the name that deepinv uses."""
        return self(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """`A^T y`, under the name that deepinv uses."""
        return self.adjoint(y)

    def A_dagger(self, y: Tensor) -> Tensor:
        """`A^+ y`, under the name that deepinv uses."""
        return self.pseudo_inverse(y)

    def _check(self, name: str, data: Tensor, length: int) -> None:
        if not isinstance(data, Tensor):
            raise InputError(name, "a torch tensor", type(data).__name__)
        if data.ndim != 3 or data.shape[0] != length:
            raise InputError(name, f"shape [{length}, Y, X]", f"shape {list(data.shape)}")
        if not data.is_floating_point():
            raise InputError(name, "a floating-point tensor", data.dtype)


def _integer(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(name, "an integer", repr(value)) from None
    if isinstance(value, bool) or number < least:
        raise InputError(name, f"an integer of at least {least}", value)
    return number


def _checked_weights(
    weights: Sequence[float] | np.ndarray | Tensor | None, step_length: int
) -> tuple[float, ...]:
    if weights is None:
        return (1.0 / step_length,) * step_length
    if isinstance(weights, Tensor):
        weights = weights.detach().cpu().numpy()
    try:
        values = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("weights", f"{step_length} numbers", repr(weights)) from None
    if values.shape != (step_length,):
        expected = f"{step_length} numbers (one per slice of a window)"
        raise InputError("weights", expected, f"shape {list(values.shape)}")
    if not np.isfinite(values).all() or (values < 0.0).any():
        raise InputError("weights", "finite, non-negative numbers", values.tolist())
    total = math.fsum(values)
    if abs(total - 1.0) > _SUM_TOLERANCE:
        raise InputError("weights", "a sum of 1", f"a sum of {total:.6g}")
    return tuple(float(w) / total for w in values)
