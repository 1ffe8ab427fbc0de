// Mean SSIM, marching along z in blocks of the volume that fit the L2 cache.
//
// A block is a stretch of planes x a band of rows x a stretch of columns; blocks do not depend on the
// number of threads, and each leaves one number a plane. All arithmetic is double: the running
// sums then lose nothing that matters, and the vector units are not what limits it.
//
// Uniform window: z first. Every voxel of the band keeps the running sums over the window's depth
// (the plane that leaves is read again, from the cache), rows are added up by a second running sum,
// columns directly. 32 bytes of state a voxel of the band, none a plane.
// Gaussian window: there is no running sum, so each plane is filtered along y and x, and the last 11
// of them are kept for the filter along z.
#include "windowed_ssim/native.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

namespace mdf::MDF_ISA {
namespace {

#include "windowed_ssim/rows.h"

using Extent = std::array<int64_t, 3>;

constexpr int kMaxWindow = 11;
constexpr int kStride = 272;      // Doubles a row of scratch: the widest block and its halo.
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

// Bump allocator over one thread's scratch.
class Scratch {
  public:
    // On a cache line: vectors that straddle two would cost twice.
    explicit Scratch(double *next)
        : next_(next + (64 - reinterpret_cast<uintptr_t>(next) % 64) % 64 / sizeof(double)) {}
    double *take(int64_t rows = 1) {
        double *result = next_;
        next_ += rows * kStride;
        return result;
    }
    Row row() {
        Row result;
        for (double *&statistic : result.statistic) statistic = take();
        return result;
    }

  private:
    double *next_;
};

void load_pair(const Problem &p, int64_t z, int64_t y, int64_t x, int n, const double shift[2],
               double *out_x, double *out_y) {
    load(p.x, z * p.x.plane_stride + y * p.x.row_stride + x, n, p.map, shift[0], out_x);
    load(p.y, z * p.y.plane_stride + y * p.y.row_stride + x, n, p.map, shift[1], out_y);
}

double total(const double *values, int n) {
    double sum = 0.0;
    for (int i = 0; i < n; ++i) sum += values[i];
    return sum;
}

constexpr int kUniformRows = 32, kUniformColumns = 256;
constexpr int64_t kUniformScratch = ((kUniformRows + 6) * kStatistics + 2 * kStatistics + 5) * kStride;

// partial[plane * stride] = sum of the SSIM map over the block's part of that plane.
void march_uniform(const Problem &p, const Block &b, double *scratch, double *partial,
                   int64_t stride) {
    constexpr int kWindow = 7;
    const int rows = b.rows + kWindow - 1, columns = b.columns + kWindow - 1;
    Scratch memory(scratch);
    Row state[kUniformRows + kWindow - 1];
    for (int r = 0; r < rows; ++r) state[r] = memory.row();
    const Row down = memory.row(), window = memory.row();
    double *in_x = memory.take(), *in_y = memory.take();
    double *out_x = memory.take(), *out_y = memory.take(), *sums = memory.take();
    for (int plane = 0; plane < b.planes + p.depth - 1; ++plane) {
        const int64_t z = b.z + plane;
        const int done = plane - (p.depth - 1);  // Output plane that this one completes.
        // One shift for all of a marching window, so the first plane's serves the warm-up.
        const double *shift = p.shifts + 2 * (b.z + std::max(done, 0));
        for (const double *s : down.statistic) std::fill_n(const_cast<double *>(s), columns, 0.0);
        std::fill_n(sums, b.columns, 0.0);
        for (int r = 0; r < rows; ++r) {
            load_pair(p, z, b.y + r, b.x, columns, shift, in_x, in_y);
            if (plane == 0 || p.depth == 1) {
                enter<false>(state[r], columns, in_x, in_y);
            } else if (plane < p.depth) {
                enter<true>(state[r], columns, in_x, in_y);
            } else {
                load_pair(p, z - p.depth, b.y + r, b.x, columns, shift, out_x, out_y);
                slide(state[r], columns, in_x, in_y, out_x, out_y);
            }
            if (done < 0) continue;
            for (int s = 0; s < kStatistics; ++s) {
                const double *leaving = r < kWindow ? nullptr : state[r - kWindow].statistic[s];
                slide(down.statistic[s], columns, state[r].statistic[s], leaving);
                if (r >= kWindow - 1) sum7(down.statistic[s], b.columns, window.statistic[s]);
            }
            if (r >= kWindow - 1) similarity(window, b.columns, p.formula, shift[0], shift[1], sums);
        }
        if (done >= 0) partial[done * stride] = total(sums, b.columns);
    }
}

constexpr int kGaussianRows = 12, kGaussianColumns = 256;
constexpr int64_t kGaussianScratch =
    ((kGaussianRows + 10) * kStatistics + kMaxWindow * kGaussianRows * kStatistics +
     2 * kStatistics + 3) * kStride;

void march_gaussian(const Problem &p, const Block &b, double *scratch, double *partial,
                    int64_t stride) {
    constexpr int kWindow = 11;
    const int rows = b.rows + kWindow - 1, columns = b.columns + kWindow - 1;
    Scratch memory(scratch);
    Row terms[kGaussianRows + kWindow - 1], recent[kWindow][kGaussianRows];
    for (int r = 0; r < rows; ++r) terms[r] = memory.row();
    for (int slot = 0; slot < p.depth; ++slot)
        for (int r = 0; r < b.rows; ++r) recent[slot][r] = memory.row();
    const Row down = memory.row(), window = memory.row();
    double *in_x = memory.take(), *in_y = memory.take(), *sums = memory.take();
    const double *taken[kWindow];
    for (int plane = 0; plane < b.planes + p.depth - 1; ++plane) {
        const int done = plane - (p.depth - 1);
        const double *shift = p.shifts + 2 * (b.z + std::max(done, 0));
        for (int r = 0; r < rows; ++r) {
            load_pair(p, b.z + plane, b.y + r, b.x, columns, shift, in_x, in_y);
            enter<false>(terms[r], columns, in_x, in_y);
        }
        Row *filtered = recent[plane % p.depth];
        for (int r = 0; r < b.rows; ++r) {
            for (int s = 0; s < kStatistics; ++s) {
                for (int k = 0; k < kWindow; ++k) taken[k] = terms[r + k].statistic[s];
                filter11(taken, p.taps, columns, down.statistic[s]);
                for (int k = 0; k < kWindow; ++k) taken[k] = down.statistic[s] + k;
                filter11(taken, p.taps, b.columns, filtered[r].statistic[s]);
            }
        }
        if (done < 0) continue;
        std::fill_n(sums, b.columns, 0.0);
        for (int r = 0; r < b.rows; ++r) {
            for (int s = 0; s < kStatistics && p.depth > 1; ++s) {
                for (int k = 0; k < kWindow; ++k)
                    taken[k] = recent[(plane + 1 + k) % kWindow][r].statistic[s];
                filter11(taken, p.taps, b.columns, window.statistic[s]);
            }
            const Row &means = p.depth > 1 ? window : filtered[r];
            similarity(means, b.columns, p.formula, shift[0], shift[1], sums);
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
                load(volume, plane * volume.plane_stride + row * volume.row_stride + column, 1, map,
                     0.0, &value);
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
    const Map map = {o.scale, o.offset, o.low, o.high,
                     o.scale == 1.0 && o.offset == 0.0 && o.low == -kInfinity && o.high == kInfinity};
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
    constexpr int64_t kScratch = std::max(kUniformScratch, kGaussianScratch);
#ifdef _OPENMP
#pragma omp parallel num_threads(std::max(threads, 1)) if (threads > 1)
#else
    (void)threads;
#endif
    {
        const std::unique_ptr<double[]> scratch(new double[kScratch + 8]());
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (int64_t item = 0; item < blocks.count[0] * pieces; ++item) {
            const int64_t k = item / pieces, piece = item % pieces;
            const int64_t at[3] = {k * blocks.size[0], piece / blocks.count[2] * blocks.size[1],
                                   piece % blocks.count[2] * blocks.size[2]};
            int extent[3];
            for (int axis = 0; axis < 3; ++axis)
                extent[axis] = static_cast<int>(std::min(blocks.size[axis], output[axis] - at[axis]));
            const Block block = {at[0], at[1], at[2], extent[0], extent[1], extent[2]};
            march(problem, block, scratch.get(), partial.get() + at[0] * pieces + piece, pieces);
        }
    }
    for (int64_t z = 0; z < output[0]; ++z) {
        sums[z] = 0.0;
        for (int64_t piece = 0; piece < pieces; ++piece) sums[z] += partial[z * pieces + piece];
    }
}

}  // namespace mdf::MDF_ISA
