#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"

namespace mdf {

// One level of a hash grid, as reference.HashGridSpec gives it.
struct HashLevel {
    double scale;         // cells per unit length
    int64_t offset;       // first row of the table
    uint32_t size;        // rows
    uint32_t resolution;  // vertices along an axis, the stride of a dense level
    bool hashed;
};

// The three coordinate axes of a voxel grid, ascending, and the planes that are made of its slices:
// plane k is the sum over i of weights[i] times slice start + k * stride + i.
struct HashGrid {
    const float *axis[3];  // z, y, x
    int64_t extent[3];
    int64_t planes;
    std::vector<double> weights;
    int64_t stride, start;
};

}  // namespace mdf

// All take a float32 table [rows, n_features] with 1, 2, 4 or 8 features and give the same bits for
// any number of threads.

// out [n, L*F] of positions [n, 3].
MDF_NATIVE(hash_points, float *out, const float *positions, int64_t n, const float *table,
           const std::vector<HashLevel> &levels, int n_features, int threads)
// Adds to grad_table (zeroed by the caller); each entry sums in the order of the positions.
MDF_NATIVE(hash_points_backward_table, float *grad_table, const float *grad, const float *positions,
           int64_t n, const std::vector<HashLevel> &levels, int n_features, int threads)
// out [n, 3].
MDF_NATIVE(hash_points_backward_positions, float *out, const float *grad, const float *positions,
           int64_t n, const float *table, const std::vector<HashLevel> &levels, int n_features,
           int threads)
// out [K, Y, X, L*F].
MDF_NATIVE(hash_grid, float *out, const HashGrid &grid, const float *table,
           const std::vector<HashLevel> &levels, int n_features, int threads)
// Adds to grad_table (zeroed by the caller).
MDF_NATIVE(hash_grid_backward, float *grad_table, const float *grad, const HashGrid &grid,
           const std::vector<HashLevel> &levels, int n_features, int threads)
