// One read of two volumes for their moments, extremes and histograms; a second one for their overlap.
#include "volume_metrics/native.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "volume_metrics/above.h"
#include "volume_metrics/histogram.h"
#include "volume_metrics/joint.h"
#include "volume_metrics/moments.h"

namespace mdf::MDF_ISA {
namespace {

constexpr int kTile = 1024;          // Voxels at a time: all scratch stays in the L1 cache.
constexpr int64_t kChunk = 1 << 16;  // Voxels of a work item, which is a part of a slice.
constexpr int kColumns = 11;

static_assert(kTile % kLanes == 0 && kChunk % kTile == 0, "lanes go round within a chunk");

// The work items: every slice cut into chunks of one size, so that its row depends on it alone.
struct Chunks {
    int64_t slices, voxels, per_slice = (voxels + kChunk - 1) / kChunk;

    int64_t size() const { return slices * per_slice; }
    int64_t first(int64_t item) const {
        return item / per_slice * voxels + item % per_slice * kChunk;
    }
    int64_t count(int64_t item) const {
        return std::min(kChunk, voxels - item % per_slice * kChunk);
    }
};

struct Bfloat16 {
    uint16_t bits;

    operator float() const {
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
};

template <class T, class V> const V *converted(const void *data, int64_t first, int n, V *out) {
    const T *values = static_cast<const T *>(data) + first;
    for (int i = 0; i < n; ++i) out[i] = static_cast<V>(values[i]);
    return out;
}

// n voxels as V, exactly: where they lie, if that is their type, and in `scratch` otherwise.
template <class V> const V *tile(const Volume &volume, int64_t first, int n, V *scratch) {
    switch (volume.pixel) {
        case Pixel::uint8: return converted<uint8_t>(volume.data, first, n, scratch);
        case Pixel::int16: return converted<int16_t>(volume.data, first, n, scratch);
        case Pixel::uint16: return converted<uint16_t>(volume.data, first, n, scratch);
        case Pixel::bfloat16: return converted<Bfloat16>(volume.data, first, n, scratch);
        case Pixel::float32:
            if (sizeof(V) == sizeof(float)) return static_cast<const V *>(volume.data) + first;
            return converted<float>(volume.data, first, n, scratch);
        case Pixel::float64: break;  // V is double then.
    }
    return static_cast<const V *>(volume.data) + first;
}

template <class V>
void chunk(const Volume &x, const Volume &y, int64_t first, int64_t count, const Mapping &m,
           double *row, Histograms *histograms) {
    alignas(64) V scratch_x[kTile], scratch_y[kTile];
    Moments moments;
    for (int64_t at = 0; at < count; at += kTile) {
        const int n = static_cast<int>(std::min<int64_t>(kTile, count - at));
        const V *a = tile(x, first + at, n, scratch_x), *b = tile(y, first + at, n, scratch_y);
        if (row && m.plain) moments.add<false>(a, b, n, m);
        if (row && !m.plain) moments.add<true>(a, b, n, m);
        if (histograms) histograms->add(a, b, n);
    }
    if (row) moments.store(row);
}

// A slice's row of the table from the rows of its chunks.
void finish(const double *rows, int64_t chunks, int64_t voxels, const Mapping &m, double *out) {
    double total[Moments::kAll];
    std::copy_n(rows, Moments::kAll, total);
    for (const double *row = rows + Moments::kAll; row < rows + chunks * Moments::kAll;
         row += Moments::kAll) {
        for (int q = 0; q < Moments::kSums; ++q) total[q] += row[q];
        for (int q : {Moments::kLowX, Moments::kLowY}) total[q] = std::min(total[q], row[q]);
        for (int q : {Moments::kHighX, Moments::kHighY}) total[q] = std::max(total[q], row[q]);
    }
    // Clipping would hide an infinite voxel.
    bool finite = true;
    for (int q = Moments::kSums; q < Moments::kAll; ++q) finite &= std::isfinite(total[q]);
    out[0] = static_cast<double>(voxels);
    for (int q = 0; q < Moments::kSums; ++q)
        out[1 + q] = finite ? total[q] : std::numeric_limits<double>::quiet_NaN();
    for (int q : {Moments::kLowX, Moments::kLowY}) {
        if (m.scale < 0.0) std::swap(total[q], total[q + 1]);
        // No negative zero: which zero was met first depends on the width of the vectors.
        out[1 + q] = mapped(total[q], m) + 0.0;
        out[2 + q] = mapped(total[q + 1], m) + 0.0;
    }
}

template <class V>
void joint(const Volume &x, const Volume &y, int64_t first, int64_t count, JointCounts *counts) {
    alignas(64) V scratch_x[kTile], scratch_y[kTile];
    for (int64_t at = 0; at < count; at += kTile) {
        const int n = static_cast<int>(std::min<int64_t>(kTile, count - at));
        counts->add(tile(x, first + at, n, scratch_x), tile(y, first + at, n, scratch_y), n);
    }
}

// Voxels above the threshold in x, in y and in both.
template <class V>
void above(const Volume &x, const Volume &y, int64_t first, int64_t count, double threshold_x,
           double threshold_y, const Mapping &m, int64_t *row) {
    using Int = typename Above<V>::Int;
    const Above<V> above_x(threshold_x, m), above_y(threshold_y, m);
    alignas(64) V scratch_x[kTile], scratch_y[kTile];
    for (int64_t at = 0; at < count; at += kTile) {
        const int n = static_cast<int>(std::min<int64_t>(kTile, count - at));
        const V *a = tile(x, first + at, n, scratch_x), *b = tile(y, first + at, n, scratch_y);
        Int in_x = 0, in_y = 0, in_both = 0;
        for (int i = 0; i < n; ++i) {
            const Int one = above_x(a[i]), other = above_y(b[i]);
            in_x += one;
            in_y += other;
            in_both += one & other;
        }
        row[0] += in_x;
        row[1] += in_y;
        row[2] += in_both;
    }
}

bool wide(const Volume &x, const Volume &y) {
    return x.pixel == Pixel::float64 || y.pixel == Pixel::float64;
}

}  // namespace

void volume_metrics(const Volume &x, const Volume &y, int64_t slices, int64_t voxels,
                    const Mapping &m, const Bins *bins, double *table, int64_t *counts,
                    int threads) {
    const Chunks chunks{slices, voxels};
    std::vector<double> rows(table ? chunks.size() * Moments::kAll : 0);
#ifdef _OPENMP
#pragma omp parallel num_threads(std::max(threads, 1)) if (threads > 1 && chunks.size() > 1)
#else
    (void)threads;
#endif
    {
        Histograms histograms(m, bins, counts);
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t item = 0; item < chunks.size(); ++item) {
            double *row = table ? &rows[item * Moments::kAll] : nullptr;
            const auto run = wide(x, y) ? &chunk<double> : &chunk<float>;
            run(x, y, chunks.first(item), chunks.count(item), m, row, bins ? &histograms : nullptr);
        }
    }
    for (int64_t z = 0; table && z < slices; ++z)
        finish(&rows[z * chunks.per_slice * Moments::kAll], chunks.per_slice, voxels, m,
               table + z * kColumns);
}

void joint_counts(const Volume &x, const Volume &y, int64_t slices, int64_t voxels,
                  const Mapping &m, const Bins *bins, const double *centres, int64_t *counts,
                  int threads) {
    const Chunks chunks{slices, voxels};
#ifdef _OPENMP
#pragma omp parallel num_threads(std::max(threads, 1)) if (threads > 1 && chunks.size() > 1)
#else
    (void)threads;
#endif
    {
        JointCounts own(m, bins, centres, counts);
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t item = 0; item < chunks.size(); ++item) {
            const auto run = wide(x, y) ? &joint<double> : &joint<float>;
            run(x, y, chunks.first(item), chunks.count(item), &own);
        }
    }
}

void overlap_counts(const Volume &x, const Volume &y, int64_t slices, int64_t voxels,
                    const Mapping &m, double threshold_x, double threshold_y, int64_t *counts,
                    int threads) {
    const Chunks chunks{slices, voxels};
    std::vector<int64_t> rows(chunks.size() * 3);
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(std::max(threads, 1)) if (threads > 1)
#else
    (void)threads;
#endif
    for (int64_t item = 0; item < chunks.size(); ++item) {
        const auto run = wide(x, y) ? &above<double> : &above<float>;
        run(x, y, chunks.first(item), chunks.count(item), threshold_x, threshold_y, m,
            &rows[item * 3]);
    }
    for (int64_t item = 0; item < chunks.size(); ++item)
        for (int column = 0; column < 3; ++column)
            counts[item / chunks.per_slice * 3 + column] += rows[item * 3 + column];
}

}  // namespace mdf::MDF_ISA
