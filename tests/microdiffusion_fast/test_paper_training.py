"""Training on one stack: what an example is, and runs that stop, go on, share work and refuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from microdiffusion_fast import paper_checkpoint, paper_training
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.inr import FourierOptions
from microdiffusion_fast.paper_examples import ExampleDropout, TrainingLoss, draw_examples
from microdiffusion_fast.paper_recipe import PaperTraining
from microdiffusion_fast.paper_training import learning_rate, train_paper
from microdiffusion_fast.paper_unet import PaperConfig, PaperDenoiser
from microdiffusion_fast.progress import Cancelled, ProgressCallback, ProgressEvent
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.schedule import NoiseSchedule
from microdiffusion_fast.tensor_files import read_tensors, write_tensors

TINY = PaperConfig(
    channels=8, multipliers=(1, 2), blocks=1, groups=4, position_features=4, image_features=8
)
RECIPE = PaperTraining(
    steps=4,
    batch=2,
    warm_up=2,
    checkpoint_steps=2,
    inr=FourierOptions(features=8, width=8, steps=3),
    network=TINY,
)
FILES = {"a.safetensors", "a.state.safetensors", "a.json"}


def stack_of(seed: int = 0, *, side: int = 16, count: int = 4) -> Projections:
    images = torch.rand((count, side, side), generator=torch.Generator().manual_seed(seed))
    return Projections(images, step_length=3, weights=(0.25, 0.5, 0.25))


def same(first: Path, second: Path) -> bool:
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def state_of(path: Path) -> Path:
    return path.with_suffix(".state.safetensors")


def stop_after(steps: int) -> ProgressCallback:
    def callback(event: ProgressEvent) -> bool:
        return not (event.stage == "train" and event.done >= steps)

    return callback


def loss_of(training: PaperTraining, stack: Projections, prior: Tensor) -> TrainingLoss:
    torch.manual_seed(0)
    return TrainingLoss(
        PaperDenoiser(training.network),
        stack.images,
        prior,
        stack.operator,
        training,
        schedule=NoiseSchedule(),
        mixed=False,
    )


# --- an example ---


def test_every_image_comes_once_before_any_comes_again() -> None:
    training = replace(RECIPE, batch=3)
    drawn = [e for step in range(20) for e in draw_examples(training, step, (5, 16, 16), 1000)]
    for epoch in range(12):
        shown = [example.projection for example in drawn[5 * epoch : 5 * epoch + 5]]
        assert sorted(shown) == [0, 1, 2, 3, 4]
    times = torch.tensor([example.timestep for example in drawn]).double()
    assert times.min() >= 1 and times.max() <= 1000
    assert abs(float(times.mean()) - 500) < 4 * 289 / 60**0.5
    assert len({example.noise for example in drawn}) == len(drawn)
    again = draw_examples(training, 7, (5, 16, 16), 1000)
    assert again == drawn[21:24]
    assert again != draw_examples(replace(training, seed=1), 7, (5, 16, 16), 1000)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 60)])
def test_share_of_unconditional_examples(share: float, expected: int) -> None:
    training = replace(RECIPE, batch=60, unconditional=share)
    examples = draw_examples(training, 0, (5, 16, 16), 1000)
    assert sum(not example.conditional for example in examples) == expected


def test_what_the_network_is_shown() -> None:
    """The blended, noised projection; E_pos averaged over its window, E_img of it; or zeros."""
    stack = stack_of()
    prior = torch.rand((12, 16, 16), generator=torch.Generator().manual_seed(3))
    training = replace(RECIPE, batch=16, gamma=0.7, unconditional=0.4)
    loss = loss_of(training, stack, prior).eval()
    seen: dict[str, Tensor] = {}

    class Spy(nn.Module):
        position_encoder, image_encoder = (
            loss.denoiser.position_encoder,
            loss.denoiser.image_encoder,
        )

        def biases(self, t: Tensor, condition: Tensor) -> Tensor:
            seen.update(t=t, condition=condition)
            return condition

        def forward(self, x: Tensor, biases: Tensor) -> Tensor:
            seen.update(x=x)
            return torch.zeros_like(x)

    loss.denoiser = Spy()  # type: ignore[assignment]
    examples = draw_examples(training, 5, (4, 16, 16), 1000)
    mine = slice(4, 16)
    value = loss(examples, mine)

    alpha_bar = NoiseSchedule().alpha_bar
    total = 0.0
    kinds = set()
    for row, example in enumerate(examples[mine]):
        k, t = example.projection, example.timestep
        clean = 0.3 * stack.images[k] + 0.7 * stack.operator(prior)[k]
        drawn = torch.Generator().manual_seed(example.noise)
        eps = torch.randn((16, 16), generator=drawn)
        state = alpha_bar[t].sqrt() * (2 * clean - 1) + (1 - alpha_bar[t]).sqrt() * eps
        torch.testing.assert_close(seen["x"][row], state.float(), rtol=0, atol=1e-5)
        assert seen["t"][row] == t
        total += float(eps.square().mean()) / 12
        places = loss.denoiser.position_encoder(torch.arange(3 * k, 3 * k + 3) * (2 / 12) - 1.0)
        place = (torch.tensor(stack.weights)[:, None] * places).sum(0)
        image = loss.denoiser.image_encoder(2 * stack.images[k : k + 1] - 1)[0]
        expected = torch.cat([place, image]) * example.conditional
        torch.testing.assert_close(seen["condition"][row], expected, rtol=0, atol=1e-5)
        kinds.add(example.conditional)
    assert kinds == {True, False}
    assert float(value) == pytest.approx(total, rel=1e-5)


def test_larger_images_are_cropped() -> None:
    stack = stack_of(side=40)
    training = replace(RECIPE, batch=8, size=16)
    examples = draw_examples(training, 0, (4, 40, 40), 1000)
    assert len({(e.top, e.left) for e in examples}) > 1
    assert all(0 <= e.top <= 24 and 0 <= e.left <= 24 for e in examples)
    loss = loss_of(training, stack, torch.zeros(12, 40, 40))
    shapes = []
    loss.denoiser.unet.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    assert loss(examples, slice(0, 8)).isfinite()
    assert shapes == [(8, 1, 16, 16)]


def test_dropout_belongs_to_the_example() -> None:
    dropout = ExampleDropout(0.25).train()
    x = torch.rand((3, 4, 16, 16), generator=torch.Generator().manual_seed(0)) + 1
    x = x.contiguous(memory_format=torch.channels_last)

    def run(rows: slice) -> Tensor:
        seeds = [11, 12, 13][rows]
        dropout.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return dropout(x[rows])

    whole = run(slice(0, 3))
    assert torch.equal(whole[1:2], run(slice(1, 2))) and torch.equal(whole[2:], run(slice(2, 3)))
    dropped = whole == 0
    assert abs(float(dropped.double().mean()) - 0.25) < 0.03
    torch.testing.assert_close(whole[~dropped], x[~dropped] / 0.75)
    assert not torch.equal(dropped[0], dropped[1])
    assert torch.equal(dropout.eval()(x), x)


def test_all_dropout_of_the_network_is_per_example() -> None:
    network = PaperDenoiser(TINY)
    before = list(network.state_dict())
    usual = [m for m in network.modules() if isinstance(m, nn.Dropout)]
    installed = ExampleDropout.install(network)
    assert len(installed) == len(usual) > 0 and list(network.state_dict()) == before
    assert not any(isinstance(m, nn.Dropout) for m in network.modules())
    assert all(dropout.rate == TINY.dropout for dropout in installed)


def test_learning_rate() -> None:
    training = PaperTraining(steps=110, warm_up=10, learning_rate=0.5)
    rates = [2 * learning_rate(training, step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.5) and rates[110] == pytest.approx(0.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    short = PaperTraining(steps=40, warm_up=100)  # its warm-up is a tenth of it
    rates = [learning_rate(short, step) for step in range(40)]
    assert rates[:4] == [short.learning_rate * (i + 1) / 4 for i in range(4)]
    assert rates[4] == short.learning_rate and rates[4:] == sorted(rates[4:], reverse=True)


def test_it_learns(tmp_path: Path) -> None:
    """An untrained network's error of eps is 1; a few steps find most of it."""
    recipe = replace(
        RECIPE, steps=24, batch=8, learning_rate=5e-3, checkpoint_steps=24, bfloat16=False
    )
    path = train_paper(stack_of(), tmp_path / "a.safetensors", config=recipe, progress=False)
    losses = load_file(state_of(path))["losses"]
    assert len(losses) == 24
    assert float(losses[:2].mean()) > 0.8 and float(losses[-8:].mean()) < 0.5


# --- a run ---


@pytest.mark.parametrize("lost", ["losses", "inr.", "first."])
def test_a_state_that_lacks_something(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "a.safetensors"
    train_paper(stack_of(), path, config=RECIPE, progress=False)
    tensors, metadata = read_tensors(state_of(path), "state", "a state")
    kept = {name: value for name, value in tensors.items() if not name.startswith(lost)}
    write_tensors(state_of(path), kept, metadata)
    with pytest.raises(InputError, match=r"^resume: expected the (state|tensors) of") as error:
        train_paper(stack_of(), path, config=RECIPE, progress=False, resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stopped_after", [2, 3])
def test_resumed_equals_uninterrupted(tmp_path: Path, stopped_after: int) -> None:
    """Bit for bit, also where steps after the last checkpoint were lost."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert train_paper(stack_of(), whole, config=RECIPE, progress=False) == whole
    stop = stop_after(stopped_after)
    with pytest.raises(Cancelled):
        train_paper(stack_of(), parts, config=RECIPE, progress=False, callback=stop)
    assert not same(whole, parts)
    torch.rand(17)  # whatever else the process drew in between
    train_paper(stack_of(), parts, config=RECIPE, progress=False, resume=True)
    assert same(whole, parts) and same(state_of(whole), state_of(parts))
    kept = {name.split(".")[0] for name in load_file(state_of(whole))}
    assert kept == {"weight", "average", "first", "second", "inr", "losses"}
    cards = [path.with_suffix(".json").read_text() for path in (whole, parts)]
    assert cards[0] == cards[1].replace("parts", "whole")


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from microdiffusion_fast.paper_recipe import PaperTraining
from microdiffusion_fast.paper_training import train_paper
from microdiffusion_fast.projections import Projections
import json
path, kill, resume, recipe, images = sys.argv[1:]
def callback(event):
    if event.stage == "train" and event.done == int(kill):
        os.kill(os.getpid(), signal.SIGKILL)
stack = Projections(torch.load(images), step_length=3, weights=(0.25, 0.5, 0.25))
recipe = PaperTraining.from_record(json.loads(recipe))
train_paper(stack, Path(path), config=recipe, progress=False, callback=callback,
            resume=resume == "resume")
"""


def script(
    folder: Path, name: str, recipe: PaperTraining, *options: str, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """`train_paper` in processes of their own, with the threads of this one."""
    import json

    (folder / "script.py").write_text(SCRIPT)
    torch.save(stack_of().images, folder / "images.pt")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    line = [
        sys.executable,
        *(launch if processes > 1 else []),
        str(folder / "script.py"),
        str(folder / name),
        *options,
        json.dumps(asdict(recipe)),
        str(folder / "images.pt"),
    ]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        line,
        env={**os.environ, **threads, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """SIGKILL one step after a checkpoint: nothing is cleaned up, and nothing is lost."""
    killed, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    found = script(tmp_path, killed.name, RECIPE, "3", "begin")
    assert found.returncode == -signal.SIGKILL, found.stderr
    assert paper_checkpoint.load_paper(killed).step == 2
    train_paper(stack_of(), killed, config=RECIPE, progress=False, resume=True)
    train_paper(stack_of(), whole, config=RECIPE, progress=False)
    assert same(whole, killed) and same(state_of(whole), state_of(killed))


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """To rounding: gradients are linear in the examples, and so are Adam's first moments."""
    recipe = replace(RECIPE, batch=4, steps=2, bfloat16=False)
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    train_paper(stack_of(), one, config=recipe, progress=False)
    found = script(tmp_path, two.name, recipe, "0", "begin", processes=2)
    assert found.returncode == 0, found.stderr
    a, b = load_file(state_of(one)), load_file(state_of(two))
    assert a.keys() == b.keys()
    torch.testing.assert_close(a["losses"], b["losses"], rtol=1e-6, atol=0)
    largest = max(float(a[name].abs().max()) for name in a if name.startswith("first."))
    for name, value in a.items():
        if name.startswith("first."):
            torch.testing.assert_close(b[name], value, rtol=0, atol=1e-4 * largest)
        elif name.startswith("inr.") or "running" in name:
            torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-6)
    # the examples of the second process count: alone, the first has another loss
    halved = replace(recipe, batch=2)
    train_paper(stack_of(), tmp_path / "half.safetensors", config=halved, progress=False)
    assert not torch.allclose(load_file(tmp_path / "half.state.safetensors")["losses"], a["losses"])


def test_an_interrupted_checkpoint_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the files is being written when the disk is full."""
    path = tmp_path / "a.safetensors"
    with pytest.raises(Cancelled):
        train_paper(stack_of(), path, config=RECIPE, progress=False, callback=stop_after(2))
    kept = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(paper_training, "save_paper", full)
    with pytest.raises(OSError, match="no space"):
        train_paper(stack_of(), path, config=RECIPE, progress=False, resume=True)
    monkeypatch.undo()
    assert path.read_bytes() == kept and paper_checkpoint.load_paper(path).step == 2
    train_paper(stack_of(), path, config=RECIPE, progress=False, resume=True)
    train_paper(stack_of(), tmp_path / "whole.safetensors", config=RECIPE, progress=False)
    assert same(path, tmp_path / "whole.safetensors")


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="^resume: expected a training state"):
        train_paper(stack_of(), path, config=RECIPE, progress=False, resume=True)
    train_paper(stack_of(), path, config=RECIPE, progress=False)
    assert {p.name for p in tmp_path.iterdir()} == FILES
    before = path.read_bytes()

    def resume(expected: str, stack: Projections | None = None, **changes: object) -> None:
        other = replace(RECIPE, **changes)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=expected) as error:
            train_paper(stack or stack_of(), path, config=other, progress=False, resume=True)
        assert "\n" not in str(error.value)

    resume(r"^resume: .* recipe .*, gamma 0\.9, got gamma 0\.5", gamma=0.5)
    resume(
        r"^resume: .* recipe .*, network channels 8, got network channels 16",
        network=replace(TINY, channels=16),
    )
    resume("^resume: .* stack .*, sha256 [0-9a-f]{64}, got sha256", stack_of(1))
    resume(r"^resume: .* stack .*, images \[4, 16, 16\]", stack_of(count=5))
    with pytest.raises(InputError, match="^output: expected a path that does not exist"):
        train_paper(stack_of(), path, config=RECIPE, progress=False)
    for bad in ("a.pt", "absent/a.safetensors"):
        with pytest.raises(InputError, match="^output: expected"):
            train_paper(stack_of(), tmp_path / bad, config=RECIPE, progress=False)
    assert path.read_bytes() == before
    train_paper(stack_of(1), path, config=RECIPE, progress=False, overwrite=True)
    assert path.read_bytes() != before
    state_of(path).write_bytes(state_of(path).read_bytes()[:1000])
    resume("^resume: expected a safetensors state")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch", 1),
        ("warm_up", -1),
        ("size", 8),
        ("checkpoint_steps", 0),
        ("seed", -1),
        ("gamma", 1.1),
        ("unconditional", -0.1),
        ("averaging", 2),
        ("learning_rate", 1.0),
        ("batch", 2.0),
        ("gamma", True),
    ],
)
def test_bad_recipes(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected"):
        PaperTraining(**{name: value})  # type: ignore[arg-type]


def test_fitting_the_inr_may_be_cancelled(tmp_path: Path) -> None:
    seen: list[ProgressEvent] = []

    def callback(event: ProgressEvent) -> bool:
        seen.append(event)
        return False

    path = tmp_path / "a.safetensors"
    with pytest.raises(Cancelled, match="^fit INR"):
        train_paper(stack_of(), path, config=RECIPE, progress=False, callback=callback)
    assert len(seen) == 1 and list(tmp_path.iterdir()) == []
