#pragma once

#include <cstdint>

#include "isa.h"

namespace mdf {

enum class Pixel { uint8, int16, uint16, bfloat16, float32, float64 };

// A C-contiguous volume of `slices` slices of `voxels` voxels each.
struct Volume {
    const void *data;
    Pixel pixel;
};

// v * scale + offset in float64, then clipped to [low, high] (infinite limits clip nothing).
struct Mapping {
    double scale, offset, low, high;
    bool plain;  // Changes nothing: can be left out.
};

// 256 bins, bin b from b * step + low up to the next; `factor` is bins per unit.
struct Bins {
    double low, step, factor;
};

}  // namespace mdf

// Fills `table` [slices, 11] with the rows of volume_metrics/reference.py and, unless `bins` is null,
// adds the histograms of x over bins[0] and of y over bins[1] to `counts` [2, 256]. A null `table`
// skips the sums. The same bits for any number of threads, on every machine; a row depends on its
// own slice only.
MDF_NATIVE(volume_metrics, const Volume &x, const Volume &y, int64_t slices, int64_t voxels,
           const Mapping &mapping, const Bins *bins, double *table, int64_t *counts, int threads)

// Adds the voxels above `threshold_x` in x, above `threshold_y` in y, and both, to `counts`
// [slices, 3].
MDF_NATIVE(overlap_counts, const Volume &x, const Volume &y, int64_t slices, int64_t voxels,
           const Mapping &mapping, double threshold_x, double threshold_y, int64_t *counts,
           int threads)

// Adds the voxels in every pair of half bins, of x over bins[0] and of y over bins[1], to `counts`
// [512, 512]: 2 b in bin b, 2 b + 1 above its centre, which is centres[0][b] or centres[1][b].
MDF_NATIVE(joint_counts, const Volume &x, const Volume &y, int64_t slices, int64_t voxels,
           const Mapping &mapping, const Bins *bins, const double *centres, int64_t *counts,
           int threads)
