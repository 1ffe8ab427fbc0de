// A tile is a stretch of columns (y, x) through the slices of one window. Its x0 stays in the cache
// between the projection and the update, so every volume passes through memory once. The loops follow
// the reference operation by operation: contraction is off, so each product is rounded as there.
#include "blended_step/native.h"

#include <algorithm>
#include <cstring>

#include "counter_noise/normals.h"

namespace mdf::MDF_ISA {
namespace {

constexpr int64_t kColumns = 1024;     // of a tile; as many voxels as a tile of the noise
constexpr int64_t kCached = 1 << 16;   // Floats of x0 in a tile: 256 KiB, part of an L2 cache.

struct Scratch {
    std::vector<float> x0, mean, previous, in[4];

    explicit Scratch(int64_t slices)
        : x0(slices * kColumns), mean(kColumns), previous(kColumns) {
        for (auto &buffer : in) buffer.resize(kColumns);
    }
};

void widen(float *out, const uint16_t *in, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = static_cast<uint32_t>(in[i]) << 16;
        std::memcpy(out + i, &bits, sizeof bits);
    }
}

// To bfloat16, ties to even.
void narrow(uint16_t *out, const float *in, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, in + i, sizeof bits);
        const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
        const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
        out[i] = static_cast<uint16_t>(nan ? 0x7FC0u : rounded);
    }
}

// Asks for elements [at, at + n), which the next tile reads. A tile's passes are too short for the
// hardware to run ahead of them, and the noise leaves the memory idle.
void prefetch(const Array &array, int64_t at, int64_t n) {
#ifdef __GNUC__
    const int64_t size = array.half ? sizeof(uint16_t) : sizeof(float);
    const char *first = static_cast<const char *>(array.data) + at * size;
    for (int64_t byte = 0; byte < n * size; byte += 64) __builtin_prefetch(first + byte);
#endif
}

// Elements [at, at + n) as floats: where they lie, or converted into `scratch`.
const float *load(const Array &array, int64_t at, int64_t n, std::vector<float> &scratch) {
    prefetch(array, at + n, n);
    if (!array.half) return static_cast<const float *>(array.data) + at;
    widen(scratch.data(), static_cast<const uint16_t *>(array.data) + at, n);
    return scratch.data();
}

void store(const Array &array, int64_t at, int64_t n, const float *values) {
    if (array.half)
        narrow(static_cast<uint16_t *>(array.data) + at, values, n);
    else
        std::memcpy(static_cast<float *>(array.data) + at, values,
                    static_cast<size_t>(n) * sizeof *values);
}

// Guidance, prediction to x0, limits. A NaN stays one.
void predict(const Step &step, int64_t at, int64_t n, float *__restrict x0, Scratch &scratch) {
    const StepRow &r = step.row;
    const float *__restrict state = load(step.x, at, n, scratch.in[0]);
    const float *__restrict cond = load(step.cond, at, n, scratch.in[1]);
    if (step.uncond.data) {
        const float *__restrict uncond = load(step.uncond, at, n, scratch.in[2]);
        const float wider = 1.0f + r.w;
        for (int64_t i = 0; i < n; ++i)
            x0[i] = r.p * (wider * cond[i] - r.w * uncond[i]) + r.q * state[i];
    } else {
        for (int64_t i = 0; i < n; ++i) x0[i] = r.p * cond[i] + r.q * state[i];
    }
    for (int64_t i = 0; i < n; ++i) {
        const float raised = x0[i] < r.low ? r.low : x0[i];
        x0[i] = raised > r.high ? r.high : raised;
    }
}

// x0 += trust * A^+ (projections - A x0) in one window; slice i of x0 starts at i * kColumns.
void project(const Step &step, int64_t at, int64_t n, float *x0, Scratch &scratch) {
    const Windows &windows = step.windows;
    const float *__restrict target = load(step.projections, at, n, scratch.in[0]);
    float *__restrict change = scratch.mean.data();
    std::fill_n(change, n, 0.0f);
    for (size_t slice = 0; slice < windows.weights.size(); ++slice) {
        const float tap = windows.taps[slice];
        const float *__restrict values = x0 + slice * kColumns;
        if (tap == 0.0f) continue;
        for (int64_t i = 0; i < n; ++i) change[i] += tap * values[i];
    }
    for (int64_t i = 0; i < n; ++i)
        change[i] = (target[i] - windows.scale * change[i]) / windows.norm;
    for (size_t slice = 0; slice < windows.weights.size(); ++slice) {
        const float weight = windows.weights[slice], trust = step.row.trust;
        float *__restrict values = x0 + slice * kColumns;
        if (weight == 0.0f) continue;
        for (int64_t i = 0; i < n; ++i) values[i] += trust * (weight * change[i]);
    }
}

// The sampler's update and the blend with the prior.
void advance(const Step &step, int64_t at, int64_t n, const float *__restrict x0,
             Scratch &scratch) {
    const StepRow &r = step.row;
    const float *__restrict state = load(step.x, at, n, scratch.in[0]);
    float *__restrict previous = scratch.previous.data();
    for (int64_t i = 0; i < n; ++i) previous[i] = r.a * x0[i] + r.b * state[i];
    if (step.history.data) {
        const float *__restrict history = load(step.history, at, n, scratch.in[1]);
        for (int64_t i = 0; i < n; ++i) previous[i] += r.c * history[i];
        store(step.history, at, n, x0);
    }
    if (step.draws || step.noise.data) {
        const float *__restrict noise = scratch.in[2].data();
        if (step.draws)
            fill_normals(scratch.in[2].data(), at, n, step.key);
        else
            noise = load(step.noise, at, n, scratch.in[2]);
        for (int64_t i = 0; i < n; ++i) previous[i] += r.d * noise[i];
    }
    const float *__restrict prior = load(step.prior, at, n, scratch.in[3]);
    const float rest = 1.0f - r.gamma;
    for (int64_t i = 0; i < n; ++i) previous[i] = rest * previous[i] + r.gamma * prior[i];
    store(step.x, at, n, previous);
}

}  // namespace

void blended_step(const Step &step, int threads) {
    const int64_t depth = step.shape[0], plane = step.shape[1] * step.shape[2];
    const Windows &windows = step.windows;
    const int64_t slices = static_cast<int64_t>(windows.weights.size());
    const int64_t columns =
        std::clamp<int64_t>(kCached / std::max<int64_t>(slices, 1), 64, kColumns);
#ifdef _OPENMP
#pragma omp parallel num_threads(std::max(threads, 1)) if (threads > 1)
#else
    (void)threads;
#endif
    {
        Scratch scratch(std::max<int64_t>(slices, 1));
        float *x0 = scratch.x0.data();
#ifdef _OPENMP
#pragma omp for collapse(2) schedule(static) nowait
#endif
        for (int64_t window = 0; window < windows.count; ++window) {
            for (int64_t column = 0; column < plane; column += columns) {
                const int64_t n = std::min(columns, plane - column);
                const int64_t at = (windows.start + window * windows.stride) * plane + column;
                for (int64_t i = 0; i < slices; ++i)
                    predict(step, at + i * plane, n, x0 + i * kColumns, scratch);
                project(step, window * plane + column, n, x0, scratch);
                for (int64_t i = 0; i < slices; ++i)
                    advance(step, at + i * plane, n, x0 + i * kColumns, scratch);
            }
        }
        // Slices that no window covers: before, between and after the windows.
        for (int64_t gap = 0; gap <= windows.count; ++gap) {
            const int64_t first = gap ? windows.start + (gap - 1) * windows.stride + slices : 0;
            const int64_t next = windows.start + gap * windows.stride;
            const int64_t end = (gap < windows.count ? next : depth) * plane;
#ifdef _OPENMP
#pragma omp for schedule(static) nowait
#endif
            for (int64_t at = first * plane; at < end; at += kColumns) {
                const int64_t n = std::min(kColumns, end - at);
                predict(step, at, n, x0, scratch);
                advance(step, at, n, x0, scratch);
            }
        }
    }
}

}  // namespace mdf::MDF_ISA
