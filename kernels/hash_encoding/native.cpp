// Hash encoding of points and of voxel grids; reference.py defines it.
#include "hash_encoding/native.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <type_traits>

#include "failure.h"

namespace mdf::MDF_ISA {

#include "hash_encoding/level.h"
#include "hash_encoding/native_lattice.h"
#include "hash_encoding/native_grid.h"

namespace {

constexpr int64_t kBlock = 128;  // Points whose rows and weights stay in the L1 cache.

// Points go through level by level, many at a time, so that the level's part of the table stays
// cached and its pages in the TLB; twice as fast as chunks of 2^15 points.
struct Chunks {
    Chunks(int64_t n, size_t outputs)
        : stride(static_cast<int64_t>(outputs)),
          points(std::min(std::max(n, int64_t{1}), std::max(kSlab / stride, kBlock))) {}
    int64_t stride, points;
};

// The 8 corners of the cells of up to kBlock points.
struct Corners {
    alignas(64) uint32_t lower[3][kBlock];
    alignas(64) float fraction[3][kBlock];
    alignas(64) uint32_t row[8][kBlock];
    alignas(64) float weight[8][kBlock];

    Corners(const float *positions, int n, const HashLevel &level) {
        for (int d = 0; d < 3; ++d)
            for (int i = 0; i < n; ++i)
                cell(positions[3 * i + d], level.scale, lower[d][i], fraction[d][i]);
        if (level.hashed)
            rows<true>(n, Rows(level));
        else
            rows<false>(n, Rows(level));
        weigh(n);
    }

    template <bool hashed>
    void rows(int n, const Rows &rows) {
        for (int c = 0; c < 8; ++c) {
            const uint32_t dx = c & 1, dy = c >> 1 & 1, dz = c >> 2;
            for (int i = 0; i < n; ++i)
                row[c][i] = rows.row<hashed>(lower[0][i] + dx, (lower[1][i] + dy) * rows.stride_y,
                                             (lower[2][i] + dz) * rows.stride_z);
        }
    }

    void weigh(int n) {
        for (int c = 0; c < 8; ++c) {
            const bool x = c & 1, y = c & 2, z = c & 4;
            for (int i = 0; i < n; ++i) {
                const float fx = fraction[0][i], fy = fraction[1][i], fz = fraction[2][i];
                weight[c][i] =
                    (x ? fx : 1.0f - fx) * (y ? fy : 1.0f - fy) * (z ? fz : 1.0f - fz);
            }
        }
    }
};

template <int F>
void encode_block(float *out, const float *table, const Corners &corners, int n) {
    for (int i = 0; i < n; ++i) {
        float sum[F] = {};
        for (int c = 0; c < 8; ++c) {
            const float *entry = table + static_cast<size_t>(corners.row[c][i]) * F;
            for (int f = 0; f < F; ++f) sum[f] += entry[f] * corners.weight[c][i];
        }
        for (int f = 0; f < F; ++f) out[i * F + f] = sum[f];
    }
}

template <int F>
void scatter_block(float *table, const float *grad, const Corners &corners, int n) {
    for (int i = 0; i < n; ++i) {
        float g[F];
        for (int f = 0; f < F; ++f) g[f] = grad[i * F + f];
        for (int c = 0; c < 8; ++c) {
            float *entry = table + static_cast<size_t>(corners.row[c][i]) * F;
            for (int f = 0; f < F; ++f) entry[f] += g[f] * corners.weight[c][i];
        }
    }
}

// Adds the gradient of the positions by one level to out [n, 3].
template <int F>
void slope_block(float *out, const float *grad, int64_t stride, const float *table,
                 const Corners &corners, int n, float scale) {
    for (int i = 0; i < n; ++i) {
        float upper[3], sum[3] = {};
        for (int d = 0; d < 3; ++d) upper[d] = corners.fraction[d][i];
        for (int c = 0; c < 8; ++c) {
            const float *entry = table + static_cast<size_t>(corners.row[c][i]) * F;
            float inner = 0.0f;
            for (int f = 0; f < F; ++f) inner += entry[f] * grad[i * stride + f];
            float w[3];
            for (int d = 0; d < 3; ++d) w[d] = c >> d & 1 ? upper[d] : 1.0f - upper[d];
            sum[0] += inner * (w[1] * w[2]) * (c & 1 ? scale : -scale);
            sum[1] += inner * (w[0] * w[2]) * (c & 2 ? scale : -scale);
            sum[2] += inner * (w[0] * w[1]) * (c & 4 ? scale : -scale);
        }
        for (int d = 0; d < 3; ++d) out[3 * i + d] += sum[d];
    }
}

}  // namespace

void hash_points(float *out, const float *positions, int64_t n, const float *table,
                 const std::vector<HashLevel> &levels, int n_features, int threads) {
    with_features(n_features, [&](auto features) {
        constexpr int F = decltype(features)::value;
        const Chunks chunks(n, levels.size() * F);
        const int64_t n_levels = static_cast<int64_t>(levels.size());
        const std::unique_ptr<float[]> by_level(new float[chunks.points * chunks.stride]);
#pragma omp parallel num_threads(threads)
        for (int64_t first = 0; first < n; first += chunks.points) {
            const int64_t points = std::min(n - first, chunks.points);
            const int64_t blocks = (points - 1) / kBlock + 1;
#pragma omp for schedule(dynamic, 16)
            for (int64_t item = 0; item < n_levels * blocks; ++item) {
                const int64_t l = item / blocks, i = item % blocks * kBlock;
                const int count = static_cast<int>(std::min(kBlock, points - i));
                const Corners corners(positions + 3 * (first + i), count, levels[l]);
                encode_block<F>(by_level.get() + (l * points + i) * F, table + levels[l].offset * F,
                                corners, count);
            }
#pragma omp for schedule(static)
            for (int64_t i = 0; i < points; i += kBlock)
                interleave<F>(out + (first + i) * chunks.stride, by_level.get() + i * F,
                              std::min(kBlock, points - i), points, n_levels);
        }
    });
}

void hash_points_backward_table(float *grad_table, const float *grad, const float *positions,
                                int64_t n, const std::vector<HashLevel> &levels, int n_features,
                                int threads) {
    with_features(n_features, [&](auto features) {
        constexpr int F = decltype(features)::value;
        const Chunks chunks(n, levels.size() * F);
        const int64_t n_levels = static_cast<int64_t>(levels.size());
        const std::unique_ptr<float[]> by_level(new float[chunks.points * chunks.stride]);
#pragma omp parallel num_threads(threads)
        for (int64_t first = 0; first < n; first += chunks.points) {
            const int64_t points = std::min(n - first, chunks.points);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < points; i += kBlock)
                separate<F>(by_level.get() + i * F, grad + (first + i) * chunks.stride,
                            std::min(kBlock, points - i), points, n_levels);
            // A level belongs to one thread, which meets the points in order: the same bits for any
            // number of threads.
#pragma omp for schedule(dynamic)
            for (int64_t l = 0; l < n_levels; ++l)
                for (int64_t i = 0; i < points; i += kBlock) {
                    const int count = static_cast<int>(std::min(kBlock, points - i));
                    const Corners corners(positions + 3 * (first + i), count, levels[l]);
                    scatter_block<F>(grad_table + levels[l].offset * F,
                                     by_level.get() + (l * points + i) * F, corners, count);
                }
        }
    });
}

void hash_points_backward_positions(float *out, const float *grad, const float *positions,
                                    int64_t n, const float *table,
                                    const std::vector<HashLevel> &levels, int n_features,
                                    int threads) {
    std::fill(out, out + 3 * n, 0.0f);
    with_features(n_features, [&](auto features) {
        constexpr int F = decltype(features)::value;
        const Chunks chunks(n, levels.size() * F);
#pragma omp parallel num_threads(threads)
        for (int64_t first = 0; first < n; first += chunks.points) {
            const int64_t last = std::min(n, first + chunks.points);
            for (size_t l = 0; l < levels.size(); ++l)
                // static: a point stays with its thread, which adds the levels in order
#pragma omp for schedule(static) nowait
                for (int64_t i = first; i < last; i += kBlock) {
                    const int count = static_cast<int>(std::min(kBlock, last - i));
                    const Corners corners(positions + 3 * i, count, levels[l]);
                    slope_block<F>(out + 3 * i, grad + i * chunks.stride + l * F, chunks.stride,
                                   table + levels[l].offset * F, corners, count,
                                   static_cast<float>(levels[l].scale));
                }
        }
    });
}

}  // namespace mdf::MDF_ISA
