"""Exact truncated sampling: the last K steps of a blended chain stand for all of them.

**Algebra.** A step blends its state with the prior first, `(1 - gamma) * x + gamma * prior`, and
all that follows (network, consistency, update, noise) sees the blend alone. The noise belongs to
(seed, timestep, voxel), so two chains through the same rows differ by their starts and nothing
else, and every blend multiplies that difference by 1 - gamma: after K steps `prod(1 - gamma)` of it
is left. Sampler, eta, guidance and consistency (a projection) change nothing about that.

**Not algebra.** Between two blends the network may amplify a difference, guidance its answer, and
the history of a multistep sampler hands an x0 past a blend; nothing but a run can say how much. So
`exact_plan` keeps a reserve, and `probe` measures: two very different starts over the same K steps.
`sample_exact` takes more steps until what it measures is within the tolerance. Two starts are
evidence on this network and this volume, not a proof over all starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.kernels.counter_noise import counter_noise
from microdiffusion_fast.sampler import Denoise, sample
from microdiffusion_fast.schedule import SamplingPlan
from microdiffusion_fast.schedule_checks import number

TOL = 1e-6
_RANGE = 2.0  # network intensities lie in [-1, 1]
_LARGEST_NORMAL = 6.77  # of counter_noise
# The network may undo this share of every contraction: amplify by (1 - gamma)^-0.15, which is 1.41
# a step at gamma = 0.9 and 1.016 at 0.1.
_RESERVE = 0.15


@dataclass(frozen=True, eq=False)
class Probe:
    """How far two starts end apart, and where the one that counts ended.

    Attributes:
        plan: the steps that both took.
        bound: `remembered(plan)`, by algebra; share of the intensity range.
        difference: largest difference measured between the two ends, likewise.
        volume: [Z, Y, X] from the plan's own start, as `sample` gives it.
    """

    plan: SamplingPlan
    bound: float
    difference: float
    volume: Tensor


def remembered(plan: SamplingPlan) -> float:
    """What the last steps of a chain may keep of a wrong start, as a share of the intensity range.

    `prod(1 - gamma) * (signal + 6.77 * noise)`, signal and noise those of the first timestep. The
    state of the whole chain there and the prior diffused to there both are `signal * (a value in
    the range) + noise * (a normal)`, no normal being above 6.77, so half their largest distance is
    the second factor. It holds while predictions of x0 stay in the range, and as far as the network
    does not amplify; see the module.
    """
    level = plan.levels[0]
    return math.prod(1 - gamma for gamma in plan.gammas) * _reach(level.signal, level.noise)


def exact_plan(plan: SamplingPlan, tol: float = TOL) -> SamplingPlan:
    """The last K steps of a plan that equal the whole plan to `tol`.

    The least K with `prod(1 - gamma)^0.85 * (signal + 6.77 * noise) <= tol`: the bound of
    `remembered` with a reserve for the network's gain. At gamma = 0.9 that is 3 of 1000 for 1/255
    and 8 for 1e-6. A multistep sampler takes one more: the first of its rows has no x0 before it,
    which makes its state another wrong start, and leaves the history for the K that follow.

    Args:
        plan: the whole chain, such as all T timesteps.
        tol: largest difference, as a share of the intensity range, in (0, 1).

    Raises:
        InputError: the whole chain does not forget its start to `tol`: gamma is 0, or too small, or
            0 for too long.

    Examples:
        >>> from microdiffusion_fast.schedule import make_plan
        >>> whole = make_plan(1000, sampler="ddpm", gamma=0.9)
        >>> len(exact_plan(whole, tol=1e-6))
        8
    """
    count = _steps(plan, number("tol", tol, math.ulp(0.0), math.nextafter(1.0, 0.0)))
    if count is None:
        expected = f"a chain that forgets its start to {tol:g}, for 'exact'"
        left = math.prod(1 - gamma for gamma in plan.gammas) ** (1 - _RESERVE)
        raise InputError("gamma", expected, f"one that keeps {left:.2g} of it over all steps")
    return plan.last(count)


def probe(
    denoise: Denoise,
    prior: Tensor,
    plan: SamplingPlan,
    *,
    operator: AxialProjection | None = None,
    projections: Tensor | None = None,
    seed: int = 0,
    stream: int = 0,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Probe:
    """Runs a chain from two very different starts and reports how far apart they end.

    One is the plan's own. The other is the prior with its intensities turned over, under noise of
    unit variance that the chain does not hold: off by about the whole range, from single voxels to
    the volume's mean, which the state of the longer chain is not.

    Args:
        denoise, prior, operator, projections, seed, stream, callback: as in `sampler.sample`; the
            callback sees both chains.
        plan: the last steps of a longer one, from `exact_plan` or `SamplingPlan.last`.

    Raises:
        InputError: as `sampler.sample`.
    """

    def run(start: Tensor | None = None) -> Tensor:
        return sample(
            denoise,
            prior,
            plan,
            operator=operator,
            projections=projections,
            seed=seed,
            stream=stream,
            start=start,
            callback=callback,
        )

    own = run()
    foreign = counter_noise(
        prior.shape,
        seed=seed,
        step=plan.timesteps[0],
        stream=stream ^ 1 << 31,  # of no sample that anybody draws
        device=prior.device,
    )
    apart = (own - run(foreign - prior)).abs().max()
    return Probe(plan, remembered(plan), float(apart) / _RANGE, own)


def sample_exact(
    denoise: Denoise,
    prior: Tensor,
    plan: SamplingPlan,
    tol: float = TOL,
    *,
    operator: AxialProjection | None = None,
    projections: Tensor | None = None,
    seed: int = 0,
    stream: int = 0,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Probe:
    """Samples a chain by as many of its last steps as a probe finds enough.

    Begins with `exact_plan` and takes more steps until two starts end within `tol`; twice the
    network calls of the chain itself, one for each start.

    Args:
        denoise, prior, operator, projections, seed, stream, callback: as in `probe`.
        plan: the whole chain.
        tol: largest difference, as a share of the intensity range, in (0, 1).

    Raises:
        InputError: the chain does not forget its start, or more steps do not bring the starts
            together: the network amplifies, or `tol` is below its rounding.
    """
    short, before = exact_plan(plan, tol), math.inf
    aim = tol
    while True:
        found = probe(
            denoise,
            prior,
            short,
            operator=operator,
            projections=projections,
            seed=seed,
            stream=stream,
            callback=callback,
        )
        if found.difference <= tol:
            return found
        # Below half of what fewer steps gave: else more of them lead nowhere (nor do NaN).
        if len(short) == len(plan) or not found.difference < before / 2:
            expected = f"at least {found.difference:.1g}, by which two starts differ"
            raise InputError("tol", f"{expected} after {len(short)} steps", tol)
        before = found.difference
        aim *= tol / found.difference / 4
        count = _steps(plan, aim) or len(plan)
        short = plan.last(min(max(count, len(short) + 1), len(plan)))


def _reach(signal: float, noise: float) -> float:
    return signal + _LARGEST_NORMAL * noise


def _steps(plan: SamplingPlan, tol: float) -> int | None:
    """The least number of last steps with bound and reserve within `tol`; None if all are not."""
    left = 1.0
    for count, level in enumerate(reversed(plan.levels), start=1):
        left *= 1 - level.gamma
        if left ** (1 - _RESERVE) * _reach(level.signal, level.noise) <= tol:
            return min(count + plan.uses("c"), len(plan))
    return None
