"""The kernels: `torch.library` ops over plain tensors, for this package and for other pipelines.

| stem | what it fuses | bytes per voxel |
|---|---|---|
| axial_projection | window means in z, their A^T and A^+ | 4 + 4/stride |
| blended_step | all between two network calls, blend included | 16 |
| counter_noise | Philox4x32-10, Box-Muller on all four words | 4 |
| hash_encoding | index, gather, interpolate all levels | 12 + 4 L F |
| hash_encoding (grid) | one look-up per vertex, then axis by axis | 4 L F |
| volume_metrics | sums, squared error, extrema, two histograms | 8 |
| windowed_ssim | window means, the SSIM map, its mean | 8 |

Each has its op (`<stem>/__init__.py`), reference, Triton kernel, native kernel, tests
(tests/kernels/test_<stem>*.py) and suite (bench/bench_<stem>.py).

Bytes per voxel: what one fused float32 pass has to move at least (blended_step: three volumes in,
one out, 4 more for guidance, 8 for a multistep sampler, 4/stride for consistency; hash_encoding:
positions and features of L levels of F features, its table comes on top). Triton serves CUDA
devices, native a CPU; the references, which serve every device and dtype that has no kernel of its
own, move more. `_backend` knows which of the two are there, and `microdiffusion-fast info` says so.

The name of an op here is the function, `microdiffusion_fast.kernels.<stem>`; what else belongs to a
kernel is imported from its folder: `from microdiffusion_fast.kernels.<stem> import ...`.
"""

from .axial_projection import axial_backprojection, axial_projection, axial_pseudo_inverse
from .blended_step import blended_step
from .counter_noise import counter_noise
from .hash_encoding import (
    HashGridSpec,
    hash_encoding,
    hash_encoding_grid,
    hash_encoding_projection,
)
from .volume_metrics import VolumeSums, evaluate_sums, joint_counts, overlap_counts
from .windowed_ssim import windowed_ssim

__all__ = [
    "HashGridSpec",
    "VolumeSums",
    "axial_backprojection",
    "axial_projection",
    "axial_pseudo_inverse",
    "blended_step",
    "counter_noise",
    "evaluate_sums",
    "hash_encoding",
    "hash_encoding_grid",
    "hash_encoding_projection",
    "joint_counts",
    "overlap_counts",
    "windowed_ssim",
]
