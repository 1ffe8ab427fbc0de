"""The volume of one tile, equal to that block of the whole reconstruction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .allocator import keeping
from .denoiser import Denoiser
from .estimate import mean_and_deviation
from .forward_model import AxialProjection
from .inference import directions, from_network
from .sampler import Chain
from .schedule import NoiseLevel, SamplingPlan
from .tile_denoiser import TileDenoiser, reach_of, windows_of
from .tiling import Reach, Tile
from .tiling_budget import Footprint
from .tiling_windows import Windows


@dataclass(frozen=True, eq=False)
class TileRecipe:
    """All that the tiles of a volume share.

    Attributes:
        denoiser: the network, with the weights that this stack is reconstructed with.
        operator: the acquisition of the whole stack.
        shape: (Z, Y, X) of the volume.
        intensity: the two intensities that become 0 and 1.
        mean: plan of the posterior mean; None makes the volume the mean of the chains.
        chain: plan of the chains.
        chains: how many; two or more give the deviation.
        axial_blur: what to tell the network, in slices.
        hard: whether the prior is made to agree with the projections.
        seed: of the noise.
        batch: slices per call of the network.
        floor: standard deviation of what adds to the error that the network states for the single
            step of one chain, in network units; None asks for no such uncertainty.
    """

    denoiser: Denoiser
    operator: AxialProjection
    shape: tuple[int, int, int]
    intensity: tuple[float, float]
    mean: SamplingPlan | None
    chain: SamplingPlan
    chains: int
    axial_blur: float
    hard: bool = True
    seed: int = 0
    batch: int = 1
    floor: float | None = None

    @property
    def steps(self) -> int:
        """Steps of the longest chain that is run."""
        lengths = [len(self.chain)] if self.chains else []
        return max([*lengths, *([len(self.mean)] if self.mean else [])])

    @property
    def windows(self) -> Windows:
        return windows_of(self.operator)

    @property
    def reach(self) -> Reach:
        return reach_of(self.denoiser, self.steps)

    @property
    def guided(self) -> bool:
        """Whether a plan asks for an unconditional prediction."""
        return self.chain.uses("w") or (self.mean is not None and self.mean.uses("w"))

    @property
    def volumes(self) -> int:
        """Volumes that a tile ends with: itself, and its deviation."""
        return 1 if self.chains < 2 and self.floor is None else 2

    @property
    def repeated(self) -> bool:
        """Whether a window is looked at more than once, so that its features are worth keeping."""
        return self.steps > 1 or self.chains > 1 or (self.mean is not None and self.chains > 0)

    def footprint(self, itemsize: int, together: int, *, chunk: int = 0) -> Footprint:
        """Bytes and arithmetic per pixel and voxel, for the planner; float32.

        The factors were set by measuring the resident memory of tiles, with what the C library
        keeps of freed arrays; `tests/bench/test_stream.py` holds them against it.

        Args:
            itemsize: of the stored projections.
            together: projections that are read together.
            chunk: bytes while a chunk of them is read.
        """
        config, ways = self.denoiser.config, len(directions(self.operator))
        c0, c1, c2 = config.encoder_widths
        arrays = 6 + (2 if self.guided else 0) + (3 if self.chains > 1 else 0)
        arrays += 0 if self.floor is None else 1
        encode = 4 * (5 * c0 + 16)
        encoder = 9 * (5 * c0 + 4 * c0**2 + 6 * c1**2 / 4 + 2 * config.quarter_blocks * c2**2 / 16)
        head = 9 * (7 + 2 * config.head_blocks * config.head_width) * config.head_width
        runs = (len(self.mean) if self.mean else 0) + self.chains * len(self.chain)
        return Footprint(
            fixed=64 * 2**20,
            image=4 + itemsize,  # these, and those of the next tile
            held=2 * itemsize * together,  # tiles end within chunks along all three axes
            encode=encode,
            kept=encode * 6 // 5,  # at most; it varies by 5 % of the whole from run to run
            features=4 * ways * c0,
            keep=self.repeated,
            head=4 * self.batch * (6 * config.head_width + c0 + 16),
            state=4 * arrays,
            core=4 * self.volumes * 2,
            chunk=chunk,
            encode_work=int(ways * encoder),
            head_work=int(ways * head * (2 if self.guided else 1) * runs / self.steps),
        )


def reconstruct_tile(
    tile: Tile, images: Tensor, recipe: TileRecipe
) -> tuple[Tensor, Tensor | None]:
    """The core of one tile, and its standard deviation: of the samples where there are several, of
    the error where the recipe has its `floor`.

    It equals that block of the whole reconstruction to rounding, in whatever tiles the volume is
    cut: the noise is that of the voxel, the projections reach as far as the network does, and what
    happens at the ends of the stack and the borders of the images happens there alone.

    The prior that states are blended with is linear interpolation, made consistent, because it is
    known column by column: an INR is fitted to all of a volume, and fitting one to each region
    would make every tile wait for its regions. On three recorded volumes of 96^3 at step length 6
    the INR was better by 0.001 dB, 0.000 dB and 0.002 dB for the posterior mean, and by 0.07 dB,
    -0.09 dB and 0.01 dB for chains of four steps.

    Args:
        tile: from a plan for `recipe.windows` and `recipe.reach`.
        images: [k, y, x] projections of `tile.read`, float32, in the units of the input; they lie
            where the tile is to be computed, and are overwritten.
        recipe: what all tiles share.

    Returns:
        Core [z, y, x] and None or its deviation, in the units of the input.

    Source: MicroDiffusion (arXiv 2403.10815), section 3.
    """
    low, high = recipe.intensity
    scale = high - low
    shown = images.sub_(low).div_(scale).mul_(2).sub_(1)  # `to_network`, in place
    windows = recipe.windows
    denoise = TileDenoiser(
        recipe.denoiser,
        shown,
        tile,
        recipe.operator,
        axial_blur=recipe.axial_blur,
        batch=recipe.batch,
        guided=recipe.guided,
        keep=recipe.repeated,
        stated=recipe.floor is not None,
    )
    held = windows.touching(tile.state.z)
    local = AxialProjection(
        tile.state.z.length,
        windows.step_length,
        stride=windows.stride,
        weights=recipe.operator.weights,
        start=windows.extent(held).start - tile.state.z.start,
        count=held.length,
    )
    measured = shown[
        held.within(tile.read.z),
        tile.state.y.within(tile.read.y),
        tile.state.x.within(tile.read.x),
    ].contiguous()
    prior = denoise.interpolate(tile.state.z)
    if recipe.hard:
        prior = local.consistent(prior, measured)

    seen = 0 if images.is_cuda else images[0].numel()
    largest = recipe.batch * recipe.denoiser.feature_bytes(seen)

    def runs(plan: SamplingPlan, count: int) -> Iterator[Tensor]:
        outputs = tile.outputs[len(tile.outputs) - len(plan) :]

        def predict(x: Tensor, step: int, level: NoiseLevel) -> Tensor | tuple[Tensor, Tensor]:
            with keeping(largest):
                return denoise(x, level, outputs[step])

        chain = Chain(predict, prior, plan, operator=local, projections=measured)
        for stream in range(count):
            chain.begin(
                seed=recipe.seed,
                stream=stream,
                offset=tile.state.offset,
                volume_shape=recipe.shape,
            )
            yield core_of(chain.advance())

    def core_of(volume: Tensor) -> Tensor:
        return volume[tile.core.within(tile.state)]

    volume, deviation = mean_and_deviation(runs(recipe.chain, recipe.chains))
    if recipe.mean is not None:
        volume, _ = mean_and_deviation(runs(recipe.mean, 1))
    assert volume is not None
    if recipe.floor is not None:
        assert denoise.deviation is not None
        deviation = core_of(denoise.deviation).square().add_(recipe.floor**2).sqrt_()
    volume = from_network(volume).mul_(scale).add_(low)
    return volume, None if deviation is None else deviation.mul_(scale / 2)
