"""The denoising step as others take it: plain torch, as published, and diffusers' schedulers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.harness import Contender


class Coefficients(NamedTuple):
    """A row of the step's table as numbers: see `kernels/blended_step/reference.py`."""

    p: float
    q: float
    w: float
    low: float
    high: float
    trust: float
    a: float
    b: float
    c: float
    d: float
    gamma: float
    key: float


def plain_step(
    x: Tensor, prior: Tensor, cond: Tensor, uncond: Tensor, noise: Tensor | None, k: Coefficients
) -> Tensor:
    """Guidance, x0, limits, update, noise and blend, out of place, with as few ops as it takes."""
    prediction = (1 + k.w) * cond - k.w * uncond
    x0 = (k.p * prediction + k.q * x).clamp(k.low, k.high)
    previous = k.a * x0 + k.b * x
    if noise is not None:
        previous = previous + k.d * noise
    return (1 - k.gamma) * previous + k.gamma * prior


def plain_step_in_place(
    x: Tensor, prior: Tensor, cond: Tensor, uncond: Tensor, noise: Tensor | None, k: Coefficients
) -> Tensor:
    """`plain_step` that ends in `x`, as a compiler can fuse it without a fresh output."""
    return x.copy_(plain_step(x, prior, cond, uncond, noise, k))


def plain_step_drawn(
    x: Tensor, prior: Tensor, cond: Tensor, uncond: Tensor, noise: None, k: Coefficients
) -> Tensor:
    """`plain_step` with its noise from torch's generator."""
    return plain_step(x, prior, cond, uncond, torch.randn_like(x), k)


def plain_consistency(x: Tensor, projections: Tensor, step_length: int) -> Tensor:
    """`x + A^T (A A^T)^-1 (y - A x)` for disjoint means, in closed form; returns a new volume."""
    count = projections.shape[0]
    windows = x[: count * step_length].unflatten(0, (count, step_length))
    residual = projections - windows.mean(1)
    corrected = x.clone()
    corrected[: count * step_length] += residual.repeat_interleave(step_length, 0)
    return corrected


def conjugate_gradients(
    x: Tensor, projections: Tensor, step_length: int, iterations: int = 5
) -> Tensor:
    """The same by conjugate gradients on `A^T A x = A^T y` from x, with a projector called twice an
    iteration: how general solvers do it, which know no closed form.

    Source: Chung et al. 2024 (arXiv 2303.05754), DDS.
    """
    count = projections.shape[0]
    used = count * step_length

    def normal(v: Tensor) -> Tensor:
        return adjoint(v[:used].unflatten(0, (count, step_length)).mean(1))

    def adjoint(y: Tensor) -> Tensor:
        spread = torch.zeros_like(x)
        spread[:used] = (y / step_length).repeat_interleave(step_length, 0)
        return spread

    solution = x.clone()
    residual = adjoint(projections) - normal(solution)
    direction = residual.clone()
    energy = torch.dot(residual.flatten(), residual.flatten())
    for _ in range(iterations):
        if float(energy) < 1e-20:
            break
        image = normal(direction)
        length = energy / torch.dot(direction.flatten(), image.flatten())
        solution += length * direction
        residual -= length * image
        before, energy = energy, torch.dot(residual.flatten(), residual.flatten())
        direction = residual + energy / before * direction
    return solution


class Published:
    """The elementwise part of one published sampling step, op for op in eager torch.

    The blend of the state with the prior, guidance, the mean of x_{t-1} straight from eps (no x0,
    no limits), a fixed variance, fresh noise, and the three checks of full-size tensors for NaN
    that each wait for the device. Written from the paper and a count of the released program's
    operations (22 full-size kernels, 158 bytes a voxel); coefficients stay on the host, as there.

    Source: MicroDiffusion (arXiv 2403.10815); Ho et al. 2020 (arXiv 2006.11239), algorithm 2.
    """

    def __init__(self, timestep: int, device: torch.device) -> None:
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - betas, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        self.of_x = (1 - betas).rsqrt().float()
        self.of_eps = (betas / ((1 - alpha_bar) * (1 - betas)).sqrt()).float()
        self.variance = (betas * (1 - before) / (1 - alpha_bar)).float()
        self.guidance = 1.8
        self.timestep = timestep
        self.device = device

    def step(self, x: Tensor, prior: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
        """The next state from this one, [Z, Y, X]; every slice a batch entry with its timestep."""
        t = torch.full((len(x),), self.timestep, device=self.device)
        x = 0.1 * x + 0.9 * prior
        eps = (1 + self.guidance) * cond - self.guidance * uncond
        self._no_nan(x)
        self._no_nan(t)
        self._no_nan(eps)
        mean = self._of(self.of_x, t) * x - self._of(self.of_eps, t) * eps
        variance = self._of(self.variance, t)
        self._no_nan(mean)
        self._no_nan(variance)
        noise = torch.randn_like(x)
        noise[t <= 0] = 0
        return mean + torch.sqrt(variance) * noise

    def _of(self, coefficients: Tensor, t: Tensor) -> Tensor:
        return coefficients[t.cpu()].to(self.device).reshape(-1, 1, 1)

    @staticmethod
    def _no_nan(tensor: Tensor) -> None:
        assert torch.isnan(tensor).int().sum() == 0, "NaN"


def diffusers_step(
    scheduler: str,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    rounds: int,
    *,
    eta: float | None,
    options: dict[str, Any],
) -> Contender:
    """A step of a diffusers scheduler, with guidance and the blend in eager torch around it.

    Every call is the next step of a chain of 100, so multistep schedulers have their history. The
    noise schedule is diffusers' default, which is ours: linear from 1e-4 to 0.02 in 1000 steps.

    Args:
        scheduler: class name in diffusers.
        tensors: x, prior, cond, uncond.
        rounds: see `Contender`.
        eta: of DDIM's `step`.
        options: of the scheduler.
    """
    import diffusers

    made = getattr(diffusers, scheduler)(**options)
    made.set_timesteps(100)
    x, prior, cond, uncond = tensors
    timesteps = iter(made.timesteps)
    step_options = {} if eta is None else {"eta": eta}

    def run() -> Tensor:
        eps = uncond + 2.8 * (cond - uncond)
        previous = made.step(eps, next(timesteps), x, return_dict=False, **step_options)[0]
        return 0.1 * previous + 0.9 * prior

    # Its timesteps are spaced in its own way, so its numbers are not ours.
    return Contender(run, rounds=rounds, same=False)
