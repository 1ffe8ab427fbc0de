"""The streaming metrics: torchmetrics' values, ours of the whole, in any pieces and processes."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

torchmetrics = pytest.importorskip("torchmetrics", reason="needs microdiffusion-fast[torchmetrics]")

from skimage.filters import threshold_otsu  # noqa: E402
from skimage.metrics import structural_similarity  # noqa: E402
from torchmetrics.classification import BinaryF1Score  # noqa: E402
from torchmetrics.functional.image import (  # noqa: E402
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from microdiffusion_fast import metrics  # noqa: E402
from microdiffusion_fast.errors import InputError  # noqa: E402
from microdiffusion_fast.integrations.torchmetrics import (  # noqa: E402
    VolumeDice,
    VolumePSNR,
    VolumeSSIM,
)

LIMITS = (0.0, 1.0)
METRICS = [
    pytest.param(lambda: VolumePSNR(1.0), id="PSNR"),
    pytest.param(lambda: VolumePSNR(LIMITS, per="slice"), id="PSNR by slice"),
    pytest.param(lambda: VolumeSSIM(1.0), id="SSIM"),
    pytest.param(lambda: VolumeSSIM(1.0, window="uniform", border="crop"), id="SSIM, uniform"),
    pytest.param(lambda: VolumeDice(threshold=0.4), id="Dice"),
    pytest.param(lambda: VolumeDice(data_range=LIMITS), id="Dice by Otsu"),
]


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth blobs and a noisy copy, float64 [..., Y, X], both from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    for _ in range(2):
        target = (target + target.roll(1, -1) + target.roll(1, -2)) / 3
    preds = target + 0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)
    target, preds = (((v - v.min()) / (v.max() - v.min())).contiguous() for v in (target, preds))
    return preds, target


def value(metric: Any, *batches: tuple[Tensor, Tensor]) -> float:
    for preds, target in batches:
        metric.update(preds, target)
    result = metric.compute()
    assert result.dtype == torch.float64 and result.ndim == 0
    return float(result)


@pytest.mark.parametrize("data_range", [1.0, 2.5, (0.2, 0.7)])
def test_psnr_is_that_of_torchmetrics(data_range: Any) -> None:
    preds, target = pair(4, 3, 20, 24)
    kind = data_range if isinstance(data_range, tuple) else torch.tensor(data_range).double()
    expected = peak_signal_noise_ratio(preds, target, data_range=kind)
    assert math.isclose(value(VolumePSNR(data_range), (preds, target)), expected, rel_tol=1e-6)
    expected = peak_signal_noise_ratio(preds, target, data_range=kind, dim=(-2, -1))
    by_slice = VolumePSNR(data_range, per="slice")
    assert math.isclose(value(by_slice, (preds, target)), expected, rel_tol=1e-6)


@pytest.mark.parametrize("shape", [(3, 2, 24, 30), (2, 1, 14, 16, 18)], ids=["2D", "3D"])
@pytest.mark.parametrize("data_range", [1.0, (0.2, 0.7)])
def test_gaussian_ssim_is_that_of_torchmetrics(data_range: Any, shape: Any) -> None:
    preds, target = pair(*shape)
    expected = structural_similarity_index_measure(preds, target, data_range=data_range)
    metric = VolumeSSIM(data_range, ndim=len(shape) - 2)  # type: ignore[arg-type]
    assert math.isclose(value(metric, (preds, target)), float(expected), rel_tol=1e-9)


@pytest.mark.parametrize("shape", [(3, 2, 24, 30), (2, 1, 14, 16, 18)], ids=["2D", "3D"])
def test_uniform_ssim_differs_by_the_covariance(shape: Any) -> None:
    """Theirs divides by n; the same values where their k2 makes up for it."""
    preds, target = pair(*shape)
    ndim = len(shape) - 2
    n = 7**ndim
    options = {"data_range": 1.0, "gaussian_kernel": False, "kernel_size": 7}
    metric = VolumeSSIM(1.0, window="uniform", ndim=ndim)  # type: ignore[arg-type]
    ours = value(metric, (preds, target))
    k2 = 0.03 * math.sqrt((n - 1) / n)
    same = structural_similarity_index_measure(preds, target, k2=k2, **options)
    assert math.isclose(ours, float(same), rel_tol=1e-9)
    plain = structural_similarity_index_measure(preds, target, **options)
    assert 1e-6 < abs(ours - float(plain)) < 1e-2


def test_cropped_ssim_is_that_of_scikit_image() -> None:
    preds, target = pair(4, 24, 30)
    uniform = VolumeSSIM(1.0, window="uniform", border="crop")
    slices = zip(target.numpy(), preds.numpy(), strict=True)
    expected = np.mean([structural_similarity(x, y, data_range=1.0) for x, y in slices])
    assert math.isclose(value(uniform, (preds, target)), expected, rel_tol=1e-12)
    cube = VolumeSSIM(1.0, window="gaussian", border="crop", ndim=3)
    preds, target = pair(14, 16, 18)
    expected = metrics.ssim(target, preds, data_range=1.0, window="gaussian", per="volume")
    assert math.isclose(value(cube, (preds, target)), expected, rel_tol=1e-12)


def test_dice_is_the_f1_score_of_the_masks() -> None:
    preds, target = pair(5, 20, 24)
    score = BinaryF1Score()
    score.update((preds > 0.5).int(), (target > 0.4).int())
    metric = VolumeDice(threshold=(0.4, 0.5), smooth=0.0)
    assert math.isclose(value(metric, (preds, target)), float(score.compute()), rel_tol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.uint8])
def test_otsu_dice_is_that_of_the_whole_volume(dtype: torch.dtype) -> None:
    """The thresholds are known after the last update only, and exact all the same."""
    preds, target = pair(12, 30, 30)
    limits = LIMITS
    if dtype == torch.uint8:
        limits = (0.0, 255.0)
        preds, target = ((255 * v).round() for v in (preds, target))
    preds, target = preds.to(dtype), target.to(dtype)
    metric = VolumeDice(data_range=limits)
    batches = list(zip(preds.split(5), target.split(5), strict=True))
    expected = metrics.dice(target, preds)
    assert 0.5 < expected < 0.99
    assert value(metric, *batches) == expected


def test_otsu_with_empty_bins_at_the_ends() -> None:
    """Limits wider than the values: scikit-image's threshold of the histogram over them."""
    preds, target = pair(6, 30, 30)
    found = []
    for volume in (target, preds):
        counts, edges = np.histogram(volume.numpy(), bins=256, range=(-1.0, 3.0))
        filled = np.flatnonzero(counts)
        part = slice(filled[0], filled[-1] + 1)
        centres = (edges[:-1] + edges[1:]) / 2
        found.append(threshold_otsu(hist=(counts[part], centres[part])))
    expected = metrics.dice(target, preds, threshold=(float(found[0]), float(found[1])))
    assert value(VolumeDice(data_range=(-1.0, 3.0)), (preds, target)) == expected


def test_otsu_of_constants() -> None:
    """Nothing is above the threshold of a constant volume, as in `metrics.dice`."""
    flat = torch.full((2, 8, 8), 0.5)
    assert value(VolumeDice(data_range=LIMITS), (flat, flat)) == metrics.dice(flat, flat) == 1.0
    preds, _ = pair(2, 8, 8)
    assert value(VolumeDice(data_range=LIMITS), (preds, flat)) < 1e-6


def test_they_are_the_published_metrics() -> None:
    """With the window of intensities of the reference: what `metrics.evaluate` reports."""
    preds, target = pair(6, 30, 30)
    low, high = limits = metrics.intensity_window(target)
    preds[0, 0, :2] = torch.tensor([low - 0.01, high + 0.01])  # both limits are reached
    expected = metrics.evaluate(preds, target)
    collection = torchmetrics.MetricCollection(
        {
            "psnr": VolumePSNR(limits, per="slice"),
            "ssim": VolumeSSIM(limits, window="uniform", border="crop", from_low=True),
            "dice": VolumeDice(data_range=limits),
        }
    )
    for z in range(6):
        collection.update(preds[z], target[z])
    found = collection.compute()
    for name, number in expected.as_dict().items():
        assert math.isclose(float(found[name]), number, rel_tol=1e-12), name


@pytest.mark.parametrize("make", METRICS)
@settings(max_examples=25)
@given(cuts=st.lists(st.integers(1, 11), max_size=3, unique=True))
def test_pieces_give_the_whole(make: Any, cuts: list[int]) -> None:
    preds, target = pair(12, 16, 18)
    whole = value(make(), (preds, target))
    bounds = [0, *sorted(cuts), 12]
    pieces = [(preds[a:b], target[a:b]) for a, b in itertools.pairwise(bounds)]
    streamed = value(make(), *pieces)
    merged = make()
    for piece in pieces:
        part = make()
        part.update(*piece)
        part.compute()
        merged.merge_state(part)
        merged.compute()  # a result that the next merge must not leave standing
    assert math.isclose(streamed, whole, rel_tol=1e-13)
    assert math.isclose(float(merged.compute()), whole, rel_tol=1e-13)


@pytest.mark.parametrize("make", METRICS)
def test_state_is_small_and_reset(make: Any) -> None:
    metric = make()
    batches = [pair(4, 16, 18, seed=seed) for seed in range(3)]

    def size() -> int:
        return sum(state.numel() * state.element_size() for state in metric.metric_state.values())

    before = size()
    first = float(metric(*batches[0]))
    value(metric, *batches[1:])
    assert size() == before <= 600_000
    metric.reset()
    assert value(metric, batches[0]) == first
    assert value(pickle.loads(pickle.dumps(metric))) == first


WORKER = """
import os
import sys
import torch
import torch.distributed as dist
from microdiffusion_fast.integrations.torchmetrics import VolumeDice, VolumePSNR, VolumeSSIM

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
preds, target = torch.load(sys.argv[1], weights_only=True)
found = []
for metric in (
    VolumePSNR(1.0), VolumePSNR(1.0, per="slice"), VolumeSSIM(1.0),
    VolumeDice(threshold=0.4), VolumeDice(data_range=(0.0, 1.0)),
):
    # pieces of unequal size: 0, 2, 4... and 1, 3 of five
    for piece in list(zip(preds.split(3), target.split(3)))[rank::world]:
        metric.update(*piece)
    found.append(float(metric.compute()))
torch.save(found, f"{sys.argv[2]}/{rank}.pt")
dist.destroy_process_group()
# A thread of gloo may still want the interpreter, to drop the tensors of the last gathering; when
# that is shutting down, torch 2.13 aborts there.
os._exit(0)
"""


@pytest.mark.timeout(300)  # three interpreters that import torch, on a machine that may be busy
def test_processes_agree(tmp_path: Path, repository: Path) -> None:
    """Two processes under torchrun, each with its share, give everybody the value of the whole."""
    preds, target = pair(13, 16, 18)
    torch.save((preds, target), tmp_path / "pair.pt")
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    paths = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    process = subprocess.run(
        [sys.executable, *command, str(tmp_path / "pair.pt"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    expected = [
        value(metric, (preds, target))
        for metric in (
            VolumePSNR(1.0),
            VolumePSNR(1.0, per="slice"),
            VolumeSSIM(1.0),
            VolumeDice(threshold=0.4),
            VolumeDice(data_range=LIMITS),
        )
    ]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == pytest.approx(expected, rel=1e-13, abs=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VolumePSNR(0.0), "^data_range: expected a positive number"),
        (lambda: VolumePSNR((1.0, 0.0)), "^data_range: expected a positive number"),
        (lambda: VolumePSNR("8 bit"), "^data_range: expected a positive number"),  # type: ignore
        (lambda: VolumePSNR(1.0, per="mean"), "^per: expected 'volume' or 'slice'"),  # type: ignore
        (lambda: VolumeSSIM(1.0, window="box"), "^window: expected 'gaussian'"),  # type: ignore
        (lambda: VolumeSSIM(1.0, ndim=1), "^ndim: expected 2 or 3"),  # type: ignore
        (lambda: VolumeSSIM(1.0, border="same"), "^border: expected 'reflect'"),  # type: ignore
        (lambda: VolumeSSIM(1.0, from_low=True), "^from_low: expected False without limits"),
        (lambda: VolumeDice(), "^data_range: expected limits"),
        (lambda: VolumeDice(threshold=(1, 2, 3)), "^threshold: expected 'otsu'"),  # type: ignore
        (lambda: VolumeDice(threshold=0.5, smooth=-1), "^smooth: expected a number"),
    ],
)
def test_bad_options(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("make", METRICS)
def test_bad_images(make: Any) -> None:
    metric = make()
    good, bad = torch.rand(2, 16, 16), torch.full((2, 16, 16), torch.nan)
    with pytest.raises(InputError, match="^preds: expected finite values, got 512 NaN"):
        metric.update(bad, good)
    with pytest.raises(InputError, match="^preds: expected shape"):
        metric.update(good[:1], good)
    with pytest.raises(InputError, match=r"^target: expected a tensor \[..., Y, X\]"):
        metric.update(good, good[0, 0])
    assert all(not state.any() for state in metric.metric_state.values())


def test_images_smaller_than_the_window() -> None:
    small = torch.rand(2, 5, 16)
    with pytest.raises(InputError, match="^preds: expected at least 6 voxels along the last 2"):
        VolumeSSIM(1.0).update(small, small)
    with pytest.raises(InputError, match="^preds: expected at least 7 voxels along the last 3"):
        VolumeSSIM(1.0, window="uniform", border="crop", ndim=3).update(small[0], small[0])


def test_the_documented_example(repository: Path) -> None:
    text = (repository / "docs" / "integrations.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (example,) = [block for block in blocks if "VolumeSSIM" in block]
    names: dict[str, Any] = {"slabs": [pair(2, 16, 18, seed=seed) for seed in range(2)]}
    exec(example, names)
    assert 0 < names["metric"].compute() < 1
