"""The schedulers: diffusers' own at gamma = 0, our sampler at any other, in loops and pipelines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers", reason="needs microdiffusion-fast[diffusers]")

from microdiffusion_fast.errors import InputError  # noqa: E402
from microdiffusion_fast.integrations.diffusers import (  # noqa: E402
    GammaBlendedDDIMScheduler,
    GammaBlendedDDPMScheduler,
)
from microdiffusion_fast.kernels.counter_noise import counter_noise  # noqa: E402
from microdiffusion_fast.sampler import sample as sample_chain  # noqa: E402
from microdiffusion_fast.schedule import NoiseSchedule, make_plan  # noqa: E402

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
OURS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
BOTH = [
    pytest.param(GammaBlendedDDPMScheduler, diffusers.DDPMScheduler, id="DDPM"),
    pytest.param(GammaBlendedDDIMScheduler, diffusers.DDIMScheduler, id="DDIM"),
]


def network(x: Tensor, t: Tensor) -> Tensor:
    """Bounded, not linear, and different at each timestep."""
    return 0.5 * torch.tanh(x) + 0.3 * torch.cos(3 * x + 0.01 * t)


def tiny_unet(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    return unet.eval().requires_grad_(False)


def exact(scheduler: Any) -> Any:
    """The same scheduler with its noise levels in float64: its arithmetic follows."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    for name in ("one", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def run(
    scheduler: Any, steps: int, dtype: torch.dtype, model: Any = network, **options: Any
) -> Any:
    """A plain loop, as in the documentation of diffusers; all states and all x0."""
    generator = torch.Generator().manual_seed(1)
    # float64 whatever the chain is in, so that all chains draw the same
    draw = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(2, 1, 16, 16, **draw).to(dtype) * scheduler.init_noise_sigma
    scheduler.set_timesteps(steps)
    states, cleans = [], []
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t), t)
        result = scheduler.step(output, t, x, generator=generator, **options)
        x = result.prev_sample
        states.append(x)
        cleans.append(result.pred_original_sample)
    return torch.stack(states), torch.stack(cleans)


def differ(first: Tensor, second: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((first.double() - second.double()).abs().max() / second.double().abs().max())


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_ddpm_is_theirs_at_gamma_zero(
    spacing: str, variance: str, prediction: str, clip: bool
) -> None:
    options: dict[str, Any] = {
        "prediction_type": prediction,
        "clip_sample": clip,
        "variance_type": variance,
        "timestep_spacing": spacing,
    }
    ours = run(exact(GammaBlendedDDPMScheduler(**options)), 25, torch.float64)
    theirs = run(exact(diffusers.DDPMScheduler(**options)), 25, torch.float64)
    assert differ(ours[0], theirs[0]) < 1e-12
    assert differ(ours[1], theirs[1]) < 1e-12


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_ddim_is_theirs_at_gamma_zero(
    spacing: str, eta: float, prediction: str, clip: bool, corrected: bool
) -> None:
    options: dict[str, Any] = {
        "prediction_type": prediction,
        "clip_sample": clip,
        "clip_sample_range": 0.6,
        "timestep_spacing": spacing,
        "set_alpha_to_one": clip,
    }
    step = {"eta": eta, "use_clipped_model_output": corrected}
    ours = run(exact(GammaBlendedDDIMScheduler(**options)), 25, torch.float64, **step)
    theirs = run(exact(diffusers.DDIMScheduler(**options)), 25, torch.float64, **step)
    assert differ(ours[0], theirs[0]) < 1e-12
    assert differ(ours[1], theirs[1]) < 1e-12


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("ours", "theirs"), BOTH)
def test_float32_differs_by_rounding(ours: Any, theirs: Any, prediction: str) -> None:
    """A long chain: what rounding leaves of it, against the same chain in float64.

    Noise of the same bits for all: drawn voxel by voxel here, handed to theirs through a patch.
    """
    steps = 1000 if prediction == "epsilon" else 200
    options = {"prediction_type": prediction}
    stepping = {"eta": 0.5} if theirs is diffusers.DDIMScheduler else {}
    seeded = {"noise_seed": 3}

    # float64 states, and the float32 noise levels that both schedulers have
    reference, _ = run(exact(ours(**options, **seeded)), steps, torch.float64, **stepping)
    single, _ = run(ours(**options, **seeded), steps, torch.float32, **stepping)
    module = {"DDPMScheduler": "scheduling_ddpm", "DDIMScheduler": "scheduling_ddim"}
    source = getattr(diffusers.schedulers, module[theirs.__name__])
    scheduler = theirs(**options)
    ends = iter(range(1001 - 2000 // steps, 0, -1000 // steps))

    def noise(shape: Any, **_: Any) -> Tensor:
        return counter_noise((2, 16, 16), seed=3, step=next(ends, 0)).reshape(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "randn_tensor", noise)
        other, _ = run(scheduler, steps, torch.float32, **stepping)
    rounding = differ(single, reference)
    assert rounding < 3e-6
    assert differ(single, other) < 5e-5


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("ours", "theirs"), BOTH)
def test_loop_with_a_unet(ours: Any, theirs: Any, prediction: str) -> None:
    unet = tiny_unet().double()

    def model(x: Tensor, t: Tensor) -> Tensor:
        return unet(x, t).sample

    options = {"prediction_type": prediction}
    own, _ = run(exact(ours(**options)), 8, torch.float64, model)
    other, _ = run(exact(theirs(**options)), 8, torch.float64, model)
    assert differ(own, other) < 1e-11


@pytest.mark.parametrize(("ours", "theirs"), BOTH)
def test_pipelines(ours: Any, theirs: Any) -> None:
    """Unmodified pipelines: the same images at gamma = 0, others with a prior."""
    kind = diffusers.DDPMPipeline if theirs is diffusers.DDPMScheduler else diffusers.DDIMPipeline
    pipeline = kind(tiny_unet(), theirs())
    pipeline.set_progress_bar_config(disable=True)

    def images() -> Tensor:
        generator = torch.Generator().manual_seed(5)
        extra = {"eta": 0.5} if kind is diffusers.DDIMPipeline else {}
        call = {"generator": generator, "num_inference_steps": 6, "output_type": "pt", **extra}
        return pipeline(batch_size=2, **call).images

    expected = images()
    pipeline.scheduler = ours.from_config(pipeline.scheduler.config)
    assert type(pipeline.scheduler) is ours
    assert differ(images(), expected) < 1e-5

    prior = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    pipeline.scheduler = ours.from_config(pipeline.scheduler.config, gamma=0.9)
    pipeline.scheduler.set_prior(prior)
    assert differ(images(), expected) > 0.1


def test_guided_pipeline_that_scales_its_input() -> None:
    """DiTPipeline doubles its batch for guidance and asks for the scaled state."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=2,
        num_layers=1,
        sample_size=8,
        norm_type="ada_norm_zero",
    )
    vae = diffusers.AutoencoderKL(
        latent_channels=2, block_out_channels=(8,), norm_num_groups=4, sample_size=8
    )
    pipeline = diffusers.DiTPipeline(transformer.eval(), vae.eval(), diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    inputs: list[Tensor] = []
    transformer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))

    def images() -> Tensor:
        inputs.clear()
        generator = torch.Generator().manual_seed(5)
        call = {"generator": generator, "num_inference_steps": 5, "guidance_scale": 2.8}
        return torch.from_numpy(pipeline([1, 2], output_type="np", **call).images)

    expected = images()
    noise = inputs[0]
    pipeline.scheduler = GammaBlendedDDIMScheduler.from_config(pipeline.scheduler.config)
    assert differ(images(), expected) < 1e-5

    prior = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(6))
    options = {"gamma": [1.0, 0.75, 0.5, 0.25, 1.0]}
    pipeline.scheduler = GammaBlendedDDIMScheduler.from_config(pipeline.scheduler.config, **options)
    pipeline.scheduler.set_prior(prior)
    images()
    twice = prior.repeat(2, 1, 1, 1)
    assert torch.equal(inputs[0], twice) and torch.equal(inputs[4], twice)
    pipeline.scheduler = GammaBlendedDDIMScheduler.from_config(
        pipeline.scheduler.config, gamma=0.25
    )
    pipeline.scheduler.set_prior(prior)
    images()
    assert torch.equal(inputs[0], 0.75 * noise + 0.25 * twice)


T = 40


def matching(kind: Any, **options: Any) -> Any:
    """A scheduler with the noise levels of `NoiseSchedule(T)`, to its last bit."""
    scheduler = kind(num_train_timesteps=T, **options)
    scheduler.alphas_cumprod = NoiseSchedule(T).alpha_bar[1:]
    return scheduler


@pytest.mark.parametrize("scaled", [True, False], ids=["blend at the start", "none"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_chain_is_that_of_our_sampler(sampler: Any, prediction: str, scaled: bool) -> None:
    """A stack of slices as a batch: same noise, same volume, whatever gamma."""
    shape = (3, 8, 10)
    prior = 0.5 * counter_noise(shape, seed=8, step=0).double()
    gammas = [0.1 + 0.5 * k / T for k in range(T)]
    options: dict[str, Any] = {"gamma": gammas, "noise_seed": 7, "clip_sample": False}
    if sampler == "ddpm":
        scheduler = matching(
            GammaBlendedDDPMScheduler, **options, prediction_type=prediction, variance_mix=0.3
        )
        given, step = {"variance_mix": 0.3}, {}
    else:
        scheduler = matching(GammaBlendedDDIMScheduler, **options, prediction_type=prediction)
        given, step = {"eta": 0.5}, {"eta": 0.5}
    plan = make_plan(
        T,
        schedule=NoiseSchedule(T),
        sampler=sampler,
        gamma=gammas if scaled else [0.0, *gammas[1:]],
        prediction=OURS[prediction],  # type: ignore[arg-type]
        **given,  # type: ignore[arg-type]
    )
    start = counter_noise(shape, seed=7, step=T).double()
    expected = sample_chain(
        lambda x, k, _: network(x, torch.tensor(plan.timesteps[k] - 1)),
        prior,
        plan,
        seed=7,
        start=start,
    )
    scheduler.set_timesteps(T)
    scheduler.set_prior(prior[:, None])
    x = start[:, None]
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, t) if scaled else x
        x = scheduler.step(network(shown, t), t, x, **step).prev_sample
    assert differ(x[:, 0], expected) < 1e-12


def test_either_way_of_the_first_step() -> None:
    """Some pipelines hand the scaled state to `step`, others the state before it was scaled."""
    scheduler = GammaBlendedDDIMScheduler(gamma=0.4)
    scheduler.set_prior(torch.ones(1, 1, 4, 4))
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    ends = []
    for keeps in (True, False):
        scheduler.set_timesteps(4)
        x = noise
        for t in scheduler.timesteps:
            shown = scheduler.scale_model_input(x, t)
            x = shown if keeps else x
            x = scheduler.step(network(shown, t), t, x).prev_sample
        ends.append(x)
    assert torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("told", [True, False], ids=["timestep", "no timestep"])
def test_a_second_chain_begins_anew(told: bool) -> None:
    scheduler = GammaBlendedDDIMScheduler(gamma=0.4)
    scheduler.set_prior(torch.ones(1, 1, 4, 4))
    scheduler.set_timesteps(3)
    noise = torch.zeros(1, 1, 4, 4)
    ends = []
    for _ in range(2):
        x = noise
        for t in scheduler.timesteps:
            shown = scheduler.scale_model_input(x, t if told else None)
            x = scheduler.step(network(shown, t), t, x).prev_sample
        ends.append(x)
    assert torch.equal(ends[0], ends[1])
    assert float(ends[0].mean()) > 0.1  # the prior is in it: the blends took place


def test_prior_of_a_batch_doubled_for_guidance() -> None:
    scheduler = GammaBlendedDDPMScheduler(gamma=0.25)
    prior = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    scheduler.set_prior(prior)
    scheduler.set_timesteps(5)
    shown = scheduler.scale_model_input(torch.zeros(4, 1, 4, 4), scheduler.timesteps[0])
    assert shown[:, 0, 0, 0].tolist() == [0.0, 0.25, 0.0, 0.25]


def test_guidance_scale_is_one_more_than_w() -> None:
    """(1 + w) cond - w uncond is uncond + g (cond - uncond) for g = 1 + w."""
    cond, uncond = torch.tensor(0.3), torch.tensor(-0.2)
    assert torch.isclose((1 + 1.8) * cond - 1.8 * uncond, uncond + 2.8 * (cond - uncond))


def test_counter_noise_does_not_depend_on_the_batch() -> None:
    scheduler = GammaBlendedDDPMScheduler(noise_seed=11)
    scheduler.set_timesteps(10)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = scheduler.timesteps[3]
    whole = scheduler.step(network(x, t), t, x).prev_sample
    part = scheduler.step(network(x[:2], t), t, x[:2]).prev_sample
    assert torch.equal(whole[:2], part)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    ours, theirs = GammaBlendedDDIMScheduler(), diffusers.DDIMScheduler()
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    t = ours.timesteps[4]
    result = ours.step(network(x, t).to(dtype), t, x.to(dtype)).prev_sample
    exact_step = theirs.step(network(x, t).to(dtype).float(), t, x.to(dtype).float()).prev_sample
    assert result.dtype == dtype
    # computed in float32, rounded once
    assert differ(result, exact_step) <= torch.finfo(dtype).eps / 2


@pytest.mark.parametrize(("ours", "theirs"), BOTH)
def test_the_rest_of_the_interface_is_theirs(ours: Any, theirs: Any) -> None:
    own, other = ours(), theirs()
    assert isinstance(own, diffusers.SchedulerMixin)
    assert isinstance(own, diffusers.ConfigMixin)
    assert (own.order, own.init_noise_sigma, len(own)) == (1, 1.0, 1000)
    x, noise = torch.ones(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)
    t = torch.tensor([10, 500])
    assert torch.equal(own.add_noise(x, noise, t), other.add_noise(x, noise, t))
    assert torch.equal(own.get_velocity(x, noise, t), other.get_velocity(x, noise, t))
    own.set_timesteps(7)
    other.set_timesteps(7)
    assert torch.equal(own.timesteps, other.timesteps)
    index = own.timesteps[2]
    pair = own.step(x, index, x, return_dict=False)
    assert isinstance(pair, tuple) and len(pair) == 2


@pytest.mark.parametrize("gamma", [0.25, [0.5, 0.25, 0.125]])
@pytest.mark.parametrize(("ours", "theirs"), BOTH)
def test_configuration_is_saved(ours: Any, theirs: Any, gamma: Any, tmp_path: Path) -> None:
    saved = ours.from_config(theirs(beta_end=0.01).config, gamma=gamma, noise_seed=4)
    saved.save_pretrained(tmp_path)
    loaded = ours.from_pretrained(tmp_path)
    assert loaded.config.gamma == gamma
    assert (loaded.config.noise_seed, loaded.config.beta_end) == (4, 0.01)
    assert type(theirs.from_config(loaded.config)) is theirs


def test_pipeline_is_saved_and_loaded(tmp_path: Path) -> None:
    pipeline = diffusers.DDPMPipeline(tiny_unet(), GammaBlendedDDPMScheduler(gamma=0.2))
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert type(loaded.scheduler) is GammaBlendedDDPMScheduler
    assert loaded.scheduler.config.gamma == 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholding": True}, "^thresholding: expected False"),
        ({"variance_type": "learned_range"}, "^variance_type: expected one of fixed_small"),
        ({"variance_mix": 1.5}, "^variance_mix: expected a finite number in"),
        ({"prediction_type": "flow"}, "^prediction_type: expected one of epsilon"),
        ({"gamma": 1.5}, "^gamma: expected a finite number in"),
        ({"noise_seed": -1}, "^noise_seed: expected an integer in"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GammaBlendedDDPMScheduler(**options)


def test_bad_calls() -> None:
    scheduler = GammaBlendedDDIMScheduler(gamma=0.1)
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(InputError, match="^timesteps: expected those of `set_timesteps`"):
        scheduler.step(x, 0, x)
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="^prior: expected one set by set_prior"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_prior(torch.zeros(1, 1, 5, 4))
    with pytest.raises(InputError, match=r"^prior: expected a shape that fits \[1, 1, 4, 4\]"):
        scheduler.scale_model_input(x, scheduler.timesteps[0])
    with pytest.raises(InputError, match="^timestep: expected one of `timesteps`, got 999"):
        scheduler.step(x, 999, x)
    with pytest.raises(InputError, match="^model_output: expected shape"):
        scheduler.step(x[..., :2], scheduler.timesteps[0], x)
    with pytest.raises(InputError, match="^eta: expected a finite number"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=2.0)
    with pytest.raises(InputError, match="^prior: expected a floating-point tensor"):
        scheduler.set_prior(torch.zeros(1, dtype=torch.int64))
    wrong = GammaBlendedDDPMScheduler(gamma=[0.1, 0.2])
    with pytest.raises(InputError, match="^gamma: expected one number per step, 5"):
        wrong.set_timesteps(5)
    zero = GammaBlendedDDPMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    zero.set_timesteps(4)
    with pytest.raises(InputError, match="^prediction_type: expected 'v_prediction' or 'sample'"):
        zero.step(x, zero.timesteps[0], x)


def test_the_documented_example(repository: Path) -> None:
    text = (repository / "docs" / "integrations.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (example,) = [block for block in blocks if "DDPMPipeline" in block]
    prior = torch.zeros(1, 1, 16, 16)
    names: dict[str, Any] = {"unet": tiny_unet(), "scheduler": diffusers.DDPMScheduler()}
    exec(example, names | {"prior": prior}, names)
    assert len(names["images"]) == 8
