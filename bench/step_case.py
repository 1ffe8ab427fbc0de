"""Inputs of the step's suites: a state in the middle of a guided, blended chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.harness import DEVICE, Contender, Peer, Row, choose, normal, uniform
from bench.peers.step import Coefficients
from microdiffusion_fast.kernels import blended_step
from microdiffusion_fast.kernels.blended_step import NoiseKey
from microdiffusion_fast.kernels.blended_step.reference import blended_step_reference
from microdiffusion_fast.kernels.counter_noise.reference import counter_noise_reference
from microdiffusion_fast.schedule import make_plan

SHAPE = choose(smoke=(16, 24, 24), cpu=(64, 512, 512), cuda=(512, 512, 512))
STEP_LENGTH = 6
VOXELS = SHAPE[0] * SHAPE[1] * SHAPE[2]
SIZE = "x".join(map(str, SHAPE)) + " float32"
TOLERANCE = 5e-6  # values of order 1, and noise from another logarithm and cosine
# One step in the middle: every coefficient that its sampler has is at work.
AT, STEPS = 3, 8
KEY = NoiseKey(seed=7)


class StepCase:
    """Tensors of one step, and ours on them.

    Args:
        sampler: of `make_plan`, likewise eta.
        noise: "given", "drawn" in the kernel, or "none".
        consistent: with projections, and full trust in them.
        history: with the x0 before, for a multistep sampler.
    """

    def __init__(
        self,
        sampler: str = "ddpm",
        *,
        noise: str = "given",
        consistent: bool = False,
        history: bool = False,
    ) -> None:
        consistency: Any = "hard" if consistent else "off"
        options: dict[str, Any] = {"sampler": sampler, "prediction": "eps", "gamma": 0.9}
        options |= {"guidance": 1.8, "clamp": (-1.0, 1.0), "consistency": consistency}
        self.plan = make_plan(STEPS, **options)
        self.k = Coefficients(*self.plan.table[AT].tolist())
        self.table = self.plan.table.to(DEVICE, torch.float32)
        self.at = torch.tensor(AT, device=DEVICE)
        self.start = normal(SHAPE, 1)
        self.x = self.start.clone()
        self.prior, self.cond, self.uncond = uniform(SHAPE, 2), normal(SHAPE, 3), normal(SHAPE, 4)
        self.drawn = normal(SHAPE, 5) if noise == "given" else None
        self.noise = KEY if noise == "drawn" else self.drawn
        self.first = normal(SHAPE, 6) if history else None
        self.history = None if self.first is None else self.first.clone()
        windows = (SHAPE[0] // STEP_LENGTH, *SHAPE[1:])
        self.projections = uniform(windows, 8) if consistent else None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, prior, cond and uncond, which every peer reads."""
        return self.x, self.prior, self.cond, self.uncond

    @property
    def floor_bytes(self) -> float:
        """x, prior, cond and uncond read, x written; each option on top."""
        given, history = self.drawn is not None, self.history is not None
        consistent = 4 / STEP_LENGTH if self.projections is not None else 0
        return VOXELS * (20 + 4 * given + 8 * history + consistent)

    def reset(self) -> None:
        """The state as it was: every call works on the same numbers."""
        self.x.copy_(self.start)
        if self.history is not None and self.first is not None:
            self.history.copy_(self.first)

    def row(self, name: str, about: str, peers: dict[str, Peer]) -> Row:
        return Row(
            name,
            about,
            SIZE,
            Contender(self.run, self.reset),
            peers,
            floor_bytes=self.floor_bytes,
            exact=self.exact,
            view=self.view,
            tolerance=TOLERANCE,
        )

    def peer(
        self, step: Callable[..., Tensor], rounds: int | None = None, *, same: bool = True
    ) -> Contender:
        """A plain step `step(x, prior, cond, uncond, noise, k)` on the same tensors."""
        return Contender(lambda: step(*self.tensors, self.drawn, self.k), self.reset, rounds, same)

    def run(self) -> Tensor:
        consistent = self.projections is not None
        blended_step(
            self.x,
            self.prior,
            self.cond,
            self.table,
            self.at,
            uncond=self.uncond,
            noise=self.noise,
            history=self.history,
            projections=self.projections,
            stride=STEP_LENGTH if consistent else None,
        )
        return self.x

    @staticmethod
    def view(x: Tensor) -> Tensor:
        """What is compared: the first window, one in the middle and the last slices."""
        return torch.cat([x[rows] for rows in _SLABS])

    def exact(self) -> Tensor:
        """The reference in float64 on those slabs, one by one: windows do not reach out of them."""
        return torch.cat([self._exact(rows) for rows in _SLABS])

    def _exact(self, rows: slice) -> Tensor:
        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows].double()

        noise = part(self.drawn)
        if isinstance(self.noise, NoiseKey):
            place = (rows.start, 0, 0)
            shape = (rows.stop - rows.start, *SHAPE[1:])
            key = int(self.k.key)
            noise = counter_noise_reference(
                shape,
                seed=KEY.seed,
                step=key,
                stream=0,
                offset=place,
                volume_shape=SHAPE,
                device=DEVICE,
                dtype=torch.float64,
            )
        window = rows.start // STEP_LENGTH  # none for the slices behind the last one
        projections = None
        if self.projections is not None and window < len(self.projections):
            projections = self.projections[window : window + 1].double()
        x = self.start[rows].double()
        blended_step_reference(
            x,
            self.prior[rows].double(),
            self.cond[rows].double(),
            # The coefficients are inputs too: those of the float32 table.
            self.table.double(),
            self.at,
            uncond=self.uncond[rows].double(),
            noise=noise,
            history=part(self.first),
            projections=projections,
            weights=[1 / STEP_LENGTH] * STEP_LENGTH,
            stride=STEP_LENGTH,
        )
        return x


def _slabs() -> list[slice]:
    """Whole windows, and what lies behind the last one."""
    windows = SHAPE[0] // STEP_LENGTH
    starts = (0, windows // 2 * STEP_LENGTH)
    slabs = [slice(start, start + STEP_LENGTH) for start in starts]
    return [*slabs, slice(windows * STEP_LENGTH, SHAPE[0])]


_SLABS = _slabs()
