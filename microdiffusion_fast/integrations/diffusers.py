"""The blended chain as schedulers of diffusers: drop-in in a pipeline's loop.

    scheduler = GammaBlendedDDPMScheduler.from_config(pipeline.scheduler.config, gamma=0.1)
    scheduler.set_prior(prior)
    pipeline.scheduler = scheduler

Between two calls of the network the state is one pass of `blended_step`. It is blended with the
prior when a step *ends*, so that a pipeline that knows of no prior hands the blended state to its
network; the first state, which no step ends in, is blended by `scale_model_input`. A pipeline that
does not call that (DDPMPipeline, DDIMPipeline) shows its network pure noise in the first call, and
the chain is that of `make_plan(gamma=(0, gamma, gamma, ...))`.

Timesteps count from 0 here, as in diffusers: theirs is ours less one. Their `guidance_scale` g is
1 + w: the paper's w = 1.8 is guidance_scale 2.8. Steps are not differentiable.
"""

from __future__ import annotations

from microdiffusion_fast.integrations import require

require("diffusers")

import math

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from torch import Tensor

from microdiffusion_fast.errors import InputError
from microdiffusion_fast.integrations.diffusers_step import (
    Coefficients,
    ConfigMixin,
    GammaBlend,
    Generators,
    Level,
    SchedulerMixin,
)
from microdiffusion_fast.schedule_checks import choice, number

# The mixins are part of the module for `DiffusionPipeline.from_pretrained`, which looks there for
# the class whose loader it should call.
__all__ = [
    "ConfigMixin",
    "GammaBlendedDDIMScheduler",
    "GammaBlendedDDPMScheduler",
    "SchedulerMixin",
]

_MIX = {"fixed_small": 0.0, "fixed_small_log": 0.0, "fixed_large": 1.0}
_LEAST_VARIANCE = 1e-20  # as theirs: the posterior of the last step, whose variance is 0


class GammaBlendedDDPMScheduler(GammaBlend, DDPMScheduler):
    """diffusers' DDPMScheduler whose states are blended with a prior.

    Equal to DDPMScheduler at gamma = 0 but for rounding, of which it has less: coefficients are
    float64. Dynamic thresholding and learned variances are refused.

    Args:
        gamma: weight of the prior in the states that the network sees, in [0, 1]: one number, or
            one per inference step, the noisiest first.
        variance_mix: v of the variance `exp(v log(beta) + (1 - v) log(beta_tilde))`, the paper's is
            0.3; None is what `variance_type` says.
        noise_seed: draw the noise of the steps from the voxel-wise counter generator, so that it
            depends on no batch; None draws from the `generator` of a step, as diffusers does.
        num_train_timesteps, beta_start, ...: as in DDPMScheduler.

    Raises:
        InputError: an option is out of range, or one that the kernel cannot serve.

    Source: MicroDiffusion (arXiv 2403.10815), section 3; Ho et al. 2020 (arXiv 2006.11239), eq. 7.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        *,
        gamma: float | list[float] = 0.0,
        variance_mix: float | None = None,
        noise_seed: int | None = None,
    ) -> None:
        DDPMScheduler.__init__(
            self,
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            variance_type=variance_type,
            clip_sample=clip_sample,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            steps_offset=steps_offset,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        choice("variance_type", variance_type, tuple(_MIX))
        mix = _MIX[variance_type] if variance_mix is None else variance_mix
        self._mix = number("variance_mix", mix, 0.0, 1.0)
        self._setup()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Sets the timesteps of the next chain, as DDPMScheduler does."""
        super().set_timesteps(num_inference_steps, device, timesteps)
        self._restart()
        self._gamma(0)  # one per step, if it is several

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """From the blended state of this timestep to that of the next.

        Args:
            model_output: the network's prediction, [N, C, Y, X].
            timestep: one of `timesteps`.
            sample: the state that the network saw; the very first as it was before its blend.
            generator: of the noise, one or one per sample.
            return_dict: False for a plain tuple.

        Returns:
            `prev_sample`, blended but for the last, and `pred_original_sample`, x0.

        Raises:
            InputError: shapes do not fit, the timestep is none of the chain, or gamma is not 0 and
                no prior was set.
        """
        index = self._place(timestep)
        noise = self._drawn(model_output, generator) if self._steps[index] > 0 else None
        state, x0 = self._advance(model_output, index, sample, noise, self._row, ())
        if not return_dict:
            return state, x0
        return DDPMSchedulerOutput(prev_sample=state, pred_original_sample=x0)

    def _row(self, index: int) -> Coefficients:
        t = self._steps[index]
        last = index + 1 == len(self._steps)
        now = float(self.alphas_cumprod[t])
        end = 1.0 if last else float(self.alphas_cumprod[self._steps[index + 1]])
        level = Level(now, end)
        a = math.sqrt(end) * level.beta / (1 - now)
        b = math.sqrt(now / end) * (1 - end) / (1 - now)
        tilde = max(level.tilde, _LEAST_VARIANCE)
        d = math.sqrt(level.beta**self._mix * tilde ** (1 - self._mix)) if t > 0 else 0.0
        return {**self._to_x0(level), "a": a, "b": b, "c": 0.0, "d": d}


class GammaBlendedDDIMScheduler(GammaBlend, DDIMScheduler):
    """diffusers' DDIMScheduler whose states are blended with a prior.

    Equal to DDIMScheduler at gamma = 0 but for rounding, of which it has less: coefficients are
    float64. Dynamic thresholding is refused. DDIMPipeline puts a DDIMScheduler in place of the
    scheduler it is built with: assign this one to `pipeline.scheduler` afterwards.

    Args:
        gamma: weight of the prior in the states that the network sees, in [0, 1]: one number, or
            one per inference step, the noisiest first.
        noise_seed: draw the noise of the steps from the voxel-wise counter generator, so that it
            depends on no batch; None draws from the `generator` of a step, as diffusers does.
        num_train_timesteps, beta_start, ...: as in DDIMScheduler.

    Raises:
        InputError: an option is out of range, or one that the kernel cannot serve.

    Source: MicroDiffusion (arXiv 2403.10815), section 3; Song et al. 2021 (arXiv 2010.02502),
        eqs. 12 and 16.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        *,
        gamma: float | list[float] = 0.0,
        noise_seed: int | None = None,
    ) -> None:
        DDIMScheduler.__init__(
            self,
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            clip_sample=clip_sample,
            set_alpha_to_one=set_alpha_to_one,
            steps_offset=steps_offset,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self._setup()

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Sets the timesteps of the next chain, as DDIMScheduler does."""
        super().set_timesteps(num_inference_steps, device)
        self._restart()
        self._gamma(0)  # one per step, if it is several

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """From the blended state of this timestep to that of the next.

        Args:
            model_output: the network's prediction, [N, C, Y, X].
            timestep: one of `timesteps`.
            sample: the state that the network saw; the very first as it was before its blend.
            eta: share of DDPM's noise, in [0, 1].
            use_clipped_model_output: take eps from the limited x0, not from the prediction.
            generator: of the noise, one or one per sample.
            variance_noise: the noise itself, in place of a generator.
            return_dict: False for a plain tuple.

        Returns:
            `prev_sample`, blended but for the last, and `pred_original_sample`, x0.

        Raises:
            InputError: `set_timesteps` was not called, shapes do not fit, the timestep is none of
                the chain, a number is out of range, or gamma is not 0 and no prior was set.
        """
        if self.num_inference_steps is None:
            raise InputError("timesteps", "those of `set_timesteps`", "none set")
        if variance_noise is not None and generator is not None:
            raise InputError("variance_noise", "None beside a generator", "both")
        number("eta", eta, 0.0, 1.0)
        index = self._place(timestep)
        noise = self._drawn(model_output, generator, variance_noise) if eta > 0 else None
        corrected = bool(use_clipped_model_output)
        state, x0 = self._advance(
            model_output,
            index,
            sample,
            noise,
            lambda i: self._row(i, eta, corrected=corrected),
            (eta, corrected),
        )
        if not return_dict:
            return state, x0
        return DDIMSchedulerOutput(prev_sample=state, pred_original_sample=x0)

    def _row(self, index: int, eta: float, *, corrected: bool) -> Coefficients:
        t = self._steps[index]
        # Not the next of `timesteps`: where these are spaced otherwise, diffusers goes this far.
        previous = t - self.config.num_train_timesteps // self.num_inference_steps
        now = float(self.alphas_cumprod[t])
        final = float(self.final_alpha_cumprod)
        level = Level(now, float(self.alphas_cumprod[previous]) if previous >= 0 else final)
        variance = eta**2 * level.tilde
        signal, noise = level.signal, level.noise
        direction = math.sqrt(max(1 - level.end - variance, 0.0))
        # direction * eps, where eps = of_x0 * x0 + of_x * x + of_output * prediction
        of_x0, of_x, of_output = -signal / noise, 1 / noise, 0.0
        if not corrected and self.config.prediction_type == "epsilon":
            of_x0, of_x, of_output = 0.0, 0.0, 1.0
        elif not corrected and self.config.prediction_type == "v_prediction":
            of_x0, of_x, of_output = 0.0, noise, signal
        elif not corrected:
            of_x0, of_output = 0.0, of_x0
        return {
            **self._to_x0(level),
            "a": math.sqrt(level.end) + direction * of_x0,
            "b": direction * of_x,
            "c": direction * of_output,
            "d": math.sqrt(variance),
        }
