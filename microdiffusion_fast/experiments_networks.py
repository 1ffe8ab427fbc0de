"""What several cells of a sweep share: the fast preset's INR and denoiser, the paper's training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from microdiffusion_fast.adaptation import AdaptOptions, adapt
from microdiffusion_fast.denoiser import load_denoiser, save_denoiser
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.experiments_store import Store
from microdiffusion_fast.experiments_subject import Options
from microdiffusion_fast.inr import FourierOptions, INROptions, fit_inr
from microdiffusion_fast.paper_recipe import GAMMA, STEPS, PaperTraining
from microdiffusion_fast.paper_training import train_paper
from microdiffusion_fast.progress import ProgressCallback
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.reconstruct import Reconstruction, reconstruct
from microdiffusion_fast.report_style import Volume
from microdiffusion_fast.schedule_gamma import GammaSchedule
from microdiffusion_fast.tensor_files import read_tensors
from microdiffusion_fast.training_state import state_path

ALL_STEPS = 1000


class FastNetwork:
    """The INR and the adapted denoiser of the fast preset, made once for all gammas."""

    def __init__(self, store: Store, stack: Projections, options: Options) -> None:
        self.stack, self.options = stack, options
        self.network = store.cells / "denoiser.safetensors"
        low, high = stack.intensity_range()
        self.images, self.low, self.scale = (stack.images - low) / (high - low), low, high - low

    def fit(self, callback: ProgressCallback) -> Volume:
        """The INR [Z, Y, X] in the units of the input, made consistent as the preset has it."""
        steps = self.options.inr_steps
        fitted = fit_inr(
            self.images,
            self.stack.operator,
            options=INROptions() if steps is None else INROptions(steps=steps),
            seed=self.options.seed,
            callback=callback,
        )
        prior = self.stack.operator.consistent(fitted.render(), self.images)
        return prior.mul_(self.scale).add_(self.low).cpu().numpy()

    def adapted(self, callback: ProgressCallback) -> tuple[Path | None, float | None]:
        """The denoiser as adapted to the stack and the blur it is told; None is the shipped one."""
        if not self.options.adapt:
            return None, self.options.axial_blur
        if not self.network.is_file():
            found = adapt(
                load_denoiser(),
                self.images,
                self.stack.operator,
                voxel_size=self.stack.voxel_size,
                axial_blur=self.options.axial_blur,
                options=AdaptOptions(steps=self.options.adapt_steps),
                seed=self.options.seed,
                callback=callback,
            )
            card = {"axial_blur": repr(found.axial_blur)}
            save_denoiser(self.network, found.denoiser, card)
        _, card = read_tensors(self.network, "denoiser", "a safetensors checkpoint")
        return self.network, float(card["axial_blur"]) if "axial_blur" in card else None

    def reconstruct(
        self,
        prior: Volume,
        callback: ProgressCallback,
        *,
        gamma: float | None = None,
        schedule: GammaSchedule = "constant",
    ) -> Reconstruction:
        """The posterior mean, or a chain at a gamma; `prior` is what `fit` gave."""
        chain = gamma is not None
        network, blur = self.adapted(callback)
        return _exactly(
            lambda steps: reconstruct(
                self.stack,
                steps=steps,
                gamma=gamma,
                gamma_schedule=schedule,
                probe=False,
                consistency=self.options.consistency if chain else None,
                adapt=False,
                axial_blur=blur,
                denoiser=network,
                prior=prior,
                seed=self.options.seed,
                device=self.options.device,
                callback=callback,
            ),
            self.options.steps if chain else None,
        )


class PaperNetwork:
    """A training of the paper's denoiser that survives the process, and goes when it was used."""

    def __init__(
        self,
        store: Store,
        stack: Projections,
        options: Options,
        callback: ProgressCallback,
        *,
        name: str,
        gamma: float | None = None,
    ) -> None:
        self.stack, self.options, self.callback, self.gamma = stack, options, callback, gamma
        self.path = store.cells / f"training-{name}.safetensors"

    def __enter__(self) -> PaperNetwork:
        resume = state_path(self.path).is_file()
        train_paper(
            self.stack,
            self.path,
            config=self._recipe(),
            resume=resume,
            overwrite=not resume,
            device=self.options.device,
            progress=False,
            callback=self.callback,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for path in (self.path, state_path(self.path), self.path.with_suffix(".json")):
                path.unlink(missing_ok=True)

    def reconstruct(self, *, schedule: GammaSchedule = "constant") -> Reconstruction:
        """The chain at the gamma that was trained with."""
        return _exactly(
            lambda steps: reconstruct(
                self.stack,
                preset="paper",
                steps=steps,
                gamma_schedule=schedule,
                probe=False,
                consistency=self.options.consistency,
                denoiser=self.path,
                seed=self.options.seed,
                device=self.options.device,
                callback=self.callback,
            ),
            "exact" if self.options.steps is None else self.options.steps,
        )

    def _recipe(self) -> PaperTraining:
        options = self.options
        steps = STEPS if options.train_steps is None else options.train_steps
        return PaperTraining(
            steps=steps,
            gamma=GAMMA if self.gamma is None else self.gamma,
            seed=options.seed,
            checkpoint_steps=max(1, min(250, steps // 4)),
            inr=_fourier_options(options),
        )


def _fourier_options(options: Options) -> FourierOptions:
    return (
        FourierOptions() if options.inr_steps is None else FourierOptions(steps=options.inr_steps)
    )


def fit_fourier(stack: Projections, options: Options, callback: ProgressCallback) -> Volume:
    """The paper's INR [Z, Y, X] in the units of the input: the same whatever gamma is."""
    low, high = stack.intensity_range()
    images = (stack.images - low) / (high - low)
    fitted = fit_inr(
        images,
        stack.operator,
        options=_fourier_options(options),
        seed=options.seed,
        callback=callback,
    )
    return fitted.render().mul_(high - low).add_(low).cpu().numpy()


def _exactly(
    run: Callable[[int | Literal["exact"] | None], Reconstruction],
    steps: int | Literal["exact"] | None,
) -> Reconstruction:
    """Run a chain; where its last steps do not stand for all of them, run all of them."""
    try:
        return run(steps)
    except InputError as error:
        if steps != "exact" or error.argument != "gamma":
            raise
        return run(ALL_STEPS)
