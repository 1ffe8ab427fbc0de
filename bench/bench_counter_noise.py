"""counter_noise against the generators of torch and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from bench.harness import DEVICE, Contender, Measure, Peer, Row, choose
from microdiffusion_fast.kernels import counter_noise
from microdiffusion_fast.kernels.counter_noise.reference import counter_noise_reference

SHAPE = choose(smoke=(8, 32, 32), cpu=(64, 512, 512), cuda=(512, 512, 512))
SLICES = 4  # that are compared
SLOW = 5


def bench_noise(measure: Measure) -> None:
    """Ours writes a fresh volume, as does every peer but those named in place."""
    torch_generator = torch.Generator(DEVICE).manual_seed(3)
    target = torch.zeros(SHAPE, device=DEVICE)
    host = np.zeros(SHAPE, dtype=np.float32)
    numpy_generator = np.random.default_rng(3)

    def other(draw: Callable[[], object]) -> Peer:
        return lambda: Contender(draw, rounds=SLOW, same=False)

    torch_fresh = partial(torch.randn, SHAPE, generator=torch_generator, device=DEVICE)
    peers: dict[str, Peer] = {
        "torch.randn": other(torch_fresh),
        "torch.Tensor.normal_, in place": other(partial(target.normal_, generator=torch_generator)),
    }
    if DEVICE.type == "cpu":
        numpy_draw = partial(numpy_generator.standard_normal, dtype=np.float32, out=host)
        peers["numpy standard_normal, in place"] = other(numpy_draw)
    exact = partial(
        counter_noise_reference,
        (SLICES, *SHAPE[1:]),
        seed=3,
        step=500,
        stream=0,
        offset=(SHAPE[0] - SLICES, 0, 0),
        volume_shape=SHAPE,
        dtype=torch.float64,
    )
    row = Row(
        "noise.volume",
        "standard normals of a whole volume, Philox4x32-10 and Box-Muller",
        "x".join(map(str, SHAPE)) + " float32",
        Contender(partial(counter_noise, SHAPE, seed=3, step=500, device=DEVICE)),
        peers,
        floor_bytes=4 * target.numel(),
        exact=exact,
        view=lambda noise: noise[-SLICES:],
        tolerance=5e-6,
    )
    measure(row)
