#pragma once

#include <array>
#include <cstdint>

#include "isa.h"

namespace mdf {

enum class SsimType { float32, float64, bfloat16, uint8, uint16 };

// A volume [Z, Y, X] whose rows are contiguous; strides in elements.
struct SsimVolume {
    const void *data;
    SsimType type;
    int64_t plane_stride, row_stride;
};

struct SsimOptions {
    bool gaussian, cubic;
    std::array<double, 11> taps;          // Of the Gaussian.
    double c1, c2, norm;                  // norm: the factor of the sample covariance.
    double scale, offset, low, high;      // The map, then the limits; infinite for no clip.
};

}  // namespace mdf

// Sums of the SSIM map, one a plane of windows: `sums` has as many values as windows fit along z
// (cubic) or as there are slices. The same bits for any number of threads, on every machine.
// See windowed_ssim/reference.py.
MDF_NATIVE(windowed_ssim, double *sums, const SsimVolume &x, const SsimVolume &y,
           const std::array<int64_t, 3> &shape, const SsimOptions &options, int threads)
