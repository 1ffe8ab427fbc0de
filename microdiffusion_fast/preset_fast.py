"""The fast preset: the hash-grid INR, and the shipped local denoiser adapted to the stack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .adaptation import AdaptOptions, adapt
from .adaptation_check import follow_noise, noise_to_error
from .denoiser import load_for
from .errors import InputError
from .exact import exact_plan
from .inference import StackDenoiser
from .inr import INROptions, fit_inr
from .preset import Prepared, Request, slice_noise
from .schedule import NoiseSchedule, Sampler, SamplingPlan, make_plan
from .tensor_files import digest
from .training_data import stated_blur

# Chosen on simulated validation volumes; docs/defaults.md has the comparison.
MEAN_STEPS = 1  # one call from pure noise is the posterior mean, which more steps leave
SAMPLE_STEPS = 4
GAMMA = 0.1
SAMPLER: Sampler = "ddim"


def prepare_fast(asked: Request) -> Prepared:
    """Fit the prior, adapt the denoiser, and bind it to the stack.

    Raises:
        InputError: an option out of range, or one that this preset does not have.
        Cancelled: the callback returned False.
    """
    if asked.train_steps is not None:
        raise InputError("train_steps", "None with preset 'fast'", asked.train_steps)
    if asked.axial_blur is not None and not (
        isinstance(asked.axial_blur, int | float) and 0 <= asked.axial_blur <= 20
    ):
        raise InputError("axial_blur", "a sigma in slices from 0 to 20", asked.axial_blur)
    stack, seed = asked.stack, asked.seed
    progress, callback = asked.progress, asked.callback
    adapts = True if asked.adapt is None else asked.adapt
    budget = AdaptOptions(steps=asked.adapt_steps)
    options = INROptions() if asked.inr_steps is None else INROptions(steps=asked.inr_steps)
    operator = stack.operator
    low, high = stack.intensity_range()
    images = (stack.images - low) / (high - low)
    consistency, noisy = follow_noise(images, asked.consistency)
    network = load_for(None if asked.denoiser is None else Path(asked.denoiser), noisy=noisy)
    weights = digest(network.state_dict())
    ratio: float | None = None
    if consistency == "soft":
        ratio = noise_to_error(network, images.cpu(), operator, stated_blur(asked.axial_blur))
    sampler = asked.sampler or SAMPLER
    gamma = GAMMA if asked.gamma is None else asked.gamma
    guidance = 0.0 if asked.guidance is None else asked.guidance
    steps = asked.steps
    if steps is None and isinstance(gamma, Sequence):
        steps = len(gamma)

    def plan_of(length: int) -> SamplingPlan:
        return make_plan(
            length,
            sampler=sampler,
            gamma=gamma,
            gamma_schedule=asked.gamma_schedule,
            variance_mix=asked.variance_mix,
            guidance=guidance,
            consistency=consistency,
            noise_to_signal=ratio,
            # of all timesteps there is one spacing only, and "time" is quick to find
            spacing="snr" if sampler == "dpm++" and steps != "exact" else "time",
        )

    posterior_mean = steps is None and asked.estimate == "mean"
    if posterior_mean and asked.samples > 1:
        expected = "1: the posterior mean states its own; steps or estimate='sample' draw samples"
        raise InputError("samples", expected, asked.samples)
    if steps is None and not posterior_mean:
        steps = SAMPLE_STEPS
    if steps == "exact":
        plan = plan_of(NoiseSchedule().steps)
        chain = exact_plan(plan, asked.tol)
    else:
        plan = chain = plan_of(MEAN_STEPS if steps is None else steps)
    images = images.to(asked.device)

    with asked.timed("prior"):
        if asked.prior is None:
            inr = fit_inr(
                images, operator, options=options, seed=seed, progress=progress, callback=callback
            )
            rendered = inr.render()
            if consistency == "hard":
                rendered = operator.consistent(rendered, images)
        else:
            rendered = (asked.prior - low).to(asked.device) / (high - low)

    with asked.timed("adaptation"):
        adapted = adapt(  # on the CPU: its random draws are, and the step is small
            network,
            images.cpu(),
            operator,
            voxel_size=stack.voxel_size,
            axial_blur=asked.axial_blur,
            train=adapts,
            options=budget,
            seed=seed,
            progress=progress,
            callback=callback,
        )

    with asked.timed("sampling"):
        denoise = StackDenoiser(
            adapted.denoiser.to(asked.device),
            images,
            operator,
            axial_blur=adapted.axial_blur,
            batch=asked.batch_size,
            guided=guidance != 0,
            both_ways=True,
        )

    def stated() -> Tensor:
        assert denoise.deviation is not None
        # in network units
        floor = 2 * slice_noise(images, operator) if consistency == "hard" else 0.0
        return denoise.deviation.square().add(floor**2).sqrt()

    return Prepared(
        denoise=denoise,
        prior=rendered,
        images=images,
        plan=plan,
        chain=chain,
        chains=asked.samples,
        stated=stated if posterior_mean else None,
        parameters={
            "steps": steps,
            "sampler": sampler,
            "gamma": list(gamma) if isinstance(gamma, Sequence) else gamma,
            "guidance": guidance,
            "consistency": consistency,
            "noise_to_signal": ratio,
            "adapt": adapts,
            "adapt_steps": budget.steps if adapts else 0,
            "axial_blur": adapted.axial_blur,
            "denoiser": "shipped" if asked.denoiser is None else str(asked.denoiser),
            "denoiser_sha256": weights,
            "prior": "INR" if asked.prior is None else "given",
            "intensity_range": [low, high],
        },
        adaptation=adapted.record(),
    )
