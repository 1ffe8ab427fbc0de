"""The command line: its contract, and one clear line for everything a user can get wrong."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile

from microdiffusion_fast import demo, training
from microdiffusion_fast.cli_summary import adaptation_line, print_noise, verdict
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.io import read_volume, write_volume
from microdiffusion_fast.progress import ProgressEvent
from microdiffusion_fast.projections import Projections
from microdiffusion_fast.reconstruct import reconstruct as real_reconstruct
from microdiffusion_fast.simulate import simulate_projections, simulate_volume

Run = Callable[..., tuple[int, str, str]]
# What the check along z found, as `Reconstruction.adaptation` has it.
FOUND = {
    "accepted": True,
    "axial_blur": 1.7,
    "error": {"as shipped": 0.5, "adapted": 0.31},
}
KEYS = ("psnr", "ssim", "dice")


@dataclass(frozen=True)
class Quick:
    """What `reconstruct` returns, made in no time."""

    projections: Projections
    drawn: int  # samples; 0 is the posterior mean
    prior: np.ndarray = field(init=False)
    volume: np.ndarray = field(init=False)
    timings: dict[str, float] = field(default_factory=lambda: {"inr": 0.1, "sample": 0.2})
    parameters: dict[str, Any] = field(default_factory=lambda: {"gamma": (0.5, 0.9)})
    adaptation: dict[str, Any] = field(default_factory=lambda: FOUND)
    provenance: dict[str, Any] = field(default_factory=lambda: {"seed": 0})

    def __post_init__(self) -> None:
        made = demo.baselines(self.projections)
        object.__setattr__(self, "prior", made["interpolation"])
        object.__setattr__(self, "volume", made["interpolation+consistency"])

    @property
    def uncertainty(self) -> np.ndarray | None:
        return None if self.drawn == 1 else np.ones_like(self.volume)

    def save(self, path: Path, overwrite: bool = False) -> Path:
        size = self.projections.voxel_size
        return write_volume(path, self.volume, voxel_size=size, overwrite=overwrite)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the long computation; the list collects the options of every call."""
    made: list[dict[str, Any]] = []
    signature = inspect.signature(real_reconstruct)

    def reconstruct(projections: Projections, **options: Any) -> Quick:
        signature.bind(projections, **options)  # only what the real one takes
        for name, value in options.items():
            assert value is not None or signature.parameters[name].default is None, name
        made.append(options)
        if options["callback"] is not None:
            options["callback"](ProgressEvent("fit INR", 1, 2))
        return Quick(projections, options["samples"] if options["steps"] else 0)

    module = ModuleType("microdiffusion_fast.reconstruct")
    module.reconstruct = reconstruct  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


@pytest.fixture
def run(real_run: Run, calls: list[dict[str, Any]]) -> Run:
    """Runs one command line, without the long computation: exit code, stdout, stderr."""
    return real_run


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return simulate_volume("vessels", (27, 24, 32), seed=5) * np.float32(900)


@pytest.fixture
def volume(tmp_path: Path, truth: np.ndarray) -> Path:
    return write_volume(tmp_path / "volume.tif", truth, voxel_size=(2.0, 0.5, 0.5))


@pytest.fixture
def stack(tmp_path: Path, truth: np.ndarray) -> Path:
    made = simulate_projections(truth, step_length=6, voxel_size=(2.0, 0.5, 0.5))
    return made.save(tmp_path / "stack.ome.tif")


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def assert_refused(
    result: tuple[int, str, str], argument: str, *, before: set[str], folder: Path
) -> None:
    code, out, err = result
    lines = err.strip().splitlines()
    assert code == 2, (out, err)
    assert out == "" and len(lines) == 1 and lines[0].startswith("error: "), (out, err)
    assert argument in lines[0]
    assert listing(folder) == before


def rgb(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((9, 16, 16, 3), np.uint8), photometric="rgb")


def truncated(path: Path) -> None:
    tifffile.imwrite(path, np.random.default_rng(0).random((8, 32, 32), np.float32))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def with_value(value: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = np.random.default_rng(0).random((24, 16, 16))
        data[3, 4, 5] = value
        tifffile.imwrite(path, data)

    return make


def random_stack(*shape: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = np.random.default_rng(0).random(shape, np.float32)
        tifffile.imwrite(path, data, photometric="minisblack")

    return make


def constant(path: Path) -> None:
    tifffile.imwrite(path, np.full((24, 16, 16), 7, np.uint16))


def with_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


BAD_FILES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "2D": random_stack(32, 32),
    "4D": random_stack(2, 9, 16, 16),
    "RGB": rgb,
    "truncated": truncated,
    "not a TIFF": lambda path: with_bytes(path, b"hello"),
    "empty": lambda path: with_bytes(path, b""),
    "NaN": with_value(np.nan),
    "Inf": with_value(np.inf),
    "beyond float32": with_value(1e300),
    "constant": constant,
    "a folder": lambda path: path.mkdir(),
    "tiny pixels": random_stack(24, 4, 4),
}


@pytest.mark.parametrize("make", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_file_in_every_place(make: Callable[[Path], None], run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tif"
    make(bad)
    good, out = tmp_path / "good.tif", tmp_path / "out"
    random_stack(24, 16, 16)(good)
    before = listing(tmp_path)
    step = ("--step-length", 6)
    for argument, line in {
        "PROJ": ("reconstruct", bad, "-o", f"{out}.tif", *step),
        "VOLUME": ("simulate", bad, "-o", f"{out}.tif", *step),
        "VOLUME ": ("demo", bad, "-o", out),
        "RECON": ("evaluate", bad, good),
        "TRUTH": ("evaluate", good, bad),
        "--truth": ("reconstruct", good, "-o", f"{out}.tif", *step, "--truth", bad),
    }.items():
        assert_refused(run(*line), argument.strip(), before=before, folder=tmp_path)


GEOMETRY: dict[str, tuple[Sequence[object], str]] = {
    "step length 0": (("--step-length", 0), "--step-length"),
    "step length 1": (("--step-length", 1), "--step-length"),
    "step length negative": (("--step-length", -6), "--step-length"),
    "step length longer than the volume": (("--step-length", 28), "--step-length"),
    "step length that leaves one projection": (("--step-length", 20), "--step-length"),
    "step length no number": (("--step-length", "six"), "--step-length"),
    "step length huge": (("--step-length", 10**30), "--step-length"),
    "stride 0": (("--step-length", 6, "--stride", 0), "--stride"),
    "stride that leaves one projection": (("--step-length", 6, "--stride", 25), "--step-length"),
    "weights negative": (("--step-length", 2, "--weights", "1.5,-0.5"), "--weights"),
    "weights too few": (("--step-length", 6, "--weights", "0.5,0.5"), "--weights"),
    "weights no numbers": (("--step-length", 2, "--weights", "a,b"), "--weights"),
    "weights not a mean": (("--step-length", 2, "--weights", "1,1"), "--weights"),
    "noise no number": (("--step-length", 6, "--noise", "photons=many"), "--noise"),
    "noise unknown": (("--step-length", 6, "--noise", "grain=3"), "--noise"),
    "noise negative": (("--step-length", 6, "--noise", "photons=-1"), "--noise photons"),
    "seed negative": (("--step-length", 6, "--seed", -1), "--seed"),
    "seed overflow": (("--step-length", 6, "--seed", 2**64), "--seed"),
}


@pytest.mark.parametrize(("options", "argument"), GEOMETRY.values(), ids=GEOMETRY.keys())
def test_bad_geometry(
    options: Sequence[object], argument: str, run: Run, volume: Path, tmp_path: Path
) -> None:
    before = listing(tmp_path)
    for line in (
        ("simulate", volume, "-o", tmp_path / "out.tif", *options),
        ("demo", volume, "-o", tmp_path / "out", *options),
    ):
        assert_refused(run(*line), argument, before=before, folder=tmp_path)


STACKS: dict[str, tuple[Sequence[object], str]] = {
    "no step length": ((), "--step-length"),
    "step length 0": (("--step-length", 0), "--step-length"),
    "step length 1": (("--step-length", 1), "--step-length"),
    "step length longer than the depth": (("--step-length", 9, "--depth", 5), "--step-length"),
    "stride 0": (("--step-length", 6, "--stride", 0), "--stride"),
    "weights negative": (("--step-length", 2, "--weights", "1.5,-0.5"), "--weights"),
    "K does not match Z": (("--step-length", 6, "--depth", 100), "PROJ"),
    "depth overflow": (("--step-length", 6, "--depth", 2**70), "PROJ"),
    "start negative": (("--step-length", 6, "--start", -1), "--start"),
    "voxel size zero": (("--step-length", 6, "--voxel-size", 0, 1, 1), "--voxel-size"),
    "steps no number": (("--step-length", 6, "--steps", "most"), "--steps"),
    "gamma no number": (("--step-length", 6, "--gamma", "x"), "--gamma"),
    "uncertainty of one": (
        ("--step-length", 6, "--steps", 4, "--uncertainty", "u.tif"),
        "--uncertainty",
    ),
    "preset unknown": (("--step-length", 6, "--preset", "slow"), "--preset"),
    "adapt steps negative": (("--step-length", 6, "--adapt-steps", -1), "--adapt-steps"),
    "INR steps 0": (("--step-length", 6, "--inr-steps", 0), "--inr-steps"),
    "batch size 0": (("--step-length", 6, "--batch-size", 0), "--batch-size"),
    "option unknown": (("--step-length", 6, "--speed", "9"), "--speed"),
}


@pytest.mark.parametrize(("options", "argument"), STACKS.values(), ids=STACKS.keys())
def test_bad_projections(
    options: Sequence[object],
    argument: str,
    run: Run,
    calls: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    stack = tmp_path / "stack.tif"
    random_stack(5, 16, 16)(stack)
    before = listing(tmp_path)
    line = ("reconstruct", stack, "-o", tmp_path / "out.tif", *options)
    assert_refused(run(*line), argument, before=before, folder=tmp_path)
    assert calls == []


REFUSED: dict[str, tuple[Sequence[object], str]] = {
    "steps 0": (("--steps", 0), "--steps"),
    "exact to nothing": (("--steps", "exact", "--tol", 0), "--tol"),
    "exact without gamma": (("--steps", "exact", "--gamma", 0), "--gamma"),
    "gamma above 1": (("--gamma", 1.5), "--gamma"),
    "gamma schedule unknown": (("--gamma-schedule", "step"), "--gamma-schedule"),
    "gammas of a schedule": (("--gamma", "1,0", "--gamma-schedule", "linear"), "--gamma"),
    "gammas for other steps": (("--steps", 4, "--gamma", "0.1,0.2"), "--gamma"),
    "guidance not finite": (("--guidance", "nan"), "--guidance"),
    "variance mix without DDPM": (("--variance-mix", 0.5), "--variance-mix"),
    "blur too wide": (("--axial-blur", 50), "--axial-blur"),
    "device unknown": (("--device", "gpu"), "--device"),
    "denoiser missing": (("--denoiser", "absent.safetensors"), "--denoiser"),
    "training for fast": (("--train-steps", 9), "--train-steps"),
    "adapt for paper": (("--preset", "paper", "--adapt"), "--adapt"),
    "axial blur for paper": (("--preset", "paper", "--axial-blur", 1), "--axial-blur"),
    "paper, nothing to forget with": (("--preset", "paper", "--gamma", 0), "--gamma"),
    "paper, denoiser missing": (
        ("--preset", "paper", "--denoiser", "absent.safetensors"),
        "--denoiser",
    ),
}


@pytest.mark.parametrize(("options", "argument"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_reconstruction_refuses(
    options: Sequence[object], argument: str, real_run: Run, stack: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.npy"  # without a voxel size, and still no second line
    np.save(plain, Projections.from_any(stack).images.numpy())
    before = listing(tmp_path)
    line = ("reconstruct", plain, "-o", tmp_path / "out.tif", "--step-length", 6, *options)
    assert_refused(real_run(*line), argument, before=before, folder=tmp_path)


def test_one_projection_only(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.random.default_rng(0).random((1, 16, 16)))
    before = listing(tmp_path)
    line = ("reconstruct", tmp_path / "one.npy", "-o", tmp_path / "o.tif", "--step-length", 6)
    assert_refused(run(*line), "PROJ", before=before, folder=tmp_path)


def test_mismatched_truth_is_found_before_the_computation(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, truth: np.ndarray
) -> None:
    stack = tmp_path / "plain.tif"
    images = truth[:24].reshape(4, 6, 24, 32).mean(1)
    tifffile.imwrite(stack, images, photometric="minisblack")
    np.save(tmp_path / "small.npy", truth[:, :20])
    np.save(tmp_path / "deep.npy", truth)
    before = listing(tmp_path)
    line = ("reconstruct", stack, "-o", tmp_path / "o.tif", "--step-length", 6, "--truth")
    assert_refused(run(*line, tmp_path / "small.npy"), "--truth", before=before, folder=tmp_path)
    # 27 slices hold 4 windows too: the message says how to make them fit.
    result = run(*line, tmp_path / "deep.npy")
    assert_refused(result, "--depth 27", before=before, folder=tmp_path)
    assert calls == []
    code, _, err = run(*line, tmp_path / "deep.npy", "--depth", 27)
    assert code == 0, err


@pytest.mark.parametrize(
    "place", ["exists", "no folder", "under a file", "suffix", "the input", "under /proc"]
)
def test_bad_output_is_found_before_the_computation(
    place: str, run: Run, calls: list[dict[str, Any]], volume: Path, stack: Path, tmp_path: Path
) -> None:
    (tmp_path / "exists.tif").write_text("precious")
    out = {
        "exists": tmp_path / "exists.tif",
        "no folder": tmp_path / "absent" / "out.tif",
        "under a file": volume / "out.tif",
        "suffix": tmp_path / "out.jpg",
        "the input": stack,
        "under /proc": Path(
            "/proc/out.tif"
        ),  # the permissions of root promise it, the disk does not
    }[place]
    more = ["--overwrite"] if place == "the input" else []
    before = listing(tmp_path)
    result = run("reconstruct", stack, "-o", out, *more)
    assert_refused(result, "--output", before=before, folder=tmp_path)
    if place != "the input":
        result = run("simulate", volume, "-o", out, "--step-length", 6)
        assert_refused(result, "--output", before=before, folder=tmp_path)
    assert calls == [] and (tmp_path / "exists.tif").read_text() == "precious"


@pytest.mark.parametrize("place", ["not empty", "a file", "under a file", "under /proc", "foreign"])
def test_bad_demo_folder(
    place: str, run: Run, calls: list[dict[str, Any]], volume: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    out = {
        "not empty": tmp_path / "full",
        "foreign": tmp_path / "full",
        "a file": volume,
        "under a file": volume / "out",
        "under /proc": Path("/proc/demo_out"),
    }[place]
    more = ["--overwrite"] if place == "foreign" else []
    before = listing(tmp_path)
    assert_refused(run("demo", volume, "-o", out, *more), "-o", before=before, folder=tmp_path)
    assert calls == []


def test_demo(run: Run, volume: Path, truth: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    drawn = ("--steps", 2, "--samples", 2, "--seed", 3)
    code, printed, err = run("demo", volume, "-o", out, *drawn, "--no-adapt")
    assert code == 0, err
    assert listing(out) == demo.FILES
    assert {path.name for path in out.parent.iterdir()} == {"b"}
    found = json.loads((out / "metrics.json").read_text())
    assert found["shape"] == [27, 24, 32] and found["step_length"] == 6
    assert {"nearest", "interpolation", "interpolation+consistency", "inr", "reconstruction"} == (
        found["methods"].keys()
    )
    for score in found["methods"].values():
        assert score.keys() == {"psnr", "ssim", "dice"}
        assert 0 < score["psnr"] < 100 and -1 <= score["ssim"] <= 1 and 0 <= score["dice"] <= 1
    # The stand-in returns this baseline as its volume, so their scores are the same.
    assert found["methods"]["reconstruction"] == found["methods"]["interpolation+consistency"]
    assert 0 <= found["consistency_max_abs"] < 1e-3 < found["misfits"]["interpolation"]
    assert found["seconds"]["total"] >= found["seconds"]["reconstruct"] >= 0
    assert found["slices_evaluated"] == 24 and found["parameters"] == {"gamma": [0.5, 0.9]}
    assert found["adaptation"] == FOUND
    assert read_volume(out / "reconstruction.ome.tif").voxel_size == pytest.approx((2, 0.5, 0.5))
    low, high = np.percentile(truth, (0.1, 99.9))
    assert read_volume(out / "truth.ome.tif").data == pytest.approx(np.clip(truth, low, high))
    assert "recreate with: " in printed
    assert "reconstruction: +0.00 dB PSNR against interpolation+consistency\n" in printed


def test_a_reconstruction_that_is_worse_is_called_so() -> None:
    good = {"psnr": 31.0, "ssim": 0.9, "dice": 0.7}
    scores = {"interpolation+consistency": good, "reconstruction": {**good, "psnr": 30.5}}
    assert verdict(scores) == (
        "reconstruction: -0.50 dB PSNR against interpolation+consistency; NOT better in PSNR"
    )


def test_the_line_on_the_adaptation() -> None:
    scale = "squared error along z, 1 being interpolation"
    before = {"as shipped": FOUND["error"]["as shipped"]}  # type: ignore[index]
    assert adaptation_line(FOUND) == (
        f"adaptation: accepted; {scale}: 0.500 before, 0.310 after; axial blur 1.7 slices"
    )
    assert adaptation_line({**FOUND, "accepted": False}).startswith(
        f"adaptation: not accepted, the weights stay as they were; {scale}: 0.500 before"
    )
    alone = {**FOUND, "accepted": False, "error": {"as shipped": 0.713}, "trust": 0.4}
    assert adaptation_line(alone).startswith("adaptation: not needed; ")
    assert "scaled by 0.4" in adaptation_line(alone)
    off = {"accepted": False, "axial_blur": 0.0, "error": before}
    assert adaptation_line(off, asked=False) == (
        f"adaptation: off; {scale}: 0.500; axial blur 0 slices"
    )
    skipped = {"accepted": False, "axial_blur": 0.0, "skipped": "needs 4 projections"}
    assert adaptation_line(skipped) == (
        "adaptation: skipped, it needs 4 projections; the weights stay as they were"
    )


def test_softness_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    print_noise({"consistency": "hard", "noise_to_signal": None})
    assert not capsys.readouterr().out
    print_noise({"consistency": "soft", "noise_to_signal": 3.0})
    assert "soft; what the network makes of a projection counts 75%" in capsys.readouterr().out


def test_the_demo_with_the_real_pipeline(real_run: Run, volume: Path, tmp_path: Path) -> None:
    budget = ("--adapt-steps", 1, "--inr-steps", 2)
    code, printed, err = real_run("demo", volume, "-o", tmp_path / "out", *budget)
    assert code == 0, err
    assert listing(tmp_path / "out") == demo.FILES
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["parameters"]["samples"] == 1
    assert found["parameters"]["adapt_steps"] == 1
    assert found["consistency_max_abs"] < 1e-3
    assert {"reconstruct.prior", "reconstruct.adaptation", "reconstruct.sampling"} <= (
        found["seconds"].keys()
    )
    assert float(np.ptp(read_volume(tmp_path / "out" / "uncertainty.ome.tif").data)) > 0
    assert "adaptation: skipped, it needs lateral sides" in printed


def test_demo_reproduces_the_printed_baselines(
    run: Run, vessel_volume: Path, tmp_path: Path
) -> None:
    """The demo's conventions are those of the table that was computed independently of it."""
    assert run("demo", vessel_volume, "-o", tmp_path / "out", "--quiet")[0] == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["methods"]
    rows = [
        [f"{found[method][key]:.{digits}f}" for key, digits in zip(KEYS, (2, 3, 3), strict=True)]
        for method in ("nearest", "interpolation", "interpolation+consistency")
    ]
    assert rows == [
        ["30.65", "0.925", "0.655"],
        ["30.97", "0.926", "0.628"],
        ["31.70", "0.930", "0.679"],
    ]


def test_the_line_to_recreate_a_demo_works(
    run: Run, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, _ = run("demo", volume, "-o", "out")
    assert code == 0
    line = printed.strip().splitlines()[-1].removeprefix("recreate with: microdiffusion-fast ")
    code, printed, err = run(*line.split())
    assert code == 0, err
    again = read_volume("again.ome.tif").data
    assert np.array_equal(again, read_volume("out/reconstruction.ome.tif").data)
    line = printed.strip().splitlines()[-1].removeprefix("recreate with: microdiffusion-fast ")
    assert run(*line.split())[0] == 0


def test_demo_blurs_before_it_projects(run: Run, volume: Path, tmp_path: Path) -> None:
    assert run("demo", volume, "-o", tmp_path / "a", "--no-clip")[0] == 0
    assert run("demo", volume, "-o", tmp_path / "b", "--no-clip", "--blur", 1.7)[0] == 0
    from scipy.ndimage import gaussian_filter1d  # type: ignore[import-untyped]

    sharp = read_volume(tmp_path / "a" / "truth.ome.tif").data
    blurred = read_volume(tmp_path / "b" / "truth.ome.tif").data
    assert blurred == pytest.approx(gaussian_filter1d(sharp, 1.7, axis=0), abs=1e-2)
    stack = Projections.from_any(tmp_path / "b" / "projections.ome.tif")
    assert stack.operator.depth == 27
    assert stack.images.numpy()[1] == pytest.approx(blurred[6:12].mean(0), rel=1e-5, abs=1e-3)


def test_demo_overwrites_a_demo_only_when_asked(run: Run, volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("demo", volume, "-o", out, "--quiet", "--steps", 2)[:2] == (0, "")
    assert listing(out) == demo.FILES - {"uncertainty.ome.tif"}
    (out / ".DS_Store").touch()  # a file manager looked at it
    stamp = (out / "metrics.json").read_bytes()
    assert run("demo", volume, "-o", out)[0] == 2
    assert (out / "metrics.json").read_bytes() == stamp
    assert run("demo", volume, "-o", out, "--overwrite")[0] == 0
    assert listing(out) == demo.FILES and len(listing(tmp_path)) == len(demo.FILES) + 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom"), MemoryError()])
def test_a_demo_that_fails_leaves_nothing(
    error: BaseException,
    run: Run,
    volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("microdiffusion_fast.report.draw_report", fail)
    before = listing(tmp_path)
    code, _, err = run("demo", volume, "-o", tmp_path / "x" / "out")
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert listing(tmp_path) == before


def test_reconstruct_passes_its_options_on(
    run: Run, calls: list[dict[str, Any]], stack: Path, volume: Path, tmp_path: Path
) -> None:
    chosen = ("--gamma", "0.1,0.5", "--samples", 3, "--no-adapt", "--seed", 9, "--inr-steps", 7)
    options = (*chosen, "--sampler", "ddpm", "--variance-mix", 0.25, "--batch-size", 3)
    files = ("-o", tmp_path / "o.ome.zarr", "--uncertainty", tmp_path / "u.npy", "--truth", volume)
    code, printed, err = run("reconstruct", stack, *files, *options)
    assert code == 0, err
    wanted = {"gamma": (0.1, 0.5), "samples": 3, "adapt": False, "seed": 9, "inr_steps": 7}
    wanted |= {"sampler": "ddpm", "variance_mix": 0.25, "batch_size": 3}
    assert wanted.items() <= calls[0].items()
    assert read_volume(tmp_path / "o.ome.zarr").data.shape == (27, 24, 32)
    assert read_volume(tmp_path / "u.npy").data.shape == (27, 24, 32)
    assert "PSNR" in printed and "--gamma 0.1,0.5" in printed and "--no-adapt" in printed
    assert "--variance-mix 0.25" in printed and "--inr-steps 7" in printed


@pytest.mark.parametrize("probe", [True, False])
def test_exact_steps(real_run: Run, stack: Path, tmp_path: Path, probe: bool) -> None:
    """What was proven is said, and the line that recreates it asks for the same."""
    options = ("--steps", "exact", "--tol", "1e-4", "--gamma", 0.9, "--gamma-schedule", "constant")
    cheap = ("--no-adapt", "--inr-steps", 2, *(() if probe else ("--no-probe",)))
    code, printed, err = real_run("reconstruct", stack, "-o", tmp_path / "o.tif", *options, *cheap)
    assert code == 0, err
    said = r"two starts differ by at most \de-0\d of the range" if probe else "not probed"
    assert re.search(rf"exact: the last \d of 1000 steps; .*{said}", printed), printed
    assert "--steps exact --tol 0.0001" in printed
    assert ("--no-probe" in printed) == (not probe)


def test_an_absent_voxel_size_is_said_and_can_be_given(run: Run, tmp_path: Path) -> None:
    stack = tmp_path / "stack.npy"
    np.save(stack, np.random.default_rng(0).random((4, 16, 16)))
    line = ("reconstruct", stack, "--step-length", 6, "-o")
    code, _, err = run(*line, tmp_path / "a.ome.tif")
    assert code == 0 and "warning" in err and "--voxel-size" in err
    assert read_volume(tmp_path / "a.ome.tif").voxel_size is None
    code, _, err = run(*line, tmp_path / "b.ome.tif", "--voxel-size", 2, 0.5, 0.25)
    assert code == 0 and err == ""
    assert read_volume(tmp_path / "b.ome.tif").voxel_size == pytest.approx((2, 0.5, 0.25))


def test_simulate_keeps_the_geometry(run: Run, volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "proj.ome.tif"
    options = ("--step-length", 3, "--stride", 2, "--weights", "0.25,0.5,0.25")
    code, _, err = run("simulate", volume, "-o", out, *options, "--noise", "photons=200,read=2")
    assert code == 0, err
    made = Projections.from_any(out)
    assert (made.step_length, made.stride, made.depth) == (3, 2, 27)
    assert made.weights == (0.25, 0.5, 0.25) and made.voxel_size == pytest.approx((2, 0.5, 0.5))
    code, _, _ = run("simulate", volume, "-o", tmp_path / "clean.ome.tif", *options)
    clean = Projections.from_any(tmp_path / "clean.ome.tif").images
    assert code == 0 and float((made.images - clean).std()) > 1


def test_evaluate(run: Run, volume: Path, truth: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "worse.npy", truth * 0.9 + 10)
    code, printed, _ = run("evaluate", tmp_path / "worse.npy", volume, "--json")
    scores = json.loads(printed)
    assert code == 0 and scores.keys() == {"psnr", "ssim", "dice"} and 10 < scores["psnr"] < 60
    # Identical volumes have infinite PSNR, which JSON cannot hold.
    code, printed, _ = run("evaluate", volume, volume, "--json")
    assert code == 0 and json.loads(printed) == {"psnr": None, "ssim": 1.0, "dice": 1.0}
    code, printed, _ = run("evaluate", volume, volume)
    assert code == 0 and "inf" in printed
    np.save(tmp_path / "other.npy", truth[:20])
    code, _, err = run("evaluate", tmp_path / "other.npy", volume)
    assert code == 2 and err.startswith("error: RECON") and err.count("\n") == 1


def test_train(real_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    line = ("train", "-o", out, "--steps", 1, "--volumes", 1, "--seed", 7)
    code, printed, err = real_run(*line)
    assert code == 0 and f"--denoiser {out}" in printed, err
    assert listing(tmp_path) == {"weights.safetensors", "weights.state.safetensors"}
    first = out.read_bytes()
    assert real_run(*line)[0] == 2 and out.read_bytes() == first
    assert real_run(*line, "--resume")[0] == 0  # there is nothing left to do


def test_train_passes_its_options_on(
    real_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(training, "train", lambda *a, **options: seen.append((*a, options)))
    out = tmp_path / "weights.safetensors"
    assert real_run("train", "-o", out, "--quiet")[0] == 0
    plain = {"start_from": None, "resume": False, "overwrite": False, "progress": True}
    fresh = {**plain, "config": training.TrainingConfig(), "progress": False}
    assert seen.pop() == (out, fresh)
    out.write_bytes(b"old")
    options = ("--steps", 9, "--volumes", 4, "--seed", 3, "--start-from", out)
    assert real_run("train", "-o", out, "--resume", *options)[0] == 0 and out.exists()
    config = training.TrainingConfig(steps=9, volumes=4, seed=3)
    resumed = {**plain, "config": config, "start_from": out, "resume": True}
    assert seen.pop() == (out, resumed)
    assert real_run("train", "-o", out, "--overwrite")[0] == 0
    assert seen.pop() == (out, {**fresh, "overwrite": True, "progress": True})
    assert out.read_bytes() == b"old"  # replaced by the first checkpoint, not before


TRAINING: dict[str, tuple[str, Sequence[object], str]] = {
    "output exists": ("old.safetensors", (), "--output"),
    "output no checkpoint": ("weights.pt", (), "--output"),
    "no folder": ("absent/weights.safetensors", (), "--output"),
    "unwritable": ("/proc/weights.safetensors", (), "--output"),
    "nothing to resume": ("new.safetensors", ("--resume",), "--resume"),
    "resume and overwrite": ("old.safetensors", ("--resume", "--overwrite"), "--resume"),
    "steps 0": ("new.safetensors", ("--steps", 0), "--steps"),
    "volumes 0": ("new.safetensors", ("--volumes", 0), "--volumes"),
    "seed too large": ("old.safetensors", ("--overwrite", "--seed", 1000), "--seed"),
    "projections for fast": ("new.safetensors", ("stack.tif",), "PROJ"),
    "step length for fast": ("new.safetensors", ("--step-length", 6), "--step-length"),
    "batch for fast": ("new.safetensors", ("--batch", 4), "--batch"),
    "gamma for fast": ("new.safetensors", ("--gamma", 0.5), "--gamma"),
    "paper without projections": ("new.safetensors", ("--preset", "paper"), "PROJ"),
    "paper without a stack": ("new.safetensors", ("no.tif", "--preset", "paper"), "PROJ"),
    "volumes for paper": ("new.safetensors", ("--preset", "paper", "--volumes", 3), "--volumes"),
    "start for paper": (
        "new.safetensors",
        ("--preset", "paper", "--start-from", "old.safetensors"),
        "--start-from",
    ),
    "batch of one": ("new.safetensors", ("no.tif", "--preset", "paper", "--batch", 1), "--batch"),
}


@pytest.mark.parametrize(("name", "options", "argument"), TRAINING.values(), ids=TRAINING.keys())
def test_bad_training(
    name: str, options: Sequence[object], argument: str, real_run: Run, tmp_path: Path
) -> None:
    (tmp_path / "old.safetensors").write_bytes(b"precious")
    before = listing(tmp_path)
    result = real_run("train", "-o", tmp_path / name, *options)
    assert_refused(result, argument, before=before, folder=tmp_path)
    assert (tmp_path / "old.safetensors").read_bytes() == b"precious"


def test_info(run: Run) -> None:
    code, printed, _ = run("info", "--json")
    assert code == 0 and "backends" in json.loads(printed)
    assert "native" in run("info")[1]


def test_debug_shows_the_traceback(run: Run, tmp_path: Path) -> None:
    line = ("evaluate", tmp_path / "absent.tif", tmp_path / "absent.tif")
    for arguments in (("--debug", *line), (*line, "--debug")):
        code, _, err = run(*arguments)
        assert code == 2 and "Traceback" in err
        assert err.strip().splitlines()[-1].startswith("error: RECON")


def test_messages_of_the_kernels_are_the_users_too(
    run: Run, stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("gamma: expected a number\nfrom 0 to 1, got 7")

    monkeypatch.setattr(sys.modules["microdiffusion_fast.reconstruct"], "reconstruct", refuse)
    code, _, err = run("reconstruct", stack, "-o", tmp_path / "o.tif", "--quiet")
    assert (code, err) == (2, "error: --gamma: expected a number from 0 to 1, got 7\n")


@pytest.mark.parametrize("arguments", [("nonsense",), ("demo",), ("reconstruct", "x.tif")])
def test_usage_errors(arguments: tuple[str, ...], run: Run) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--step-length", "six"), "--step-length: expected a valid integer, got 'six'"),
        (("--samples", 0), "--samples: expected greater than or equal to 1, got '0'"),
        (("--axial-blur=-1",), "--axial-blur: expected greater than or equal to 0, got '-1'"),
        (("--sampler", "euler"), "--sampler: expected one of 'ddim', 'ddpm', 'dpm++', got 'euler'"),
        (("--seed", -1), "--seed: expected an integer from 0 to 2^63 - 1, got -1"),
        (("--preset", "slow"), "--preset: expected one of 'fast', 'paper', got 'slow'"),
        (("--voxel-size", 1, 2, "x"), "--voxel-size: expected a valid number, got '1 2 x'"),
    ],
)
def test_the_parser_says_what_was_expected_and_what_came(
    options: Sequence[object], complaint: str, run: Run
) -> None:
    code, _, err = run("reconstruct", "x.tif", "-o", "y.tif", *options)
    assert (code, err) == (2, f"error: {complaint}\n")


def test_no_arguments_shows_the_commands(run: Run) -> None:
    code, printed, err = run()
    assert (code, err) == (0, "")
    for command in ("demo", "simulate", "reconstruct", "evaluate", "train", "info"):
        assert command in printed


def test_help_is_light() -> None:
    """`--help` loads neither torch nor anything that draws or reads images."""
    code = (
        "import sys\nfrom microdiffusion_fast.cli import run\n"
        "assert run(['reconstruct', '--help']) == 0\n"
        "heavy = {'torch', 'matplotlib', 'tifffile', 'zarr'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--truth" in done.stdout


def test_module_is_the_same_program(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "microdiffusion_fast", "simulate", str(tmp_path / "absent.tif")]
    line += ["-o", str(tmp_path / "out.tif"), "--step-length", "6"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: VOLUME") and done.stderr.count("\n") == 1


def test_run_demo_refuses_a_blur_that_is_none(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="blur"):
        demo.run_demo(tmp_path / "out", blur=float("nan"))
    assert listing(tmp_path) == set()
