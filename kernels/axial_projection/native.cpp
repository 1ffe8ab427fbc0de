// A, A^T and the banded solve between them, a block of columns at a time: one read and one write.
#include "axial_projection/native.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "failure.h"

namespace mdf::MDF_ISA {
namespace {

constexpr int64_t kBlock = 2048;     // Columns at a time: rows of them stay in the caches.
constexpr int64_t kRows = 8;         // Output rows of a work item: neighbouring windows share slices.
constexpr int64_t kSolve = 1 << 16;  // Unknowns at a time: half a MiB.

struct Bfloat16 {
    uint16_t bits;
};

inline double widened(float v) { return v; }
inline double widened(double v) { return v; }
inline double widened(Bfloat16 v) {
    const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void store(double v, float &out) { out = static_cast<float>(v); }
inline void store(double v, double &out) { out = v; }
inline void store(double v, Bfloat16 &out) {
    const float value = static_cast<float>(v);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    out.bits = static_cast<uint16_t>(value == value ? rounded : 0x7FC0u);
}

template <class T> void add_scaled(double *sum, const T *values, double weight, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sum[i] += weight * widened(values[i]);
}

template <class T> void store_row(const double *values, T *out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) store(values[i], out[i]);
}

// Columns [at, at + n) of window k, [n].
template <class T>
void project_row(const T *x, const AxialWindows &w, int64_t k, int64_t at, int64_t n, double *sum) {
    std::fill_n(sum, n, 0.0);
    const T *first = x + (w.start + k * w.stride) * w.columns + at;
    for (int64_t tap = 0; tap < w.taps; ++tap)
        if (w.weights[tap] != 0.0) add_scaled(sum, first + tap * w.columns, w.weights[tap], n);
}

// Columns of slice z, [n], of rows `y` of projections that are `pitch` apart.
template <class T>
void backproject_row(const T *y, int64_t pitch, const AxialWindows &w, int64_t z, int64_t n,
                     double *sum) {
    std::fill_n(sum, n, 0.0);
    const int64_t inside = z - w.start;
    if (inside < 0) return;
    for (int64_t k = std::min(inside / w.stride, w.count - 1); k >= 0; --k) {
        const int64_t tap = inside - k * w.stride;
        if (tap >= w.taps) return;
        if (w.weights[tap] != 0.0) add_scaled(sum, y + k * pitch, w.weights[tap], n);
    }
}

// L L^T z = z in place, [count, n].
void solve(double *z, const Band &band, int64_t count, int64_t n) {
    const auto factor = [&](int64_t k, int64_t d) { return band.factor[k * (band.half + 1) + d]; };
    const auto divide = [n](double *row, double diagonal) {
        for (int64_t i = 0; i < n; ++i) row[i] /= diagonal;
    };
    for (int64_t k = 0; k < count; ++k) {
        for (int64_t d = std::min(band.half, k); d > 0; --d)
            add_scaled(z + k * n, z + (k - d) * n, -factor(k, d), n);
        divide(z + k * n, factor(k, 0));
    }
    for (int64_t k = count - 1; k >= 0; --k) {
        for (int64_t d = std::min(band.half, count - 1 - k); d > 0; --d)
            add_scaled(z + k * n, z + (k + d) * n, -factor(k + d, d), n);
        divide(z + k * n, factor(k, 0));
    }
}

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls row(index, at, n, sum) for every row of the output and block of columns; `sum` is scratch.
template <class Row> void each_row(int64_t rows, int64_t columns, int threads, const Row &row) {
    const int64_t blocks = ceil_divide(columns, kBlock);
    const int64_t items = ceil_divide(rows, kRows) * blocks;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(std::max(threads, 1)) if (items > 1)
#else
    (void)threads;
#endif
    for (int64_t item = 0; item < items; ++item) {
        alignas(64) double sum[kBlock];
        const int64_t first = item / blocks * kRows, at = item % blocks * kBlock;
        for (int64_t index = first; index < std::min(first + kRows, rows); ++index)
            row(index, at, std::min(kBlock, columns - at), sum);
    }
}

// Calls block(at, n, z) for blocks of columns; `z` is scratch [count, n].
template <class Block>
void each_block(int64_t count, int64_t columns, int threads, const Block &block) {
    const int64_t width = std::min({kBlock, columns, std::max<int64_t>(kSolve / count, 16)});
    const int64_t items = ceil_divide(columns, width);
    Failure failure;
#ifdef _OPENMP
#pragma omp parallel num_threads(std::max(threads, 1)) if (items > 1)
#else
    (void)threads;
#endif
    {
        std::vector<double> z;
        failure.run([&] { z.resize(count * width); });
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (int64_t item = 0; item < items; ++item)
            failure.run([&] {
                block(item * width, std::min(width, columns - item * width), z.data());
            });
    }
    failure.raise();
}

template <class T>
void project(const T *x, T *y, const AxialWindows &w, const Band *band, int threads) {
    if (!band) {
        each_row(w.count, w.columns, threads, [&](int64_t k, int64_t at, int64_t n, double *sum) {
            project_row(x, w, k, at, n, sum);
            store_row(sum, y + k * w.columns + at, n);
        });
        return;
    }
    each_block(w.count, w.columns, threads, [&](int64_t at, int64_t n, double *z) {
        for (int64_t k = 0; k < w.count; ++k) project_row(x, w, k, at, n, z + k * n);
        solve(z, *band, w.count, n);
        for (int64_t k = 0; k < w.count; ++k) store_row(z + k * n, y + k * w.columns + at, n);
    });
}

template <class T>
void backproject(const T *y, T *x, const AxialWindows &w, const Band *band, int threads) {
    if (!band) {
        each_row(w.depth, w.columns, threads, [&](int64_t z, int64_t at, int64_t n, double *sum) {
            backproject_row(y + at, w.columns, w, z, n, sum);
            store_row(sum, x + z * w.columns + at, n);
        });
        return;
    }
    each_block(w.count, w.columns, threads, [&](int64_t at, int64_t n, double *solved) {
        alignas(64) double sum[kBlock];
        std::fill_n(solved, w.count * n, 0.0);
        for (int64_t k = 0; k < w.count; ++k)
            add_scaled(solved + k * n, y + k * w.columns + at, 1.0, n);
        solve(solved, *band, w.count, n);
        for (int64_t z = 0; z < w.depth; ++z) {
            backproject_row(solved, n, w, z, n, sum);
            store_row(sum, x + z * w.columns + at, n);
        }
    });
}

}  // namespace

void axial_project(const void *x, void *y, Voxel voxel, const AxialWindows &windows, const Band *band,
                   int threads) {
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        project(static_cast<const T *>(x), static_cast<T *>(y), windows, band, threads);
    };
    switch (voxel) {
        case Voxel::float32: return run(float{});
        case Voxel::float64: return run(double{});
        case Voxel::bfloat16: return run(Bfloat16{});
    }
}

void axial_backproject(const void *y, void *x, Voxel voxel, const AxialWindows &windows,
                       const Band *band, int threads) {
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        backproject(static_cast<const T *>(y), static_cast<T *>(x), windows, band, threads);
    };
    switch (voxel) {
        case Voxel::float32: return run(float{});
        case Voxel::float64: return run(double{});
        case Voxel::bfloat16: return run(Bfloat16{});
    }
}

}  // namespace mdf::MDF_ISA
