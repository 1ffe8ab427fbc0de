"""blended_step: one pass over the state does all that lies between two calls of the network.

Guidance, prediction to x0, limits, data consistency, the sampler's update, noise and the blend with
the prior are all linear (but for the limits), so one row of a table tells any sampler's step. The
rows come from `microdiffusion_fast.schedule.make_plan`, or from anybody who fills `COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _backend
from ..axial_projection.reference import gram_band
from ..checks import on_device_of
from ..counter_noise import counter_noise, noise_key
from . import checks
from .reference import COLUMNS, blended_step_reference

__all__ = ["COLUMNS", "NoiseKey", "blended_step"]


class NoiseKey(NamedTuple):
    """Noise for the step to draw: arguments of `counter_noise`, whose step is in the table.

    `words`, int64 [3] on the device of x, are the seed, the stream and the flat index of the
    block's first voxel in its volume, read there in place of `seed`, `stream` and `offset`: a
    captured CUDA graph can be replayed with others. `offset` then has to say how the block lies to
    groups of four voxels (that index modulo 4).
    """

    seed: int
    stream: int = 0
    offset: Sequence[int] = (0, 0, 0)
    volume_shape: Sequence[int] | None = None
    words: Tensor | None = None

    def new_words(self, shape: Sequence[int]) -> Tensor:
        """What `words` has to hold for a block of this shape, on the CPU."""
        seed, stream, z, y, x, _, height, width = self._checked(shape)
        return torch.tensor([seed, stream, (z * height + y) * width + x], dtype=torch.int64)

    def _checked(self, shape: Sequence[int]) -> list[int]:
        return noise_key(
            shape,
            seed=self.seed,
            stream=self.stream,
            offset=self.offset,
            volume_shape=self.volume_shape,
        )


def _plain(
    x: Tensor,
    prior: Tensor,
    cond: Tensor,
    table: Tensor,
    step: Tensor,
    uncond: Tensor | None,
    noise: Tensor | None,
    key: Sequence[int],
    words: Tensor | None,
    history: Tensor | None,
    projections: Tensor | None,
    weights: Sequence[float],
    stride: int,
    start: int,
) -> None:
    # key: empty, or the noise_key of the noise to draw.
    if x.device.type == "cpu":
        checks.read_step(table, step)
    if key:
        seed, stream, *place = key if words is None else checks.read_words(words, key, x.shape)
        noise = counter_noise(
            x.shape,
            seed=seed % 2**64,
            # Free on a CPU; elsewhere a wait that a kernel which draws its own noise does not have.
            step=checks.read_key(float(table[step.reshape(()), -1])),
            stream=stream,
            offset=place[:3],
            volume_shape=place[3:],
            device=x.device,
        )
    blended_step_reference(
        x,
        prior,
        cond,
        table,
        step,
        uncond=uncond,
        noise=noise,
        history=history,
        projections=projections,
        weights=weights,
        stride=stride,
        start=start,
    )


_step = torch.library.custom_op(
    "microdiffusion_fast::blended_step", _plain, mutates_args=("x", "history")
)


@_step.register_fake
def _fake(*arguments: Any) -> None:
    return None


if _backend.native is not None:
    _native_step = _backend.native.blended_step
    _NATIVE_DTYPES = (torch.float32, torch.bfloat16)

    @_step.register_kernel("cpu")
    def _native(
        x: Tensor,
        prior: Tensor,
        cond: Tensor,
        table: Tensor,
        step: Tensor,
        uncond: Tensor | None,
        noise: Tensor | None,
        key: Sequence[int],
        words: Tensor | None,
        history: Tensor | None,
        projections: Tensor | None,
        weights: Sequence[float],
        stride: int,
        start: int,
    ) -> None:
        volumes = (x, prior, cond, uncond, noise, history, projections)
        overlap = projections is not None and len(projections) > 1 and stride < len(weights)
        in_place = x.is_contiguous() and (history is None or history.is_contiguous())
        known = all(v is None or v.dtype in _NATIVE_DTYPES for v in volumes)
        if overlap or not in_place or not known:
            _plain(
                x, prior, cond, table, step, uncond, noise, key, words,
                history, projections, weights, stride, start,
            )  # fmt: skip
            return
        *row, word = table[checks.read_step(table, step)].tolist()
        drawn = None
        if key:
            seed, stream, *place = key if words is None else checks.read_words(words, key, x.shape)
            drawn = seed % 2**64, checks.read_key(word), stream, place[:3], place[3:]
        # The native module takes no tensor that requires a gradient.
        arrays = (None if v is None else v.detach().contiguous() for v in volumes)
        norm = gram_band(weights, stride)[0] if weights else 1.0
        threads = torch.get_num_threads()
        _native_step(*arrays, row, drawn, weights, norm, stride, start, threads)


if _backend.triton_missing is None:

    @_step.register_kernel("cuda")
    def _triton(x: Tensor, *others: Any) -> None:
        from .triton_kernel import blended_step_triton

        with torch.cuda.device(x.device):
            blended_step_triton(x, *others)


def blended_step(
    x: Tensor,
    prior: Tensor,
    cond: Tensor,
    table: Tensor,
    step: Tensor,
    *,
    uncond: Tensor | None = None,
    noise: Tensor | NoiseKey | None = None,
    history: Tensor | None = None,
    projections: Tensor | None = None,
    weights: Tensor | Sequence[float] | None = None,
    stride: int | None = None,
    start: int = 0,
) -> None:
    """Advances the blended state [Z, Y, X] by one diffusion step, in place.

        prediction = (1 + w) * cond - w * uncond
        x0         = clamp(p * prediction + q * x, low, high)
        x0        += trust * A^+ (projections - A x0)
        x_prev     = a * x0 + b * x + c * history + d * noise;    history = x0
        x          = (1 - gamma) * x_prev + gamma * prior

    A part whose tensor is None is left out. Any mix of floating dtypes; the arithmetic is in that
    of `x`, at least float32. Not differentiable.

    One pass over memory where x and history are contiguous, all dtypes are float32 or bfloat16 (on
    a GPU also float16) and windows do not overlap; plain torch otherwise. On a CPU both give the
    same bits, with consistency the same to rounding. Drawn noise is that of `counter_noise` on the
    same device. A voxel's bits do not depend on where in the array it lies.

    Args:
        x: blended state, [Z, Y, X]; becomes that of the next step, after the last row the clean
            volume. Shares no memory with the others. An empty one stays as it is.
        prior: [Z, Y, X].
        cond: the network's output with its condition, [Z, Y, X].
        table: [K, len(COLUMNS)], float32 or float64, one row a step, on the device of x. Its values
            are checked on a CPU only: reading them on a GPU would stop it.
        step: the row, an int64 scalar on the device of x: a counter that the host need not read.
        uncond: the network's output without its condition, [Z, Y, X].
        noise: standard normals [Z, Y, X], or the key of those to draw.
        history: x0 of the step before, [Z, Y, X]; zeros before the first step. Overwritten. A table
            of a multistep sampler needs it.
        projections: [K, Y, X] of the axial projection A that follows.
        weights: axial weights [s]; default the mean of `stride` slices.
        stride: slices between window starts; default s.
        start: first slice of the first window.

    Raises:
        ValueError: a shape, a device or the geometry does not fit, x or history shares memory (two
            slices of one array do not) or requires a gradient, or a number is out of range. On a
            CPU also: gamma outside [0, 1], numbers of the table that are not finite (limits may be
            infinite), a step that is no row, a key or words that are none. While torch.compile
            traces, and on the meta device, memory and the numbers of the table are not looked at.
        TypeError: an argument is no dense floating-point tensor, or a number of another kind.

    Examples:
        >>> from microdiffusion_fast.schedule import make_plan
        >>> plan = make_plan(1, gamma=0.25)
        >>> x, x0 = torch.randn(2, 4, 4), torch.full((2, 4, 4), 0.5)
        >>> blended_step(x, torch.zeros_like(x), x0, plan.table, torch.tensor(0))
        >>> bool(((x - 0.5).abs() < 1e-6).all())  # the last state is the clean volume
        True

    Source: see `blended_step_reference`.
    """
    present = {"prior": prior, "cond": cond}
    optional = {"uncond": uncond, "history": history}
    drawn: Tensor | None = None
    if noise is not None and not isinstance(noise, NoiseKey):
        drawn = optional["noise"] = noise
    present |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    checks.check_volumes(x, present)
    checks.check_gradients(x, history)
    checks.check_table(table, step)
    taps, stride, start = checks.check_geometry(x, projections, weights, stride, start)
    if projections is not None:
        present["projections"] = projections
    present |= {"table": table, "step": step}
    key: list[int] = []
    words: Tensor | None = None
    if isinstance(noise, NoiseKey):
        key, words = noise._checked(x.shape), noise.words
        checks.check_words(words, x)
    device = x.device
    for name, tensor in present.items():
        on_device_of(name, tensor, "x", device)
    if checks.has_values(x):
        if device.type == "cpu":
            checks.check_coefficients(table)
        if words is not None:
            present["noise"] = words
        checks.check_memory(x, history, present)
    if x.numel() == 0:
        return
    _step(
        x, prior, cond, table, step, uncond, drawn, key, words,
        history, projections, taps, stride, start,
    )  # fmt: skip
