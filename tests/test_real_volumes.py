"""What the shipped weights must do on recorded volumes, which nothing was trained on.

Without adaptation, so that it takes seconds: the bars of the full pipeline are higher, and
`microdiffusion-fast demo VOLUME` measures them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from microdiffusion_fast.demo import run_demo


@pytest.mark.parametrize("blur", [0.0, 1.7])
@pytest.mark.timeout(300)
def test_beats_interpolation_with_consistency(
    real_volume: Path, blur: float, tmp_path: Path
) -> None:
    demo = run_demo(
        tmp_path / "out", volume=real_volume, blur=blur, adapt=False, samples=1, inr_steps=20
    )
    methods = demo.metrics["methods"]
    baseline, ours = methods["interpolation+consistency"], methods["reconstruction"]
    assert ours["psnr"] > baseline["psnr"] + (1.0 if blur == 0 else 0.0)
    assert ours["dice"] > baseline["dice"]
    if blur == 0:
        assert ours["ssim"] > baseline["ssim"]
    assert demo.metrics["consistency_max_abs"] < 1e-3
