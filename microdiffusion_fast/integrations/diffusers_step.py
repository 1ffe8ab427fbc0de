"""What the schedulers of diffusers share: the prior, the first blend, the call of the kernel."""

from __future__ import annotations

from microdiffusion_fast.integrations import require

require("diffusers")

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.kernels.blended_step import COLUMNS, NoiseKey, blended_step
from microdiffusion_fast.schedule_checks import choice, integer, number, per_step

Generators = torch.Generator | list[torch.Generator] | None
Coefficients = dict[str, float]


class Level(NamedTuple):
    """Where a step leads from and to, as alpha_bar."""

    now: float
    end: float

    @property
    def signal(self) -> float:
        """Share of x0 in the state that the step begins with."""
        return math.sqrt(self.now)

    @property
    def noise(self) -> float:
        """Share of the noise in that state."""
        return math.sqrt(1 - self.now)

    @property
    def beta(self) -> float:
        """Variance of the forward step from the end to now."""
        return 1 - self.now / self.end

    @property
    def tilde(self) -> float:
        """Variance of the end given now and x0."""
        return (1 - self.end) / (1 - self.now) * self.beta


class _Table(NamedTuple):
    """The rows of a whole chain on the device of its state, and what they were made for."""

    key: tuple[object, ...]
    rows: Tensor
    counters: Tensor


class GammaBlend(SchedulerMixin, ConfigMixin):
    """Mixin that goes before a scheduler of diffusers, and answers for its states in `_advance`."""

    timesteps: Tensor
    alphas_cumprod: Tensor

    def _setup(self) -> None:
        """Checks the options that diffusers has and `blended_step` has not."""
        config = self.config
        if config.thresholding:
            raise InputError("thresholding", "False (limits that depend on the data)", True)
        choice("prediction_type", config.prediction_type, ("epsilon", "sample", "v_prediction"))
        if config.noise_seed is not None:
            integer("noise_seed", config.noise_seed, 0, 2**63 - 1)
        if not isinstance(config.gamma, Sequence):
            number("gamma", config.gamma, 0.0, 1.0)
        self._prior: Tensor | None = None
        self._restart()

    def _restart(self) -> None:
        self._steps: list[int] = self.timesteps.tolist()
        self._index = {t: i for i, t in enumerate(self._steps)}
        self._table: _Table | None = None
        self._gammas: tuple[float, ...] | None = None
        self._begun = False
        self._shown: Tensor | None = None

    def set_prior(self, prior: Tensor | None) -> None:
        """Sets what the states are blended with; None for none.

        Args:
            prior: in the units of the samples, of their shape or one that broadcasts to it. A batch
                that a pipeline doubles for guidance takes it twice.
        """
        if prior is not None and (not isinstance(prior, Tensor) or not prior.is_floating_point()):
            raise InputError("prior", "a floating-point tensor or None", type(prior).__name__)
        self._prior = None if prior is None else prior.detach()

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The first state blended with the prior; later states as they are, blended already.

        Args:
            sample: the state, [N, C, Y, X].
            timestep: where the chain is; None is where it has come to.
        """
        index = 0 if timestep is None else self._place(timestep)
        if self._begun and (index or timestep is None):
            return sample
        self._begun = False
        self._shown = self._blend(sample, self._gamma(index))
        return self._shown

    def _gamma(self, index: int) -> float:
        if self._gammas is None:
            gamma = self.config.gamma
            self._gammas = (*per_step("gamma", gamma, len(self._steps)), 0.0)
        return self._gammas[index]

    def _blend(self, sample: Tensor, gamma: float) -> Tensor:
        if gamma == 0:
            return sample
        return (1 - gamma) * sample + gamma * self._prior_like(sample).to(sample.dtype)

    def _prior_like(self, sample: Tensor) -> Tensor:
        if self._prior is None:
            raise InputError("prior", "one set by set_prior, gamma is not 0", None)
        self._prior = prior = self._prior.to(sample.device)
        if prior.ndim == sample.ndim and prior.shape[1:] == sample.shape[1:]:
            copies, rest = divmod(sample.shape[0], prior.shape[0])
            if rest == 0:
                return prior.repeat(copies, *[1] * (prior.ndim - 1)) if copies > 1 else prior
        try:
            return prior.expand(sample.shape)
        except RuntimeError:
            expected = f"a shape that fits {list(sample.shape)}"
            raise InputError("prior", expected, list(prior.shape)) from None

    def _place(self, timestep: int | Tensor) -> int:
        index = self._index.get(int(timestep))
        if index is None:
            raise InputError("timestep", "one of `timesteps`", int(timestep))
        return index

    @torch.no_grad()
    def _advance(
        self,
        model_output: Tensor,
        index: int,
        sample: Tensor,
        noise: Tensor | NoiseKey | None,
        row: Callable[[int], Coefficients],
        options: tuple[float, ...],
    ) -> tuple[Tensor, Tensor]:
        """The state that the step ends in and the x0 that it saw.

        `row(index)` gives p, q, a, b, c and d; `options` are what else these depend on.
        """
        if model_output.shape != sample.shape:
            expected = f"shape {list(sample.shape)}, like the sample"
            raise InputError("model_output", expected, list(model_output.shape))
        if sample.ndim < 2:
            raise InputError("sample", "at least two axes", f"shape {list(sample.shape)}")
        if index == 0 or not self._begun:
            # The network saw what scale_model_input returned; pure noise where nobody called that.
            if self._shown is not None and self._shown is not sample:
                sample = self._blend(sample, self._gamma(index))
            self._shown = None
        self._begun = index + 1 < len(self._steps)
        blends = self._gamma(index + 1) != 0
        planes = (-1, *sample.shape[-2:])
        table = self._rows(sample, row, options)
        state = sample.detach().clone(memory_format=torch.contiguous_format)
        # Goes in as the prediction, for the terms in it that no limit of x0 touches; returns as x0.
        x0 = model_output.detach().clone(memory_format=torch.contiguous_format)
        cond = model_output.detach().reshape(planes)
        blended_step(
            state.view(planes),
            self._prior_like(sample).reshape(planes) if blends else cond,
            cond,
            table.rows,
            table.counters[index],
            noise=noise.reshape(planes) if isinstance(noise, Tensor) else noise,
            history=x0.view(planes),
        )
        return state, x0

    def _rows(
        self, sample: Tensor, row: Callable[[int], Coefficients], options: tuple[float, ...]
    ) -> _Table:
        dtype = torch.promote_types(sample.dtype, torch.float32)
        key = (sample.device, dtype, *options)
        if self._table is None or self._table.key != key:
            limit = self.config.clip_sample_range if self.config.clip_sample else math.inf
            shared = {"w": 0.0, "low": -limit, "high": limit, "trust": 0.0}
            rows = []
            for index, end in enumerate([*self._steps[1:], -1]):
                # The noise of a step belongs to the timestep that it ends in, 0 the clean sample.
                values = {**shared, **row(index), "gamma": self._gamma(index + 1), "key": end + 1}
                rows.append([values[name] for name in COLUMNS])
            table = torch.tensor(rows, dtype=torch.float64).to(sample.device, dtype)
            counters = torch.arange(len(rows), device=sample.device)
            self._table = _Table(key, table, counters)
        return self._table

    def _to_x0(self, level: Level) -> Coefficients:
        """x0 = p * prediction + q * x."""
        if self.config.prediction_type == "v_prediction":
            return {"p": -level.noise, "q": level.signal}
        if self.config.prediction_type == "sample":
            return {"p": 1.0, "q": 0.0}
        if level.signal == 0:
            expected = "'v_prediction' or 'sample' where alpha_bar is 0"
            raise InputError("prediction_type", expected, "'epsilon'")
        return {"p": -level.noise / level.signal, "q": 1 / level.signal}

    def _drawn(
        self, model_output: Tensor, generator: Generators, given: Tensor | None = None
    ) -> Tensor | NoiseKey:
        if given is not None:
            return given
        if self.config.noise_seed is not None:
            return NoiseKey(self.config.noise_seed)
        return randn_tensor(
            model_output.shape,
            generator=generator,
            device=model_output.device,
            dtype=model_output.dtype,
        )
