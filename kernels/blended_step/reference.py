"""blended_step in plain torch: all that lies between two calls of the network, as in the papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..axial_projection.reference import compute_dtype, project, pseudo_inverse


class Row(NamedTuple):
    """One step's coefficients, 0-dim tensors; the fields are the columns of the table, in order."""

    p: Tensor  # x0 = p * prediction + q * x
    q: Tensor
    w: Tensor  # prediction = (1 + w) * cond - w * uncond
    low: Tensor  # limits of x0
    high: Tensor
    trust: Tensor  # x0 += trust * A^+ (projections - A x0)
    a: Tensor  # x_prev = a * x0 + b * x + c * history + d * noise
    b: Tensor
    c: Tensor
    d: Tensor
    gamma: Tensor  # of the state that the step ends in; 0 in the last row
    key: Tensor  # the step word of the noise: the timestep that the step ends in


COLUMNS = Row._fields


def blended_step_reference(
    x: Tensor,
    prior: Tensor,
    cond: Tensor,
    table: Tensor,
    step: Tensor,
    *,
    uncond: Tensor | None = None,
    noise: Tensor | None = None,
    history: Tensor | None = None,
    projections: Tensor | None = None,
    weights: Sequence[float] = (),
    stride: int = 1,
    start: int = 0,
) -> None:
    """Advances the blended state `x` [Z, Y, X] by one row of the table, in place.

    Arguments as in `blended_step`, already checked. Computes in the dtype of `x`, at least float32,
    and rounds once on store. Multiplications and additions stay separate operations, so a voxel's
    bits do not depend on where in the array it lies.

    Source: Ho et al. 2020 (arXiv 2006.11239) eq. 7 and algorithm 2; Song et al. 2021 (arXiv
        2010.02502) eq. 12; Lu et al. 2022 (arXiv 2211.01095) algorithm 2; Ho and Salimans 2022
        (arXiv 2207.12598) eq. 6; Wang et al. 2022, DDNM (arXiv 2212.00490) eq. 13; MicroDiffusion
        (arXiv 2403.10815) for the blend with the prior.
    """
    dtype = compute_dtype(x.dtype)
    # An index on the device, not `table[step]`: that reads the counter back to the host.
    row = Row(*table.index_select(0, step.reshape(1))[0].to(dtype).unbind())
    state = x.to(dtype)

    prediction = cond.to(dtype)
    if uncond is not None:
        prediction = (1 + row.w) * prediction - row.w * uncond.to(dtype)

    x0 = (row.p * prediction + row.q * state).clamp_(row.low, row.high)
    if projections is not None:
        count, depth = projections.shape[0], x.shape[0]
        residual = projections.to(dtype) - project(x0, weights, stride, start, count)
        x0 += row.trust * pseudo_inverse(residual, weights, stride, start, depth)

    previous = row.a * x0 + row.b * state
    if history is not None:
        previous += row.c * history.to(dtype)
        history.copy_(x0)
    if noise is not None:
        previous += row.d * noise.to(dtype)

    x.copy_((1 - row.gamma) * previous + row.gamma * prior.to(dtype))
