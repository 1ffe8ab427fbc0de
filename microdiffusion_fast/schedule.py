"""The noise schedule, the gamma schedule and every sampler's coefficients, in float64.

All that a sampler does between two calls of the network is linear, so a `SamplingPlan` is one table
with a row per step; `microdiffusion_fast.kernels.blended_step` says what a row does. The updates
take the blended state for x_t, as the authors' code does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.kernels.blended_step import COLUMNS
from microdiffusion_fast.schedule_checks import choice, integer, limits, number, option, per_step
from microdiffusion_fast.schedule_gamma import GammaSchedule, gammas_at
from microdiffusion_fast.schedule_updates import (
    Point,
    ddim,
    ddpm,
    dpm,
    even_in_snr,
    even_in_time,
    to_x0,
)

Sampler = Literal["ddim", "ddpm", "dpm++"]
Prediction = Literal["x0", "eps", "v"]
Consistency = Literal["off", "soft", "hard"]
Spacing = Literal["time", "snr"]

_VARIANCE_MIX = 0.3  # the authors' v
_LEAST_ALPHA_BAR = 1e-30  # keeps 1 / sqrt(alpha_bar) far inside float32


class NoiseLevel(NamedTuple):
    """A blended state: `(1 - gamma) * (signal * x0 + noise * eps) + gamma * prior`."""

    signal: float
    noise: float
    gamma: float


@dataclass(frozen=True)
class NoiseSchedule:
    """Linear betas: `beta_t` from `beta_start` at t = 1 to `beta_end` at t = `steps` (T).

    Raises:
        InputError: T is not in [1, 2^24], or a beta not in (0, 1), or the last alpha_bar vanishes.

    Source: Ho et al. 2020 (arXiv 2006.11239), section 4 and eq. 4.
    """

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        # 2^24: a float32 table holds the timesteps exactly.
        integer("steps", self.steps, 1, 1 << 24)
        number("beta_start", self.beta_start, 1e-12, 1 - 1e-12)
        number("beta_end", self.beta_end, self.beta_start, 1 - 1e-12)
        if self._log_alpha_bar[-1] < math.log(_LEAST_ALPHA_BAR):
            got = f"exp({self._log_alpha_bar[-1]:.0f})"
            raise InputError("beta_end", f"a last alpha_bar above {_LEAST_ALPHA_BAR}", got)

    @cached_property
    def _betas(self) -> tuple[float, ...]:
        step = (self.beta_end - self.beta_start) / max(self.steps - 1, 1)
        return tuple(self.beta_start + step * i for i in range(self.steps))

    @cached_property
    def _log_alpha_bar(self) -> tuple[float, ...]:
        # The logarithm keeps 1 - alpha_bar exact where alpha_bar is nearly 1.
        return tuple(accumulate((math.log1p(-beta) for beta in self._betas), initial=0.0))

    @property
    def betas(self) -> Tensor:
        """float64 [T]; beta_t is `betas[t - 1]`."""
        return torch.tensor(self._betas, dtype=torch.float64)

    @property
    def alpha_bar(self) -> Tensor:
        """float64 [T + 1], indexed by t; 1 at t = 0, the clean volume."""
        return torch.tensor(self._log_alpha_bar, dtype=torch.float64).exp()

    def level(self, t: int, gamma: float = 0.0) -> NoiseLevel:
        """Signal `sqrt(alpha_bar_t)` and noise `sqrt(1 - alpha_bar_t)` of timestep t in 0..T."""
        log = self._log_alpha_bar[integer("t", t, 0, self.steps)]
        return NoiseLevel(math.exp(log / 2), math.sqrt(-math.expm1(log)), gamma)


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """One sampling chain: what `sample` does at each of its K steps.

    Attributes:
        timesteps: K descending timesteps; step k calls the network at `timesteps[k]`.
        gammas: K weights of the prior in the states handed to the network (see `make_plan`).
        levels: K noise levels to tell the network: those of training.
        start: shares of the prior and of the noise in the first state before its blend.
        table: float64 [K, columns], the columns in the order of `COLUMNS`.
        skipped: rows of the whole chain before these; the sampler counts steps from there.
    """

    timesteps: tuple[int, ...]
    gammas: tuple[float, ...]
    levels: tuple[NoiseLevel, ...]
    start: tuple[float, float]
    table: Tensor
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.timesteps)

    def last(self, count: int) -> SamplingPlan:
        """The last `count` steps: the same rows, timesteps and noise, from the prior diffused to
        the first of them; the plan itself where that is all of it.
        """
        cut = len(self) - integer("count", count, 1, len(self))
        if cut == 0:
            return self
        return replace(
            self,
            timesteps=self.timesteps[cut:],
            gammas=self.gammas[cut:],
            levels=self.levels[cut:],
            start=(self.levels[cut].signal, self.levels[cut].noise),
            table=self.table[cut:],
            skipped=self.skipped + cut,
        )

    def column(self, name: str) -> Tensor:
        """One column of the table, float64 [K]."""
        return self.table[:, COLUMNS.index(name)]

    def uses(self, name: str) -> bool:
        """Whether any step has a non-zero coefficient in this column.

        `w` asks for an unconditional prediction, `trust` for projections, `c` for the x0 before.
        """
        return bool((self.column(name) != 0).any())

    @cached_property
    def chain_levels(self) -> tuple[NoiseLevel, ...]:
        """What the states are made of if the network returns the true x0, K noise levels.

        `levels` describes a state that is blended once, as in training. In the chain the shares of
        earlier blends stay in the state: at gamma = 0.1 and many steps it holds more of the prior
        and less noise. A network trained over free (signal, noise, gamma) can be told these.
        """
        prior, noise = self.start
        signal = 0.0
        levels = []
        rows = torch.stack([self.column(name) for name in "abcd"], dim=1).tolist()
        for gamma, nominal, (a, b, c, d) in zip(self.gammas, self.levels, rows, strict=True):
            signal, noise = (1 - gamma) * signal, (1 - gamma) * noise
            prior = (1 - gamma) * prior + gamma
            rest = 1 - prior
            levels.append(
                NoiseLevel(signal / rest, noise / rest, prior)
                if rest > 0
                else nominal._replace(gamma=1.0)
            )
            signal, noise, prior = a + c + b * signal, math.hypot(b * noise, d), b * prior
        return tuple(levels)


def make_plan(
    steps: int,
    *,
    schedule: NoiseSchedule | None = None,
    sampler: Sampler = "ddim",
    gamma: float | Sequence[float] | None = None,
    gamma_schedule: GammaSchedule = "constant",
    prediction: Prediction = "x0",
    variance_mix: float | None = None,
    eta: float | None = None,
    guidance: float = 0.0,
    consistency: Consistency | Sequence[float] = "off",
    noise_to_signal: float | None = None,
    clamp: tuple[float, float] | None = None,
    first_timestep: int | None = None,
    last_timestep: int = 1,
    spacing: Spacing = "time",
) -> SamplingPlan:
    """Makes the plan of a sampling chain of `steps` network calls.

    The timesteps descend from `first_timestep` to `last_timestep`, both included; one step visits
    `first_timestep` alone. The last step ends in t = 0, the clean volume.

    Args:
        steps: network calls, 1 to `first_timestep - last_timestep + 1`.
        schedule: default linear, T = 1000.
        sampler: "ddpm" (on a subset of timesteps with betas from the ratios of alpha_bar), "ddim",
            or "dpm++" (DPM-Solver++(2M); first order in its first and last step).
        gamma: weight of the prior in the blend `x~ = (1 - gamma_t) * x_t + gamma_t * prior` that
            the network sees: one number, or one per step, the noisiest first; None is 0. The
            authors' released code blends `0.1 * x + 0.9 * inr`, which is gamma = 0.9 here; the
            supplement's ablation finds the effect level off from 0.1.
        gamma_schedule: how gamma falls with the timestep, see `schedule_gamma.gamma_schedule`;
            other than "constant" it takes one gamma, the largest.
        prediction: what the network returns: x0, eps, or v = sqrt(ab) * eps - sqrt(1 - ab) * x0.
        variance_mix: v of DDPM's variance `exp(v log(beta) + (1 - v) log(beta_tilde))` in [0, 1];
            default 0.3, the authors'.
        eta: DDIM's noise in [0, 1]; default 0, deterministic; 1 is DDPM with `variance_mix` 0.
        guidance: w of classifier-free guidance, `(1 + w) * cond - w * uncond`.
        consistency: "off"; "hard": every step's x0 is put on A x0 = y; "soft": moved towards it by
            the Wiener weight `u / (u + noise_to_signal)`, where `u = 1 - alpha_bar_t` is the
            variance that x_t leaves open in an x0 of unit variance: noisy projections are trusted
            less the more is known. Or one weight in [0, 1] per step.
        noise_to_signal: for "soft": variance of the noise in the projections over the variance
            of the signal in them, `var_y / (sum(weights^2) var_x)` for disjoint windows.
        clamp: limits (low, high) of x0, before consistency.
        first_timestep: noisiest timestep, default T. A chain that starts below T starts from the
            prior diffused to there, at T from noise alone.
        last_timestep: the least noisy timestep.
        spacing: "time": timesteps at even distances, halves rounded down. "snr": at even distances
            of log(signal / noise), as far as they are distinct; closer to the exact flow in few
            steps (for Gaussian data of sd 0.05, 10 steps of "dpm++" give 0.95 of it, 0.47 in time).

    Raises:
        InputError: an option is out of range, or given for a sampler that does not use it.

    Examples:
        >>> plan = make_plan(4, sampler="ddim", gamma=0.1)
        >>> len(plan), [int(t) for t in plan.timesteps]
        (4, [1000, 667, 334, 1])

    Source: Ho et al. 2020 (arXiv 2006.11239) eq. 7; Song et al. 2021 (arXiv 2010.02502) eqs. 12
        and 16; Lu et al. 2022 (arXiv 2211.01095) algorithm 2; Salimans and Ho 2022 (arXiv
        2202.00512) for v; MicroDiffusion (arXiv 2403.10815) for gamma.
    """
    schedule = schedule or NoiseSchedule()
    total = schedule.steps
    first = total if first_timestep is None else first_timestep
    integer("first_timestep", first, 1, total)
    integer("last_timestep", last_timestep, 1, first)
    integer("steps", steps, 1, first - last_timestep + 1)
    choice("sampler", sampler, ("ddim", "ddpm", "dpm++"))
    choice("prediction", prediction, ("x0", "eps", "v"))
    choice("spacing", spacing, ("time", "snr"))
    mix = option("variance_mix", variance_mix, _VARIANCE_MIX, used=sampler == "ddpm")
    eta = option("eta", eta, 0.0, used=sampler == "ddim")
    number("guidance", guidance, -1.0, math.inf)
    low, high = limits(clamp)

    points = [Point(t, log) for t, log in enumerate(schedule._log_alpha_bar)]
    if spacing == "time":
        timesteps = even_in_time(steps, first, last_timestep)
    else:
        timesteps = even_in_snr(steps, points[last_timestep : first + 1])
    gammas = gammas_at(timesteps, gamma, gamma_schedule, total)
    levels = tuple(schedule.level(t, g) for t, g in zip(timesteps, gammas, strict=True))
    trusts = _trusts(consistency, noise_to_signal, levels)

    chain = [points[t] for t in (*timesteps, 0)]
    rows = []
    for k, (now, end) in enumerate(pairwise(chain)):
        row = {"w": guidance, "low": low, "high": high, "trust": trusts[k], "key": end.t}
        row["gamma"] = (*gammas, 0.0)[k + 1]
        row["p"], row["q"] = to_x0(prediction, now)
        if sampler == "ddpm":
            update = ddpm(now, end, mix)
        elif sampler == "ddim":
            update = ddim(now, end, eta)
        else:
            update = dpm(chain[k - 1] if k else None, now, end)
        row |= zip("abcd", update, strict=True)
        rows.append([row[name] for name in COLUMNS])
    table = torch.tensor(rows, dtype=torch.float64)
    start = (levels[0].signal, levels[0].noise) if first < total else (0.0, 1.0)
    return SamplingPlan(timesteps, gammas, levels, start, table)


def _trusts(
    consistency: Consistency | Sequence[float],
    noise_to_signal: float | None,
    levels: Sequence[NoiseLevel],
) -> tuple[float, ...]:
    """The weight of the projections at every step."""
    if noise_to_signal is not None and consistency != "soft":
        raise InputError("noise_to_signal", "None unless consistency is 'soft'", noise_to_signal)
    if not isinstance(consistency, str):
        return per_step("consistency", consistency, len(levels))
    choice("consistency", consistency, ("off", "soft", "hard"))
    if consistency != "soft":
        return (float(consistency == "hard"),) * len(levels)
    if noise_to_signal is None:
        raise InputError("noise_to_signal", "a number beside consistency 'soft'", None)
    ratio = number("noise_to_signal", noise_to_signal, 0.0, math.inf)
    return tuple(level.noise**2 / (level.noise**2 + ratio) for level in levels)
