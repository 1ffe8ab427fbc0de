"""counter_noise: standard normals that belong to the voxels of a volume, not to a call.

A voxel's noise is a function of (seed, step, stream, voxel index) alone. It does not change with
batch, tile, slab, worker, thread count or device, so tiled and untiled runs draw the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _backend, checks
from .reference import counter_noise_reference

__all__ = ["counter_noise", "noise_key"]


@torch.library.custom_op("microdiffusion_fast::counter_noise", mutates_args=("out",))
def _fill(
    out: Tensor, seed: int, step: int, stream: int, offset: Sequence[int], volume: Sequence[int]
) -> None:
    # The op fills a tensor instead of making one: an op without tensor arguments has no default
    # implementation left once one device has its own.
    noise = counter_noise_reference(
        out.shape,
        seed=seed,
        step=step,
        stream=stream,
        offset=offset,
        volume_shape=volume,
        device=out.device,
        dtype=out.dtype,
    )
    out.copy_(noise)


@_fill.register_fake
def _fake(
    out: Tensor, seed: int, step: int, stream: int, offset: Sequence[int], volume: Sequence[int]
) -> None:
    return None


if _backend.native is not None:
    _native_fill = _backend.native.counter_noise

    @_fill.register_kernel("cpu")
    def _native(
        out: Tensor, seed: int, step: int, stream: int, offset: Sequence[int], volume: Sequence[int]
    ) -> None:
        # torch's own thread count: its settings are the user's, ours would be a second set.
        threads = torch.get_num_threads()
        _native_fill(out, tuple(offset), tuple(volume), seed % 2**64, step, stream, threads)


if _backend.triton_missing is None:

    @_fill.register_kernel("cuda")
    def _triton(
        out: Tensor, seed: int, step: int, stream: int, offset: Sequence[int], volume: Sequence[int]
    ) -> None:
        from .triton_kernel import counter_noise_triton

        with torch.cuda.device(out.device):
            counter_noise_triton(
                out, seed=seed, step=step, stream=stream, offset=offset, volume_shape=volume
            )


def _triple(name: str, value: Sequence[int], minimum: int) -> tuple[int, int, int]:
    expected = f"three integers (z, y, x), each at least {minimum}"
    if not isinstance(value, Sequence) or len(value) != 3:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    z, y, x = (checks.integer(name, v, minimum, expected=expected) for v in value)
    return z, y, x


def _device(device: torch.device | str | None) -> torch.device | None:
    if device is None or isinstance(device, torch.device):
        return device
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected a torch device, got {device!r}") from None


def counter_noise(
    shape: Sequence[int],
    *,
    seed: int,
    step: int,
    stream: int = 0,
    offset: Sequence[int] = (0, 0, 0),
    volume_shape: Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws the standard normal noise of a block of voxels, [Z, Y, X] float32.

    The block at `offset` equals that slice of the whole volume's noise, bit for bit on one device
    and backend.

    Args:
        shape: (Z, Y, X) of the block, in voxels; of nothing, an empty tensor.
        seed: the key, in [0, 2^64).
        step: the diffusion step, in [0, 2^32). Steps are independent.
        stream: which of several uses or samples, in [0, 2^32). Streams are independent.
        offset: (z, y, x) of the block in the whole volume, in voxels.
        volume_shape: (Z, Y, X) of the whole volume; needed when the block is not all of it.
        device: where the noise is drawn; torch's default device when None.

    Raises:
        ValueError: an argument is out of range, the block reaches out of the volume or past 2^63
            bytes, or the device is unknown.
        TypeError: an argument is not of integers.

    Examples:
        >>> whole = counter_noise((4, 8, 8), seed=7, step=3)
        >>> place = {"offset": (2, 0, 0), "volume_shape": (4, 8, 8)}
        >>> part = counter_noise((2, 8, 8), seed=7, step=3, **place)
        >>> bool((whole[2:] == part).all())
        True

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10);
        Box and Muller 1958, eq. 1.
    """
    block = _triple("shape", shape, 0)
    if math.prod(block) >= 1 << 61:
        raise ValueError(f"shape: expected fewer than 2^61 voxels, got {block}")
    key, word, *place = noise_key(
        block, seed=seed, stream=stream, offset=offset, volume_shape=volume_shape
    )
    number = checks.integer("step", step, bits=32)
    out = torch.empty(block, dtype=torch.float32, device=_device(device))
    if out.numel():
        _fill(out, key, number, word, place[:3], place[3:])
    return out


def noise_key(
    shape: Sequence[int],
    *,
    seed: int,
    stream: int,
    offset: Sequence[int],
    volume_shape: Sequence[int] | None,
) -> list[int]:
    """Checks whose noise is meant: [seed, stream, offset z y x, volume shape z y x].

    Arguments as in `counter_noise`. The seed is returned as a signed 64-bit integer, in which the
    upper half of the seeds is negative: the dispatcher has no other.

    Raises:
        ValueError: an argument is out of range, or the block reaches out of the volume.
        TypeError: an argument is not of integers.
    """
    key, word = checks.integer("seed", seed, bits=64), checks.integer("stream", stream, bits=32)
    start = _triple("offset", offset, 0)
    if volume_shape is None and any(start):
        raise ValueError("volume_shape: expected (Z, Y, X) beside a non-zero offset, got None")
    volume = _triple("volume_shape", shape if volume_shape is None else volume_shape, 0)
    if any(o + s > v for o, s, v in zip(start, shape, volume, strict=True)):
        raise ValueError(
            f"offset: expected the block inside volume_shape {volume}, "
            f"got offset {start} with shape {tuple(shape)}"
        )
    if math.prod(volume) >= 1 << 63:
        raise ValueError(f"volume_shape: expected fewer than 2^63 voxels, got {volume}")
    return [key - ((key >> 63) << 64), word, *start, *volume]
