"""reconstruct: better than interpolation, consistent, reproducible, in the units of its input."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import microdiffusion_fast as mdf
from bench.small_network import random_network
from microdiffusion_fast import estimate, metrics
from microdiffusion_fast.denoiser import DenoiserConfig, save_denoiser
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection
from microdiffusion_fast.preset import slice_noise
from microdiffusion_fast.progress import Cancelled, ProgressEvent
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.reconstruct import Reconstruction, noise_to_signal, reconstruct
from microdiffusion_fast.simulate import simulate_projections, simulate_volume

SHAPE = (36, 48, 48)
SEED = 770_001  # of phantoms that no training has seen
TINY = DenoiserConfig(encoder_widths=(8, 8, 8), head_width=8, head_blocks=1, embedding=16)
Run = Callable[..., Reconstruction]


def phantom(seed: int = SEED, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.float32]:
    return simulate_volume("vessels", shape, seed=seed)


def stack_of(volume: NDArray[np.float32]) -> Projections:
    return simulate_projections(volume, step_length=6, voxel_size=(2.0, 2.0, 2.0))


@pytest.fixture(scope="module")
def stack() -> Projections:
    return stack_of(phantom(shape=(24, 24, 28)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network that departs a little from interpolation, and that the checks trust."""
    # with trust 0 every result is interpolation
    denoiser = random_network(torch.Generator().manual_seed(2), TINY)
    with torch.no_grad():
        denoiser.head.conv_out.weight.mul_(0.2)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_denoiser(path, denoiser)
    return path


@pytest.fixture(scope="module")
def quick(checkpoint: Path) -> Run:
    """`reconstruct` with the tiny network and a short INR."""

    def run(projections: Any, **options: Any) -> Reconstruction:
        defaults: dict[str, Any] = {
            "denoiser": checkpoint,
            "adapt": False,
            "axial_blur": 0.0,
            "inr_steps": 6,
        }
        return reconstruct(projections, **(defaults | options))

    return run


def span(stack: Projections) -> float:
    low, high = stack.intensity_range()
    return high - low


def misfit(result: Reconstruction) -> float:
    """Largest violation of A x = y, as a share of the range of the projections."""
    stack = result.projections
    again = stack.operator(torch.from_numpy(result.volume).double())
    return float((again - stack.images).abs().max()) / span(stack)


def test_the_shipped_weights_are_better_than_interpolation() -> None:
    """One call of the network, on phantoms of seeds never trained on, without adapting to them."""
    gains = []
    for seed in (SEED, SEED + 1):
        truth = phantom(seed)
        stack = stack_of(truth)
        operator = stack.operator
        baseline = operator.consistent(operator.interpolate(stack.images), stack.images)
        options: dict[str, Any] = {"steps": 1, "gamma": 0.0, "prior": baseline}
        result = reconstruct(stack, adapt=False, axial_blur=0.0, **options)
        gains.append(
            metrics.psnr(truth, result.volume, data_range=1.0)
            - metrics.psnr(truth, baseline.numpy(), data_range=1.0)
        )
        assert misfit(result) < 1e-4
    assert min(gains) > 0.5 and float(np.mean(gains)) > 1.0, gains


def test_the_defaults_are_better_than_interpolation() -> None:
    """Steps, gamma, sampler and INR as shipped; only the adaptation is left out."""
    truth = phantom()
    stack = stack_of(truth)
    operator = stack.operator
    baseline = operator.consistent(operator.interpolate(stack.images), stack.images)
    result = reconstruct(stack, adapt=False, axial_blur=0.0)
    gain = metrics.psnr(truth, result.volume, data_range=1.0) - metrics.psnr(
        truth, baseline.numpy(), data_range=1.0
    )
    assert gain > 0.3
    assert misfit(result) < 1e-4


def test_the_whole_path_with_the_shipped_weights() -> None:
    """INR, adaptation, sampling: what was tried and for how long is told."""
    stack = stack_of(phantom(shape=(24, 24, 24)))
    result = reconstruct(stack, adapt_steps=1, inr_steps=5, axial_blur=0.0)
    assert misfit(result) < 1e-4
    assert set(result.adaptation["error"]) == {"as shipped", "adapted"}
    assert result.adaptation["accepted"] in (True, False)
    assert result.parameters["denoiser"] == "shipped"
    assert set(result.timings) == {"prior", "adaptation", "sampling", "total"}
    assert all(seconds >= 0 for seconds in result.timings.values())


def test_what_it_returns(quick: Run, stack: Projections) -> None:
    result = quick(stack)
    assert result.volume.shape == result.prior.shape == (24, 24, 28)
    assert result.volume.dtype == result.prior.dtype == np.float32
    assert np.isfinite(result.volume).all() and np.isfinite(result.prior).all()
    assert result.uncertainty is not None
    assert result.uncertainty.dtype == np.float32
    assert result.projections.step_length == 6
    assert result.parameters["estimate"] == "posterior mean" and result.parameters["steps"] is None
    # the network has a say
    interpolated = stack.operator.consistent(stack.operator.interpolate(stack.images), stack.images)
    assert float(np.abs(result.volume - interpolated.numpy()).max()) > 0.01 * span(stack)


@pytest.mark.parametrize(
    "geometry",
    [
        pytest.param({}, id="disjoint"),
        pytest.param({"stride": 4}, id="overlapping"),
        pytest.param({"stride": 8}, id="gaps"),
        pytest.param({"weights": [0.1, 0.15, 0.25, 0.25, 0.15, 0.1]}, id="weighted"),
        pytest.param({"weights": [0.4, 0.3, 0.1, 0.1, 0.05, 0.05]}, id="skewed"),
        pytest.param({"start": 2}, id="slices left over"),
    ],
)
def test_consistency_is_exact(quick: Run, geometry: dict[str, Any]) -> None:
    projections = simulate_projections(phantom(shape=(28, 24, 24)), step_length=6, **geometry)
    result = quick(projections, adapt=True, adapt_steps=1)
    assert misfit(result) < 1e-4
    assert len(result.volume) == 28


def test_consistency_off_and_soft(quick: Run) -> None:
    volume = phantom(shape=(24, 24, 24))
    generator = np.random.default_rng(0)
    images = stack_of(volume).images.numpy()
    noisy = images + 0.03 * generator.standard_normal(images.shape, dtype=np.float32)
    misfits = {
        mode: misfit(quick(noisy, step_length=6, consistency=mode))
        for mode in ("hard", "soft", "off")
    }
    assert misfits["hard"] < 1e-4 < misfits["soft"] < misfits["off"]


def test_noise_decides_what_is_usual(quick: Run) -> None:
    images = stack_of(phantom(shape=(24, 24, 24))).images.numpy()
    noise = np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
    clean, noisy = (quick(images + size * noise, step_length=6) for size in (0.0, 0.05))
    assert clean.parameters["consistency"] == "hard" and misfit(clean) < 1e-4
    assert clean.parameters["noise_to_signal"] is None
    assert noisy.parameters["consistency"] == "soft" and misfit(noisy) > 1e-2
    assert noisy.parameters["noise_to_signal"] > 0
    asked = quick(images + 0.05 * noise, step_length=6, consistency="hard")
    assert asked.parameters["consistency"] == "hard" and misfit(asked) < 1e-4


def test_same_seed_same_bits(quick: Run, stack: Projections) -> None:
    options = {"adapt": True, "adapt_steps": 2, "steps": 4, "samples": 2, "sampler": "ddpm"}
    first, again, other = (quick(stack, seed=seed, **options) for seed in (3, 3, 4))
    for name in ("volume", "prior", "uncertainty"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
        assert not np.array_equal(getattr(first, name), getattr(other, name)), name
    assert first.adaptation == again.adaptation
    assert first.parameters == again.parameters


def test_the_users_randomness_is_no_part_of_it(quick: Run, stack: Projections) -> None:
    torch.manual_seed(1)
    first = quick(stack, adapt=True, adapt_steps=1)
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002  # the global state is the point
    again = quick(stack, adapt=True, adapt_steps=1)
    assert np.array_equal(first.volume, again.volume)


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_the_batch_size_changes_rounding_only(
    quick: Run,
    stack: Projections,
    sampler: str,
    steps: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The noise is the same to the bit, the volume to 1e-5 of its range."""
    from microdiffusion_fast import sampler as module

    drawn: list[torch.Tensor] = []
    original = module.counter_noise

    def recorded(*args: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(original(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(module, "counter_noise", recorded)
    results = [quick(stack, sampler=sampler, steps=steps, batch_size=n) for n in (1, 5, 64)]
    assert len(drawn) == 3 and all(torch.equal(drawn[0], noise) for noise in drawn[1:])
    for result in results[1:]:
        difference = np.abs(result.volume - results[0].volume).max()
        assert difference <= 1e-5 * np.ptp(results[0].volume)


def test_exact_samples_need_a_sampler_that_draws_noise(quick: Run, stack: Projections) -> None:
    with pytest.raises(InputError, match="^samples: expected 1 for exact steps of a sampler that"):
        quick(stack, samples=2, steps="exact", sampler="ddim", gamma=0.9)


def test_samples_give_their_mean_and_spread(quick: Run, stack: Projections) -> None:
    several = quick(stack, samples=3, steps=4, sampler="ddpm", gamma=0.0)
    assert several.uncertainty is not None
    assert several.uncertainty.shape == several.volume.shape
    assert np.isfinite(several.uncertainty).all() and (several.uncertainty >= 0).all()
    assert several.uncertainty.max() > 1e-4 * span(stack)
    assert misfit(several) < 1e-4


def test_the_uncertainty_is_the_standard_deviation(
    quick: Run, stack: Projections, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = estimate.mean_and_deviation
    drawn: list[torch.Tensor] = []

    def recorded(samples: Iterable[torch.Tensor]) -> Any:
        def kept() -> Iterator[torch.Tensor]:
            for sample in samples:
                drawn.append(sample.clone())
                yield sample

        return original(kept())

    monkeypatch.setattr(estimate, "mean_and_deviation", recorded)
    result = quick(stack, samples=4, steps=4, sampler="ddpm", gamma=0.0)
    low, high = stack.intensity_range()
    samples = ((torch.stack(drawn).double() + 1) / 2 * (high - low) + low).numpy()
    assert len(samples) == 4 and not np.array_equal(samples[0], samples[1])
    scale = span(stack)
    np.testing.assert_allclose(result.volume, samples.mean(0), rtol=0, atol=1e-5 * scale)
    assert result.uncertainty is not None
    np.testing.assert_allclose(result.uncertainty, samples.std(0, ddof=1), atol=1e-5 * scale)


def test_the_posterior_mean_states_its_deviation(quick: Run, stack: Projections) -> None:
    mean = quick(stack)
    assert mean.parameters["estimate"] == "posterior mean"
    assert mean.uncertainty is not None and mean.uncertainty.shape == mean.volume.shape
    assert 0 < mean.uncertainty.min() and mean.uncertainty.max() < 10 * span(stack)


@pytest.mark.parametrize(("length", "stride"), [(6, 6), (6, 3), (6, 8), (4, 4)])
def test_slice_noise_is_what_consistency_misses_of_white_noise(length: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    depth = length + 8 * stride
    noise = 0.02 * torch.randn((depth, 48, 48), generator=generator)
    operator = AxialProjection(depth, length, stride=stride)
    images = operator(noise)
    missed = noise - operator.consistent(torch.zeros_like(noise), images)
    expected = float(missed[operator.covered].square().mean().sqrt())
    assert slice_noise(images, operator) == pytest.approx(expected, rel=0.05)


def test_what_is_stated_has_the_noise_of_slices_where_it_is_copied(quick: Run) -> None:
    clean = phantom(shape=(24, 24, 28))
    noise = 0.01 * np.random.default_rng(0).standard_normal(clean.shape, np.float32)
    stack = stack_of(clean + noise)
    low, high = stack.intensity_range()
    images = (stack.images - low) / (high - low)
    floor = slice_noise(images, stack.operator) * (high - low)
    hard, off = (quick(stack, consistency=how) for how in ("hard", "off"))
    assert floor > 0.5 * 0.01 and hard.uncertainty is not None and off.uncertainty is not None
    # the priors, and with them the states, are not the same: a few tenths of a per cent
    expected = np.hypot(off.uncertainty, floor)
    assert float(np.median(hard.uncertainty / expected)) == pytest.approx(1, abs=2e-3)
    assert hard.uncertainty.min() >= floor > 5 * abs(np.median(hard.uncertainty - expected))


def test_the_posterior_mean_is_no_sample(quick: Run, stack: Projections) -> None:
    with pytest.raises(InputError, match="^samples: expected 1: the posterior mean states its own"):
        quick(stack, samples=2)


def test_a_sample_is_the_first_chain_and_its_mean_is_not(quick: Run, stack: Projections) -> None:
    options: dict[str, Any] = {"steps": 3, "sampler": "ddpm", "gamma": 0.0}
    one = quick(stack, estimate="sample", **options)
    several = quick(stack, estimate="sample", samples=2, **options)
    mean = quick(stack, samples=2, **options)
    assert one.uncertainty is None and several.uncertainty is not None
    assert np.array_equal(one.volume, several.volume)
    assert np.array_equal(several.uncertainty, mean.uncertainty)
    assert not np.array_equal(one.volume, mean.volume)
    assert quick(stack, estimate="sample").parameters["steps"] == 4


def test_any_kind_of_input_gives_the_same(quick: Run, stack: Projections, tmp_path: Path) -> None:
    path = stack.save(tmp_path / "stack.ome.tif")
    expected = quick(stack)
    inputs: dict[str, Any] = {
        "array": stack.images.numpy(),
        "tensor": stack.images,
        "path": path,
        "text": str(path),
        "Fortran order": np.asfortranarray(stack.images.numpy()),
        "float64": stack.images.double(),
    }
    for name, projections in inputs.items():
        geometry = {} if name in ("path", "text") else {"step_length": 6}
        result = quick(projections, voxel_size=(2.0, 2.0, 2.0), **geometry)
        assert np.array_equal(result.volume, expected.volume), name


def test_the_input_is_left_alone(quick: Run, stack: Projections) -> None:
    images = stack.images.numpy().copy()
    before = images.copy()
    quick(images, step_length=6)
    assert np.array_equal(images, before)


def test_integer_input(quick: Run, stack: Projections) -> None:
    images = (stack.images.numpy() * 4000 + 100).round().astype(np.uint16)
    result = quick(images, step_length=6)
    assert result.volume.dtype == np.float32
    assert result.projections.dtype == "uint16"
    assert misfit(result) < 1e-4
    assert np.array_equal(result.volume, quick(images.astype(np.float32), step_length=6).volume)


def test_units_are_those_of_the_input(quick: Run, stack: Projections) -> None:
    """Scaled and shifted input gives the same volume scaled and shifted."""
    prior = stack.operator.interpolate(stack.images).numpy()
    images = stack.images.numpy()
    options: dict[str, Any] = {"step_length": 6, "steps": 4, "samples": 2, "sampler": "ddpm"}
    plain = quick(images, prior=prior, **options)
    scaled = quick(images * 1000 + 250, prior=prior * 1000 + 250, **options)
    tolerance = 1e-4 * 1000 * span(stack)
    np.testing.assert_allclose(scaled.volume, plain.volume * 1000 + 250, rtol=0, atol=tolerance)
    np.testing.assert_allclose(scaled.prior, prior * 1000 + 250, rtol=0, atol=tolerance)
    assert plain.uncertainty is not None and scaled.uncertainty is not None
    np.testing.assert_allclose(scaled.uncertainty, plain.uncertainty * 1000, atol=tolerance)


def test_the_inr_is_in_the_units_of_the_input(quick: Run, stack: Projections) -> None:
    """By a power of two not a bit is lost on the way in and out."""
    plain, scaled = (quick(stack.images * factor, step_length=6) for factor in (1, 1024))
    tolerance = 1e-4 * 1024 * span(stack)
    np.testing.assert_allclose(scaled.prior, plain.prior * 1024, rtol=0, atol=tolerance)
    np.testing.assert_allclose(scaled.volume, plain.volume * 1024, rtol=0, atol=tolerance)


def test_a_given_prior_replaces_the_inr(quick: Run, stack: Projections) -> None:
    prior = stack.operator.interpolate(stack.images)
    stages: list[str] = []
    result = quick(stack, prior=prior, callback=lambda event: stages.append(event.stage))
    assert "fit INR" not in stages and "sample" in stages
    np.testing.assert_allclose(result.prior, prior.numpy(), rtol=0, atol=1e-6)
    assert result.parameters["prior"] == "given"
    # with gamma 1 all that the network sees of the state is the prior
    other = quick(stack, prior=prior.flip(1), gamma=1.0)
    same = quick(stack, prior=prior, gamma=1.0)
    assert not np.allclose(other.volume, same.volume)


def test_guidance_and_per_step_gamma(quick: Run, stack: Projections) -> None:
    plain = quick(stack, steps=2, gamma=[0.5, 0.2])
    guided = quick(stack, steps=2, gamma=[0.5, 0.2], guidance=1.0)
    assert plain.parameters["gamma"] == [0.5, 0.2]
    assert not np.allclose(plain.volume, guided.volume, atol=1e-4)


@pytest.fixture(scope="module")
def small() -> Projections:
    return stack_of(phantom(shape=(12, 8, 8)))


def test_exact_steps_equal_all_steps(quick: Run, small: Projections) -> None:
    """The volume of 1000 steps from a few, and the record of what shows it."""
    options = {"gamma": 0.9, "sampler": "ddpm", "inr_steps": 2, "batch_size": 12}
    result = quick(small, steps="exact", **options)
    record = result.parameters["exact"]
    assert (
        result.parameters["steps"] == "exact" and result.parameters["estimate"] != "posterior mean"
    )
    assert (record["of"], record["tol"]) == (1000, 1e-6)
    assert 8 <= record["steps"] <= 12
    assert record["difference"] <= 1e-6 and record["bound"] <= 2e-8
    whole = quick(small, steps=1000, **options)
    assert np.abs(whole.volume - result.volume).max() <= 1e-6 * span(small)
    assert whole.parameters["exact"] is None
    # to the grey level of a byte, on trust
    coarse = quick(small, steps="exact", tol=1 / 255, probe=False, **options)
    assert coarse.parameters["exact"]["steps"] == 3
    assert coarse.parameters["exact"]["difference"] is None


def test_samples_of_exact_chains(quick: Run, small: Projections) -> None:
    """The probe's own chain is the first sample; nothing is computed twice."""
    seen: list[ProgressEvent] = []
    options: dict[str, Any] = {"steps": "exact", "gamma": 0.99, "sampler": "ddpm", "tol": 1e-2}
    options |= {"samples": 3, "inr_steps": 2}
    probed = quick(small, callback=lambda event: seen.append(event), **options)
    taken = probed.parameters["exact"]["steps"]
    counts = [sum(event.stage == stage for event in seen) for stage in ("probe", "sample")]
    assert counts == [2 * taken, 2 * taken]
    trusted = quick(small, probe=False, **options)
    for name in ("volume", "uncertainty"):
        assert np.array_equal(getattr(trusted, name), getattr(probed, name)), name


def test_gamma_schedules(quick: Run, small: Projections) -> None:
    options: dict[str, Any] = {"steps": 3, "gamma": 0.6, "inr_steps": 2}
    falling = quick(small, gamma_schedule="linear", **options)
    given = quick(small, **(options | {"gamma": [0.6, 0.6 * 500 / 999, 0.0]}))
    assert falling.parameters["gamma_schedule"] == "linear"
    np.testing.assert_allclose(falling.volume, given.volume, atol=2e-3 * span(small))
    constant = quick(small, **options)
    assert not np.allclose(falling.volume, constant.volume, atol=2e-3 * span(small))


def test_every_unit_of_work_is_reported(quick: Run, stack: Projections) -> None:
    seen: list[ProgressEvent] = []
    quick(
        stack,
        adapt=True,
        adapt_steps=2,
        samples=2,
        steps=3,
        callback=lambda event: seen.append(event),
    )
    counts = {stage: [e for e in seen if e.stage == stage] for stage in {e.stage for e in seen}}
    assert {stage: len(events) for stage, events in counts.items()} == {
        "fit INR": 6,
        "adapt to the stack": 2,
        "check along z": 2,
        "sample": 6,
    }
    assert [event.total for event in counts["sample"]] == [6] * 6


@pytest.mark.parametrize("stage", ["fit INR", "adapt to the stack", "sample"])
def test_the_callback_cancels(quick: Run, stack: Projections, stage: str) -> None:
    with pytest.raises(Cancelled, match=f"^{stage}"):
        quick(stack, adapt=True, adapt_steps=2, callback=lambda event: event.stage != stage)


BAD: list[tuple[str, str, dict[str, Any]]] = [
    ("preset", "preset", {"preset": "slow"}),
    ("an unknown estimate", "estimate", {"estimate": "median"}),
    ("no samples", "samples", {"samples": 0}),
    ("half a sample", "samples", {"samples": 1.5}),
    ("samples yes", "samples", {"samples": True}),
    ("no batch", "batch_size", {"batch_size": 0}),
    ("batch of text", "batch_size", {"batch_size": "8"}),
    ("negative seed", "seed", {"seed": -1}),
    ("large seed", "seed", {"seed": 2**63}),
    ("half a seed", "seed", {"seed": 1.5}),
    ("seed of text", "seed", {"seed": "7"}),
    ("negative blur", "axial_blur", {"axial_blur": -0.1}),
    ("large blur", "axial_blur", {"axial_blur": 21}),
    ("NaN blur", "axial_blur", {"axial_blur": float("nan")}),
    ("blur of text", "axial_blur", {"axial_blur": "soft"}),
    ("unknown device", "device", {"device": "abacus"}),
    ("device without data", "device", {"device": "meta"}),
    ("device of another kind", "device", {"device": 1.5}),
    ("prior shape", "prior", {"prior": np.zeros((24, 24, 27), np.float32)}),
    ("prior with NaN", "prior", {"prior": np.full((24, 24, 28), np.nan, np.float32)}),
    ("prior of text", "prior", {"prior": "prior.tif"}),
    ("absent weights", "denoiser", {"denoiser": "absent.safetensors"}),
    ("gamma above 1", "gamma", {"gamma": 1.5}),
    ("two gammas", "gamma", {"gamma": [0.1, 0.2], "steps": 3}),
    ("no steps", "steps", {"steps": 0}),
    ("too many steps", "steps", {"steps": 1001}),
    ("half a step", "steps", {"steps": 2.5}),
    ("sampler", "sampler", {"sampler": "euler"}),
    ("steps of text", "steps", {"steps": "all"}),
    ("exact without gamma", "gamma", {"steps": "exact", "gamma": 0.0}),
    ("exact with few gammas", "gamma", {"steps": "exact", "gamma": [0.9] * 8}),
    ("tolerance", "tol", {"steps": "exact", "tol": 0.0}),
    ("gamma schedule", "gamma_schedule", {"gamma_schedule": "step"}),
    ("two gammas of a schedule", "gamma", {"gamma": [0.1, 0.2], "gamma_schedule": "linear"}),
    ("consistency", "consistency", {"consistency": "firm"}),
    ("guidance", "guidance", {"guidance": float("nan")}),
    ("variance mix for ddim", "variance_mix", {"variance_mix": 0.5}),
    ("no INR steps", "inr_steps", {"inr_steps": 0}),
    ("INR steps of text", "inr_steps", {"inr_steps": "many"}),
    ("negative adapt steps", "adapt_steps", {"adapt_steps": -1}),
    ("adapt steps of text", "adapt_steps", {"adapt_steps": "many"}),
    ("step length", "step_length", {"step_length": 0}),
    ("stride", "stride", {"stride": 0}),
    ("weights", "weights", {"weights": [-1, 0, 0, 1, 1, 0]}),
    ("voxel size", "voxel_size", {"voxel_size": (1, 1)}),
]


@pytest.mark.parametrize(
    ("argument", "options"), [pytest.param(a, o, id=name) for name, a, o in BAD]
)
def test_bad_arguments(
    quick: Run, stack: Projections, argument: str, options: dict[str, Any]
) -> None:
    """Refused in one line that names the argument, before any work."""
    worked: list[ProgressEvent] = []
    with pytest.raises(InputError) as error:
        quick(stack, callback=worked.append, **options)
    assert argument in error.value.argument.replace(" ", "_")
    assert "\n" not in str(error.value)
    assert worked == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(quick: Run, stack: Projections) -> None:
    with pytest.raises(InputError, match="^device: expected 'cpu'"):
        quick(stack, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(quick: Run, stack: Projections) -> None:
    """The whole path, adaptation included, on the device; near the CPU's result with no INR."""
    result = quick(stack, device="cuda", adapt=True, adapt_steps=1)
    assert misfit(result) < 1e-4
    prior = stack.operator.interpolate(stack.images)
    volumes = [quick(stack, device=d, prior=prior).volume for d in ("cpu", "cuda")]
    np.testing.assert_allclose(volumes[1], volumes[0], rtol=0, atol=2e-3 * span(stack))


@pytest.mark.parametrize("name", ["volume.ome.tif", "volume.tif", "volume.ome.zarr"])
def test_save_keeps_volume_and_voxel_size(
    quick: Run, stack: Projections, tmp_path: Path, name: str
) -> None:
    result = quick(stack)
    path = result.save(tmp_path / name)
    image = mdf.read_volume(path)
    assert np.array_equal(image.data, result.volume)
    assert image.voxel_size == pytest.approx((2.0, 2.0, 2.0))
    assert image.extra["kind"] == "reconstruction"
    assert image.extra["parameters"]["seed"] == 0
    with pytest.raises(InputError):
        result.save(path)
    result.save(path, overwrite=True)


def test_noise_to_signal(stack: Projections) -> None:
    operator = stack.operator
    generator = torch.Generator().manual_seed(0)
    images = stack.images
    clean = noise_to_signal(images, operator)
    ratios = [
        noise_to_signal(images + sigma * torch.randn(images.shape, generator=generator), operator)
        for sigma in (0.02, 0.08)
    ]
    assert 0 <= clean < ratios[0] < ratios[1]
    # white noise between equal images has nothing to tell, and the answer stays finite
    noise = torch.randn((4, 24, 28), generator=generator)
    assert 10 < noise_to_signal(noise, operator) < 1e6
    assert noise_to_signal(images[:1], operator) == 0.0


@pytest.mark.parametrize(
    "statement",
    [
        "import microdiffusion_fast.reconstruct",
        "from microdiffusion_fast.reconstruct import Reconstruction",
        "from microdiffusion_fast import reconstruct",
        "from microdiffusion_fast import demo",
        "mdf.reconstruct; import microdiffusion_fast.reconstruct",
    ],
)
def test_the_name_stays_the_function(statement: str, repository: Path) -> None:
    code = f"import microdiffusion_fast as mdf\n{statement}\nprint(type(mdf.reconstruct).__name__)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True
    )
    assert result.stdout.split() == ["function"]
