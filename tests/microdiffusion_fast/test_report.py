"""The figure: drawn whole, honest in what it shows, small enough for a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from microdiffusion_fast import metrics, report
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.forward_model import AxialProjection

METHODS = ("nearest", "interpolation", "interpolation+consistency", "inr", "reconstruction")


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    z, y, x = np.mgrid[:27, :24, :40]
    tube = np.exp(-((y - 12) ** 2 + (x - 8 - z) ** 2) / 8.0)
    noise = np.random.default_rng(0).normal(0, 0.01, tube.shape)
    return (1000 * (tube + noise)).astype(np.float32)


@pytest.fixture(scope="module")
def volumes(truth: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    levels = (100, 80, 60, 50, 20)
    return {
        name: (truth + rng.normal(0, level, truth.shape)).astype(np.float32)
        for name, level in zip(METHODS, levels, strict=True)
    }


@pytest.fixture(scope="module")
def scores(volumes: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, dict[str, float]]:
    return {name: metrics.evaluate(v, truth).as_dict() for name, v in volumes.items()}


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("voxel_size", [None, (2.0, 0.5, 0.5)])
def test_the_figure(
    spread: bool,
    voxel_size: tuple[float, float, float] | None,
    volumes: dict[str, np.ndarray],
    scores: dict[str, dict[str, float]],
    truth: np.ndarray,
    tmp_path: Path,
) -> None:
    from matplotlib.image import imread

    path = report.draw_report(
        tmp_path / "figure.png",
        volumes=volumes,
        truth=truth,
        scores=scores,
        operator=AxialProjection(27, 6),
        uncertainty=np.abs(volumes["inr"] - truth) if spread else None,
        voxel_size=voxel_size,
        title="A tube",
    )
    assert path.stat().st_size < 3_000_000
    image = imread(path)[..., :3]
    assert image.shape[0] > 900 and image.shape[1] > 1500
    # White paper, black panels, and the colours of the error maps.
    grey = image.mean(-1)
    assert 0.2 < (grey > 0.99).mean() < 0.8 and (grey < 0.1).mean() > 0.05
    assert (np.ptp(image, axis=-1) > 0.3).mean() > 0.005
    assert {item.name for item in tmp_path.iterdir()} == {"figure.png"}


def test_the_best_of_each_metric_is_bold(scores: dict[str, dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    mixed = {name: dict(score) for name, score in scores.items()}
    mixed["inr"]["ssim"] = 0.9999  # an honest table shows that another method won here
    axes = Figure().add_axes((0, 0, 1, 1))
    report._draw_table(axes, mixed)
    bold = {text.get_text() for text in axes.texts if text.get_fontweight() == "bold"}
    best = mixed["reconstruction"]
    assert bold == {f"{best['psnr']:.2f}", "1.000", f"{best['dice']:.3f}"}


@pytest.mark.parametrize(("step_length", "stride"), [(6, 6), (4, 2), (3, 5)])
def test_the_slice_shown_is_a_hard_one(step_length: int, stride: int, truth: np.ndarray) -> None:
    operator = AxialProjection(27, step_length, stride=stride)
    z = report.hardest_slice(truth, operator)
    centres = operator.centres.numpy()
    assert operator.covered[z] and centres[0] <= z <= centres[-1]
    between = [n for n in range(27) if operator.covered[n] and centres[0] <= n <= centres[-1]]
    distance = np.abs(centres - z).min()
    assert distance == max(np.abs(centres - n).min() for n in between)


def test_another_shape_is_refused(
    volumes: dict[str, np.ndarray],
    scores: dict[str, dict[str, float]],
    truth: np.ndarray,
    tmp_path: Path,
) -> None:
    wrong = {**volumes, "inr": truth[:20]}
    with pytest.raises(InputError, match="inr"):
        report.draw_report(
            tmp_path / "figure.png",
            volumes=wrong,
            truth=truth,
            scores=scores,
            operator=AxialProjection(27, 6),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(12, 16, 200), (60, 16, 16), (12, 200, 16)])
def test_unusual_proportions(shape: tuple[int, int, int], tmp_path: Path) -> None:
    truth = np.random.default_rng(0).random(shape, dtype=np.float32)
    score = {"psnr": 30.0, "ssim": 0.9, "dice": 0.8}
    path = report.draw_report(
        tmp_path / "figure.png",
        volumes={"reconstruction": truth * np.float32(0.9)},
        truth=truth,
        scores={"reconstruction": score},
        operator=AxialProjection(shape[0], 4),
    )
    assert path.stat().st_size > 10_000
