"""The paper's metrics as torchmetrics: streaming, mergeable, of bounded memory.

    metric = VolumeSSIM(data_range=1.0)
    for preds, target in batches:
        metric.update(preds, target)
    metric.compute()

`update` takes volumes [Z, Y, X], images [Y, X], or anything whose last axes are these, such as the
batches [N, C, Y, X] of torchmetrics; any real dtypes. Everything before the last two axes (three
for windows in 3D) is a count of slices. No image is kept: the state is a few sums, for Dice with
Otsu's threshold 0.5 MB of counts, and all of it adds up, over updates, `merge_state` and processes.
The arithmetic is float64. Not differentiable.
"""

from __future__ import annotations

from microdiffusion_fast.integrations import require

require("torchmetrics")

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from microdiffusion_fast import metrics_formulas as formulas
from microdiffusion_fast.errors import InputError
from microdiffusion_fast.kernels.volume_metrics import BINS, bin_edges
from microdiffusion_fast.kernels.windowed_ssim import window_size
from microdiffusion_fast.metrics_input import Pair, Range

__all__ = ["VolumeDice", "VolumePSNR", "VolumeSSIM"]


class _VolumeMetric(Metric):
    """State that adds up, and a data range: L, or limits (low, high) to clip to."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, data_range: float | Range | None, **options: Any) -> None:
        super().__init__(**options)
        self.clip: Range | None = None
        self.data_range = 0.0
        expected = "a positive number or limits (low, high), low below high"
        try:
            if isinstance(data_range, tuple):
                low, high = map(float, data_range)
                self.clip, self.data_range = (low, high), high - low
            elif data_range is not None:
                self.data_range = float(data_range)
        except (TypeError, ValueError):
            raise InputError("data_range", expected, repr(data_range)) from None
        good = math.isfinite(self.data_range) and self.data_range > 0
        if not good and data_range is not None:
            raise InputError("data_range", expected, repr(data_range))

    def _add_sum(self, name: str, *shape: int, dtype: torch.dtype) -> None:
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def _slices(self, preds: Tensor, target: Tensor) -> Pair:
        """Both as [Z, Y, X], target first.

        Raises:
            InputError: no images, shapes or devices that differ, or an empty batch.
        """
        for name, images in (("preds", preds), ("target", target)):
            if not isinstance(images, Tensor) or images.ndim < 2:
                got = f"{list(images.shape)}" if isinstance(images, Tensor) else type(images)
                raise InputError(name, "a tensor [..., Y, X]", got)
        if preds.shape != target.shape:
            raise InputError("preds", f"shape {list(target.shape)}, like target", preds.shape)
        planes = (-1, *preds.shape[-2:])
        pair = Pair.of(target.reshape(planes), preds.reshape(planes), names=("target", "preds"))
        return pair if self.clip is None else pair.mapped(1.0, 0.0, self.clip)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Adds the state of another metric of this class (torchmetrics keeps the old result)."""
        super().merge_state(incoming_state)
        self._computed = None
        self._update_count += getattr(incoming_state, "_update_count", 1)


class VolumePSNR(_VolumeMetric):
    """Peak signal-to-noise ratio in dB.

    Equal to torchmetrics' PeakSignalNoiseRatio per "volume", and to the mean over its `dim=(-2,
    -1)` per "slice".

    Args:
        data_range: L, or limits (low, high) to clip both to, L their difference.
        per: "volume" pools the squared error of all voxels of all updates, "slice" is the mean of
            the PSNR of every slice, as the paper reports it (inf if any slice is identical).
        options: those of `torchmetrics.Metric`.

    Raises:
        InputError: an option, or values of an update, that do not fit or are not finite.

    Source: MicroDiffusion (arXiv 2403.10815), supplement, PSNR.
    """

    total: Tensor
    count: Tensor

    def __init__(
        self,
        data_range: float | Range,
        *,
        per: Literal["volume", "slice"] = "volume",
        **options: Any,
    ) -> None:
        super().__init__(data_range, **options)
        if per not in ("volume", "slice"):
            raise InputError("per", "'volume' or 'slice'", repr(per))
        self.per = per
        self._add_sum("total", dtype=torch.float64)
        self._add_sum("count", dtype=torch.int64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds images [..., Y, X]."""
        sums = self._slices(preds, target).sums()
        if self.per == "volume":
            added, count = sums.sse, int(sums.n.sum())
        else:
            added = formulas.psnr(sums, self.data_range, whole=False)
            count = len(added)
        self.total += added.sum().to(self.total.device)
        self.count += count

    def compute(self) -> Tensor:
        """PSNR in dB, a float64 scalar."""
        mean = self.total / self.count
        return mean if self.per == "slice" else 10.0 * torch.log10(self.data_range**2 / mean)


class VolumeSSIM(_VolumeMetric):
    """Structural similarity in a moving window, the mean over slices (or over volumes, in 3D).

    With the defaults equal to torchmetrics' StructuralSimilarityIndexMeasure and its defaults. Its
    uniform window differs from "uniform" here, and from scikit-image's, in that it divides the
    covariances by n where these divide by n - 1: `kernel_size=7, gaussian_kernel=False` is this
    metric if its `k2` is 0.03 * sqrt(48 / 49), in 3D 0.03 * sqrt(342 / 343).

    Args:
        data_range: L, or limits (low, high) to clip both to, L their difference.
        window: "gaussian" (11 wide, sigma 1.5) or "uniform" (7 wide, sample covariance).
        ndim: 2 for windows in every slice, 3 for cubic windows in the last three axes.
        border: "reflect" mirrors the images past their edges, as torchmetrics does; "crop" counts
            the windows that lie inside alone, as scikit-image and the paper do.
        from_low: measure intensities from the lower limit, not from 0, as the paper's grey levels
            are; torchmetrics has no such option. Matters where the limits do not begin at 0.
        options: those of `torchmetrics.Metric`.

    Raises:
        InputError: an option, or images of an update, that do not fit or are not finite.

    Source: Wang et al. 2004, IEEE TIP 13(4), equation 13; MicroDiffusion, supplement, SSIM.
    """

    total: Tensor
    count: Tensor

    def __init__(
        self,
        data_range: float | Range,
        *,
        window: Literal["gaussian", "uniform"] = "gaussian",
        ndim: Literal[2, 3] = 2,
        border: Literal["reflect", "crop"] = "reflect",
        from_low: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(data_range, **options)
        if window not in ("gaussian", "uniform"):
            raise InputError("window", "'gaussian' or 'uniform'", repr(window))
        if ndim not in (2, 3):
            raise InputError("ndim", "2 or 3", repr(ndim))
        if border not in ("reflect", "crop"):
            raise InputError("border", "'reflect' or 'crop'", repr(border))
        if from_low and self.clip is None:
            raise InputError("from_low", "False without limits (low, high)", True)
        self.window, self.ndim, self.border = window, ndim, border
        self.offset = -self.clip[0] if from_low and self.clip else 0.0
        self._add_sum("total", dtype=torch.float64)
        self._add_sum("count", dtype=torch.int64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds images [..., Y, X], or volumes [..., Z, Y, X] for windows in 3D."""
        pair = self._slices(preds, target)
        pair.check_finite()
        size = window_size(self.window)
        least = size if self.border == "crop" else size // 2 + 1
        if preds.ndim < self.ndim or min(preds.shape[-self.ndim :]) < least:
            expected = f"at least {least} voxels along the last {self.ndim} axes"
            raise InputError("preds", expected, f"shape {list(preds.shape)}")
        # one volume [Z, Y, X] at a time in 3D, all slices together in 2D
        depth = preds.shape[-3] if self.ndim == 3 else len(pair.x)
        for x, y in zip(pair.x.split(depth), pair.y.split(depth), strict=True):
            if self.border == "reflect":
                x, y = self._mirrored(x), self._mirrored(y)
            block = Pair(x, y)
            if self.clip is not None:
                low, high = (limit + self.offset for limit in self.clip)
                block = block.mapped(1.0, self.offset, (low, high))
            values = block.windowed_ssim(
                data_range=self.data_range, window=self.window, ndim=self.ndim
            )
            self.total += values.sum().to(self.total.device)
            self.count += values.numel()

    def _mirrored(self, images: Tensor) -> Tensor:
        images = images if images.is_floating_point() else images.to(torch.float32)
        margin = window_size(self.window) // 2
        pad = torch.nn.functional.pad(images[None], [margin] * (2 * self.ndim), mode="reflect")
        return pad[0]

    def compute(self) -> Tensor:
        """Mean SSIM, a float64 scalar."""
        return self.total / self.count


class VolumeDice(_VolumeMetric):
    """Overlap of the thresholded volumes: `(2 |X and Y| + smooth) / (|X| + |Y| + smooth)`.

    Otsu's thresholds are those of everything that was seen, so they are known last. What is counted
    until then is how many voxels lie above i of the 256 candidate thresholds in the target and
    above j in preds, [257, 257]: exact for all of them. The candidates are the centres of 256 bins
    between the limits of `data_range`, where `metrics.dice` takes the extremes of each volume; the
    two agree where the volumes reach both limits.

    Args:
        threshold: "otsu", a number, or one for the target and one for preds. Foreground is above.
        data_range: limits (low, high) to clip both to; needed for "otsu".
        smooth: makes two empty masks agree.
        options: those of `torchmetrics.Metric`.

    Raises:
        InputError: an option, or values of an update, that do not fit or are not finite.

    Source: MicroDiffusion (arXiv 2403.10815), supplement, DICE; Otsu 1979, IEEE Trans. SMC 9(1).
    """

    overlaps: Tensor
    histograms: Tensor
    joint: Tensor

    def __init__(
        self,
        *,
        threshold: Literal["otsu"] | float | tuple[float, float] = "otsu",
        data_range: Range | None = None,
        smooth: float = 1e-6,
        **options: Any,
    ) -> None:
        super().__init__(data_range, **options)
        if not smooth >= 0:
            raise InputError("smooth", "a number of at least 0", smooth)
        if self.clip is None and (threshold == "otsu" or data_range is not None):
            raise InputError("data_range", "limits (low, high) for Otsu's threshold", data_range)
        self.smooth = smooth
        self.thresholds: tuple[float, float] | None = None
        if threshold == "otsu":
            self._add_sum("histograms", 2, BINS, dtype=torch.int64)
            self._add_sum("joint", BINS + 1, BINS + 1, dtype=torch.int64)
            return
        try:
            one, two = threshold if isinstance(threshold, tuple) else (threshold, threshold)
            self.thresholds = float(one), float(two)
        except (TypeError, ValueError):
            raise InputError("threshold", "'otsu', a number, or two", repr(threshold)) from None
        self._add_sum("overlaps", 3, dtype=torch.int64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds images [..., Y, X]."""
        pair = self._slices(preds, target)
        if self.thresholds is not None:
            pair.check_finite()
            self.overlaps += pair.overlaps(self.thresholds).sum(0).to(self.overlaps.device)
            return
        assert self.clip is not None
        sums = pair.sums(histograms=True, ranges=(self.clip, self.clip))
        self.histograms += torch.stack([sums.histogram_x, sums.histogram_y]).to(self.joint.device)
        centres = self._centres().to(pair.x.device)
        for x, y in zip(pair.x, pair.y, strict=True):  # a slice at a time bounds the memory
            i, j = (torch.searchsorted(centres, v.double().clamp(*self.clip)) for v in (x, y))
            cells = (i * (BINS + 1) + j).ravel()
            counts = torch.bincount(cells, minlength=self.joint.numel())
            self.joint += counts.view_as(self.joint).to(self.joint.device)

    def compute(self) -> Tensor:
        """DICE of all that was seen, a float64 scalar."""
        if self.thresholds is not None:
            return formulas.dice(self.overlaps[None], self.smooth, whole=True)[0]
        i, j = (1 + self._otsu(histogram) for histogram in self.histograms)
        inside = (self.joint[i:], self.joint[:, j:], self.joint[i:, j:])
        counts = torch.stack([part.sum() for part in inside])
        return formulas.dice(counts[None], self.smooth, whole=True)[0]

    def _centres(self) -> Tensor:
        assert self.clip is not None
        edges = bin_edges(*self.clip)
        return (edges[:-1] + edges[1:]) / 2.0

    def _otsu(self, histogram: Tensor) -> int:
        """The bin whose centre is the threshold; past the last for one filled bin or none."""
        counts = histogram.cpu().double()
        if int((counts > 0).sum()) < 2:
            return BINS
        weighted = counts * self._centres()
        below, above = counts.cumsum(0), counts.flip(0).cumsum(0).flip(0)
        mean_below = weighted.cumsum(0) / below
        mean_above = weighted.flip(0).cumsum(0).flip(0) / above
        between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
        # 0 / 0 beside empty bins at either end, where nothing is parted
        return int(between.nan_to_num(nan=-1.0).argmax())
