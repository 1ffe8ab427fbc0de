#pragma once

#include <cstdint>

#include "isa.h"

namespace mdf {

enum class Voxel { float32, float64, bfloat16 };

// Window k of `taps` slices covers [start + k * stride, start + k * stride + taps). A volume is
// [depth, columns], its projections are [count, columns], both C-contiguous. `weights` has one
// float64 a tap.
struct AxialWindows {
    const double *weights;
    int64_t taps, stride, start, count, depth, columns;
};

// Rows of the banded Cholesky factor L of A A^T, [count, half + 1]: [k, d] is L[k, k - d].
struct Band {
    const double *factor;
    int64_t half;
};

}  // namespace mdf

// y = A x and x = A^T y; with a band, y = (A A^T)^-1 A x and x = A^T (A A^T)^-1 y. All arithmetic in
// float64, rounded once on store: the same bits for any number of threads, on every machine.
MDF_NATIVE(axial_project, const void *x, void *y, Voxel voxel, const AxialWindows &windows,
           const Band *band, int threads)
MDF_NATIVE(axial_backproject, const void *y, void *x, Voxel voxel, const AxialWindows &windows,
           const Band *band, int threads)
