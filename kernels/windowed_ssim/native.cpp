// Mean SSIM, marching along z in blocks of the volume that fit the L2 cache.
//
// A block is a stretch of planes x a band of rows x a stretch of columns; blocks do not depend on
// the number of threads, and each leaves one number a plane. All arithmetic is double, so that the
// running sums lose nothing that matters; float would save little, memory sets the pace.
//
// Uniform window: z first. Every voxel of the band keeps the running sums over the window's depth
// (the plane that leaves is read again, from the cache), rows are added up by a second running sum,
// columns directly: 32 bytes of state a voxel of the band. A slice needs the sums over rows alone.
// Gaussian window: there is no running sum, so each plane is filtered along y and x, and the last
// 11 of them are kept for the filter along z.
#include "windowed_ssim/native.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "failure.h"

namespace mdf::MDF_ISA {
namespace {

#include "windowed_ssim/rows.h"

using Extent = std::array<int64_t, 3>;

constexpr int kPlanes = 32;       // Output planes a block.
constexpr int kSamples = 8;       // Values along each axis whose mean is the shift.

struct Blocks {  // Of the output, in planes, rows and columns.
    Extent size, count;

    Blocks(const Extent &output, const Extent &largest) {
        for (int axis = 0; axis < 3; ++axis) {
            // Equal shares: no sliver at the end.
            count[axis] = (output[axis] + largest[axis] - 1) / largest[axis];
            size[axis] = (output[axis] + count[axis] - 1) / count[axis];
            count[axis] = (output[axis] + size[axis] - 1) / size[axis];
        }
    }
    int64_t pieces() const { return count[1] * count[2]; }
};

struct Problem {
    const SsimVolume &x, &y;
    Extent output;
    int window, depth;
    Map map;
    Formula formula;
    const double *taps;
    const double *shifts;  // Of x and y, two values an output plane.
};

struct Block {
    int64_t z, y, x;             // First output plane, row and column.
    int planes, rows, columns;   // Of the output.
};

// The pair of rows of voxels at (z, y, x), shifted; fetches those of plane `next` ahead.
void load_pair(const Problem &p, int64_t z, int64_t y, int64_t x, int64_t next, int n,
               const double *shift, double *pair) {
    const auto span = [&](const SsimVolume &v) {
        const int64_t first = z * v.plane_stride + y * v.row_stride + x;
        return Span{first, first + (next - z) * v.plane_stride, n};
    };
    load(p.x, span(p.x), p.map, shift[0], pair);
    load(p.y, span(p.y), p.map, shift[1], pair + kStride);
}

double total(const double *values, int n) {
    double sum = 0.0;
    for (int i = 0; i < n; ++i) sum += values[i];
    return sum;
}

constexpr int kRow = kStatistics * kStride, kPair = 2 * kStride;
constexpr int kUniformRows = 32, kUniformColumns = 256;
constexpr int kUniformScratch = (kUniformRows + 6) * kRow + 2 * kRow + 2 * kPair + kStride;

// partial[plane * stride] = sum of the SSIM map over the block's part of that plane.
void march_uniform(const Problem &p, const Block &b, double *scratch, double *partial,
                   int64_t stride) {
    constexpr int kWindow = 7;
    const int rows = b.rows + kWindow - 1, columns = b.columns + kWindow - 1;
    double *const zeros = scratch, *const down = zeros + kRow, *const in = down + kRow;
    double *const out = in + kPair, *const sums = out + kPair, *const state = sums + kStride;
    std::fill_n(zeros, kRow, 0.0);
    std::fill_n(state, p.depth > 1 ? rows * kRow : 0, 0.0);
    const int planes = b.planes + p.depth - 1;
    for (int plane = 0; plane < planes; ++plane) {
        const int64_t z = b.z + plane, next = plane + 1 < planes ? z + 1 : z;
        const int done = plane - (p.depth - 1);  // Output plane that this one completes.
        // In 3D there is one shift for all planes, so any will do for the first few.
        const double *shift = p.shifts + 2 * (b.z + std::max(done, 0));
        std::fill_n(down, kRow, 0.0);
        std::fill_n(sums, kStride, 0.0);
        for (int r = 0; r < rows; ++r) {
            load_pair(p, z, b.y + r, b.x, next, columns, shift, in);
            const bool full = p.depth > 1 ? plane >= p.depth : r >= kWindow;
            if (full && p.depth > 1)
                load_pair(p, z - p.depth, b.y + r, b.x, z - p.depth, columns, shift, out);
            if (full && p.depth == 1)
                load_pair(p, z, b.y + r - kWindow, b.x, z, columns, shift, out);
            const double *leaving = full ? out : zeros;
            if (p.depth == 1) {
                slide(down, columns, in, leaving);
            } else if (done < 0) {
                slide(state + r * kRow, columns, in, leaving);
                continue;
            } else {
                const double *old = r < kWindow ? zeros : state + (r - kWindow) * kRow;
                slide(state + r * kRow, columns, in, leaving, down, old);
            }
            if (r >= kWindow - 1) similarity<kWindow>(down, b.columns, p.formula, shift, sums);
        }
        if (done >= 0) partial[done * stride] = total(sums, b.columns);
    }
}

constexpr int kGaussianRows = 12, kGaussianColumns = 256;
constexpr int kGaussianScratch =
    (kGaussianRows + 10) * kRow + 11 * kGaussianRows * kRow + 2 * kRow + kPair + kStride;

void march_gaussian(const Problem &p, const Block &b, double *scratch, double *partial,
                    int64_t stride) {
    constexpr int kWindow = 11;
    const int rows = b.rows + kWindow - 1, columns = b.columns + kWindow - 1;
    double *const down = scratch, *const window = down + kRow, *const in = window + kRow;
    double *const sums = in + kPair, *const entered = sums + kStride;
    double *const recent = entered + rows * kRow;
    const double *taken[kWindow];
    const int planes = b.planes + p.depth - 1;
    for (int plane = 0; plane < planes; ++plane) {
        const int64_t z = b.z + plane, next = plane + 1 < planes ? z + 1 : z;
        const int done = plane - (p.depth - 1);
        const double *shift = p.shifts + 2 * (b.z + std::max(done, 0));
        for (int r = 0; r < rows; ++r) {
            load_pair(p, z, b.y + r, b.x, next, columns, shift, in);
            terms(entered + r * kRow, columns, in);
        }
        double *filtered = recent + plane % p.depth * b.rows * kRow;
        for (int r = 0; r < b.rows; ++r) {
            for (int s = 0; s < kRow; s += kStride) {
                for (int k = 0; k < kWindow; ++k) taken[k] = entered + (r + k) * kRow + s;
                filter11(taken, p.taps, columns, down + s);
                for (int k = 0; k < kWindow; ++k) taken[k] = down + s + k;
                filter11(taken, p.taps, b.columns, filtered + r * kRow + s);
            }
        }
        if (done < 0) continue;
        std::fill_n(sums, kStride, 0.0);
        for (int r = 0; r < b.rows; ++r) {
            const double *means = filtered + r * kRow;
            if (p.depth > 1) {
                for (int s = 0; s < kRow; s += kStride) {
                    for (int k = 0; k < kWindow; ++k)
                        taken[k] = recent + ((plane + 1 + k) % kWindow * b.rows + r) * kRow + s;
                    filter11(taken, p.taps, b.columns, window + s);
                }
                means = window;
            }
            similarity<1>(means, b.columns, p.formula, shift, sums);
        }
        partial[done * stride] = total(sums, b.columns);
    }
}

// The mean of a few values: near enough to all others for their squares not to cancel.
double sample_mean(const SsimVolume &volume, const Extent &shape, int64_t z, int64_t planes,
                   const Map &map) {
    double sum = 0.0;
    int count = 0;
    for (int64_t k = 0; k < std::min<int64_t>(planes, kSamples); ++k)
        for (int64_t j = 0; j < kSamples; ++j)
            for (int64_t i = 0; i < kSamples; ++i, ++count) {
                const int64_t plane = z + k * planes / std::min<int64_t>(planes, kSamples);
                const int64_t row = (2 * j + 1) * shape[1] / (2 * kSamples);
                const int64_t column = (2 * i + 1) * shape[2] / (2 * kSamples);
                double value;
                const int64_t at = plane * volume.plane_stride + row * volume.row_stride + column;
                load(volume, {at, at, 1}, map, 0.0, &value);
                sum += value;
            }
    return sum / count;
}

}  // namespace

void windowed_ssim(double *sums, const SsimVolume &x, const SsimVolume &y, const Extent &shape,
                   const SsimOptions &o, int threads) {
    const int window = o.gaussian ? 11 : 7, depth = o.cubic ? window : 1;
    const Extent output = {shape[0] - depth + 1, shape[1] - window + 1, shape[2] - window + 1};
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const bool identity =
        o.scale == 1.0 && o.offset == 0.0 && o.low == -kInfinity && o.high == kInfinity;
    const Map map = {o.scale, o.offset, o.low, o.high, identity};
    const double weight = o.gaussian ? 1.0 : 1.0 / (49.0 * depth);
    const std::unique_ptr<double[]> shifts(new double[2 * output[0]]);
    for (int64_t z = 0; z < output[0]; ++z) {
        if (o.cubic && z > 0) {
            shifts[2 * z] = shifts[0], shifts[2 * z + 1] = shifts[1];
            continue;
        }
        shifts[2 * z] = sample_mean(x, shape, z, o.cubic ? shape[0] : 1, map);
        shifts[2 * z + 1] = sample_mean(y, shape, z, o.cubic ? shape[0] : 1, map);
    }
    const Problem problem = {x, y, output, window, depth, map, {o.c1, o.c2, o.norm, weight},
                             o.taps.data(), shifts.get()};
    const Blocks blocks(output, {kPlanes, o.gaussian ? kGaussianRows : kUniformRows,
                                 o.gaussian ? kGaussianColumns : kUniformColumns});
    const int64_t pieces = blocks.pieces();
    const std::unique_ptr<double[]> partial(new double[output[0] * pieces]);
    const auto march = o.gaussian ? march_gaussian : march_uniform;
    Failure failure;
    const int size = o.gaussian ? kGaussianScratch : kUniformScratch;
#ifdef _OPENMP
#pragma omp parallel num_threads(std::max(threads, 1)) if (threads > 1)
#else
    (void)threads;
#endif
    {
        std::unique_ptr<double[]> memory;
        failure.run([&] { memory.reset(new double[size + 8]()); });
        // On a cache line: vectors that straddle two cost twice.
        double *scratch = memory.get();
        while (reinterpret_cast<uintptr_t>(scratch) % 64 != 0) ++scratch;
        // The blocks fix the bits, whoever does them: a busy core may do fewer.
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t item = 0; item < blocks.count[0] * pieces; ++item) {
            const int64_t k = item / pieces, piece = item % pieces;
            const int64_t at[3] = {k * blocks.size[0], piece / blocks.count[2] * blocks.size[1],
                                   piece % blocks.count[2] * blocks.size[2]};
            int extent[3];
            for (int a = 0; a < 3; ++a)
                extent[a] = static_cast<int>(std::min(blocks.size[a], output[a] - at[a]));
            const Block block = {at[0], at[1], at[2], extent[0], extent[1], extent[2]};
            failure.run([&] {
                march(problem, block, scratch, partial.get() + at[0] * pieces + piece, pieces);
            });
        }
    }
    failure.raise();
    for (int64_t z = 0; z < output[0]; ++z) {
        sums[z] = 0.0;
        for (int64_t piece = 0; piece < pieces; ++piece) sums[z] += partial[z * pieces + piece];
    }
}

}  // namespace mdf::MDF_ISA
