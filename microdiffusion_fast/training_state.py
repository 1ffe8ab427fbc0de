"""What a training run leaves on disk to go on from: weights, their average and the optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import InputError
from .tensor_files import read_tensors


class TrainingState:
    """Weights of a module, their moving average and AdamW's moments, saved and loaded together.

    A run that loads what another saved continues it bit for bit, so every tensor is copied into
    the memory layout that an uninterrupted run would have (channels last, for one).
    """

    def __init__(self, module: nn.Module, optimiser: torch.optim.AdamW) -> None:
        self.module, self.optimiser, self.step = module, optimiser, 0
        self.averaged = {
            name: value.detach().clone() for name, value in module.state_dict().items()
        }

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Exponential moving average of the weights, quicker while young."""
        decay = min(decay, (self.step + 1) / (self.step + 10))
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)
            else:  # a count of batches has no mean
                self.averaged[name].copy_(value)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self.module.named_parameters() if p.requires_grad)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by names that `load` knows."""
        found: dict[str, Tensor] = {}
        for name, value in self.module.state_dict().items():
            found[f"weight.{name}"] = value
            found[f"average.{name}"] = self.averaged[name]
        for name, parameter in self._trained():
            moments = self.optimiser.state[parameter]
            found[f"first.{name}"] = moments["exp_avg"]
            found[f"second.{name}"] = moments["exp_avg_sq"]
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take up what `tensors` gave after `step` steps.

        Raises:
            InputError: naming `resume`; the tensors are those of another network.
        """
        try:
            self.module.load_state_dict(part(tensors, "weight."))
            for name, value in self.averaged.items():
                value.copy_(tensors[f"average.{name}"])
            fused = self.optimiser.defaults["fused"]  # which counts its steps on the device
            for name, parameter in self._trained():
                first, second = torch.empty_like(parameter), torch.empty_like(parameter)
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(step), device=parameter.device if fused else "cpu"),
                    "exp_avg": first.copy_(tensors[f"first.{name}"]),
                    "exp_avg_sq": second.copy_(tensors[f"second.{name}"]),
                }
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError("resume", "the tensors of this network", reason) from None
        self.step = step


@contextmanager
def resuming(path: Path) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
    """The state beside a checkpoint, tensors and metadata, for as long as it is taken up.

    Raises:
        InputError: naming `resume`; there is none, or it lacks what is taken from it.
    """
    state = state_path(path)
    if not state.is_file():
        raise InputError("resume", f"a training state {state}", "none")
    try:
        yield read_tensors(state, "resume", "a safetensors state")
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{state}: {type(error).__name__}: {str(error).splitlines()[0]}"
        raise InputError("resume", "the state of such a training", reason) from None


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def state_path(path: Path) -> Path:
    """Where the training state of a checkpoint lies: beside it."""
    return path.with_suffix(".state.safetensors")


def checked_output(output: str | Path, *, resume: bool, overwrite: bool) -> Path:
    """The path of a checkpoint to write.

    Raises:
        InputError: naming `output`; another suffix, no folder, or it exists without leave.
    """
    path = Path(output)
    if path.suffix != ".safetensors":
        raise InputError("output", "a path that ends in .safetensors", str(path))
    if not path.parent.is_dir():
        raise InputError("output", "a path in an existing folder", str(path))
    if path.exists() and not (resume or overwrite):
        raise InputError("output", "a path that does not exist, or --resume", str(path))
    return path
