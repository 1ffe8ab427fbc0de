// Loops run over pieces that stay in the L1 cache. Where windows are projected, a tile of columns goes
// through the slices of a window twice, its x0 in the L2 cache between, so every volume passes through
// memory once. The loops follow the reference operation by operation: contraction is off, so each
// product is rounded as there.
#include "blended_step/native.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "counter_noise/normals.h"
#include "failure.h"

namespace mdf::MDF_ISA {
namespace {

// Voxels that a loop takes at a time. Measured on 64 x 512 x 512 voxels, one thread: without windows
// short pieces hide the memory behind the noise (25 ms at 256, 31 at 1024), with windows long ones
// stay longer in a slice (15 ms at 1024, 17 at 256).
constexpr int64_t kShort = 256, kLong = 1024;
// Columns of a tile; narrower ones leave a slice too often, wider ones the L2 cache.
constexpr int64_t kColumns = 8192;
constexpr int64_t kCached = 1 << 16;  // floats of x0 in a tile

// A thread's buffers, each at the start of a cache line: 64-byte vectors that straddle two lines take
// twice as long.
struct Scratch {
    std::vector<float> memory;
    float *x0, *change, *in[4];

    Scratch(int64_t slices, int64_t columns) : memory((slices + 1) * columns + 4 * kLong + 16) {
        void *start = memory.data();
        size_t space = memory.size() * sizeof(float);
        x0 = static_cast<float *>(std::align(64, space - 64, start, space));
        change = x0 + slices * columns;
        for (int i = 0; i < 4; ++i) in[i] = change + columns + i * kLong;
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

// Elements [at, at + n) as floats: where they lie, or converted into `scratch`.
float *load(const Array &array, int64_t at, int64_t n, float *scratch) {
    if (!array.half) return static_cast<float *>(array.data) + at;
    widen(scratch, static_cast<const uint16_t *>(array.data) + at, n);
    return scratch;
}

// Writes what `load` gave and a loop changed back, where that is not in place.
void store(const Array &array, int64_t at, int64_t n, const float *values) {
    if (array.half) narrow(static_cast<uint16_t *>(array.data) + at, values, n);
}

// What a window adds to the loops: its sum of x0 in the first pass, in the second its change to x0.
struct Share {
    float *change = nullptr;
    float weight = 0.0f;
};

template <bool kGuided, bool kSummed>
void predict_each(const StepRow &r, int64_t n, const float *state, const float *cond,
                  const float *uncond, float *__restrict x0, float *__restrict sum, float tap) {
    const float wider = 1.0f + r.w;
    for (int64_t i = 0; i < n; ++i) {
        const float prediction = kGuided ? wider * cond[i] - r.w * uncond[i] : cond[i];
        const float free = r.p * prediction + r.q * state[i];
        const float raised = free < r.low ? r.low : free;  // a NaN stays one
        x0[i] = raised > r.high ? r.high : raised;
        if (kSummed) sum[i] += tap * x0[i];
    }
}

// Guidance, prediction to x0, limits.
void predict(const Step &step, int64_t at, int64_t n, float *x0, Scratch &scratch,
             Share share = {}) {
    const float *state = load(step.x, at, n, scratch.in[0]);
    const float *cond = load(step.cond, at, n, scratch.in[1]);
    const float *uncond = nullptr;
    if (step.uncond.data) uncond = load(step.uncond, at, n, scratch.in[2]);
    const auto each =
        uncond ? (share.weight != 0.0f ? predict_each<true, true> : predict_each<true, false>)
               : (share.weight != 0.0f ? predict_each<false, true> : predict_each<false, false>);
    each(step.row, n, state, cond, uncond, x0, share.change, share.weight);
}

template <bool kHistory, bool kNoise, bool kChanged>
void advance_each(const StepRow &r, int64_t n, const float *__restrict x0, const float *prior,
                  const float *noise, const float *change, float weight,
                  float *__restrict history, float *__restrict state) {
    const float rest = 1.0f - r.gamma;
    for (int64_t i = 0; i < n; ++i) {
        float clean = x0[i];
        if (kChanged) clean += r.trust * (weight * change[i]);
        float previous = r.a * clean + r.b * state[i];
        if (kHistory) previous += r.c * history[i];
        if (kHistory) history[i] = clean;
        if (kNoise) previous += r.d * noise[i];
        state[i] = rest * previous + r.gamma * prior[i];
    }
}

// The sampler's update and the blend with the prior.
void advance(const Step &step, int64_t at, int64_t n, const float *x0, Scratch &scratch,
             Share share = {}) {
    float *state = load(step.x, at, n, scratch.in[0]);
    const float *prior = load(step.prior, at, n, scratch.in[1]);
    float *history = nullptr, *noise = nullptr;
    if (step.history.data) history = load(step.history, at, n, scratch.in[2]);
    if (step.noise.data) noise = load(step.noise, at, n, scratch.in[3]);
    if (step.draws) {
        noise = scratch.in[3];
        fill_normals(noise, at, n, step.key);
    }
    const auto run = [&](auto each) {
        each(step.row, n, x0, prior, noise, share.change, share.weight, history, state);
    };
    if (share.weight != 0.0f)
        run(history ? (noise ? advance_each<true, true, true> : advance_each<true, false, true>)
                    : (noise ? advance_each<false, true, true> : advance_each<false, false, true>));
    else
        run(history ? (noise ? advance_each<true, true, false> : advance_each<true, false, false>)
                    : (noise ? advance_each<false, true, false> : advance_each<false, false, false>));
    store(step.x, at, n, state);
    if (history) store(step.history, at, n, history);
}

// Columns [column, column + n) of one window, with x0 += trust * A^+ (projections - A x0).
void advance_window(const Step &step, int64_t window, int64_t column, int64_t n, Scratch &scratch) {
    const Windows &windows = step.windows;
    const int64_t plane = step.shape[1] * step.shape[2];
    const int64_t first = (windows.start + window * windows.stride) * plane + column;
    const size_t slices = windows.weights.size();
    std::fill_n(scratch.change, n, 0.0f);
    for (size_t slice = 0; slice < slices; ++slice)
        for (int64_t from = 0; from < n; from += kLong)
            predict(step, first + slice * plane + from, std::min(kLong, n - from),
                    scratch.x0 + slice * n + from, scratch,
                    {scratch.change + from, windows.taps[slice]});
    for (int64_t from = 0; from < n; from += kLong) {
        const int64_t size = std::min(kLong, n - from), at = window * plane + column + from;
        const float *target = load(step.projections, at, size, scratch.in[0]);
        float *change = scratch.change + from;
        for (int64_t i = 0; i < size; ++i)
            change[i] = (target[i] - windows.scale * change[i]) / windows.norm;
    }
    for (size_t slice = 0; slice < slices; ++slice)
        for (int64_t from = 0; from < n; from += kLong)
            advance(step, first + slice * plane + from, std::min(kLong, n - from),
                    scratch.x0 + slice * n + from, scratch,
                    {scratch.change + from, windows.weights[slice]});
}

}  // namespace

void blended_step(const Step &step, int threads) {
    const int64_t depth = step.shape[0], plane = step.shape[1] * step.shape[2];
    const Windows &windows = step.windows;
    const int64_t slices = static_cast<int64_t>(windows.weights.size());
    const int64_t columns =
        std::clamp(kCached / std::max<int64_t>(slices, 1) / kLong * kLong, kLong, kColumns);
    Failure failure;
#ifdef _OPENMP
#pragma omp parallel num_threads(std::max(threads, 1)) if (threads > 1)
#else
    (void)threads;
#endif
    {
        std::optional<Scratch> scratch;
        failure.run([&] { scratch.emplace(std::max<int64_t>(slices, 1), columns); });
#ifdef _OPENMP
#pragma omp for collapse(2) schedule(static) nowait
#endif
        for (int64_t window = 0; window < windows.count; ++window)
            for (int64_t column = 0; column < plane; column += columns)
                failure.run([&] {
                    advance_window(step, window, column, std::min(columns, plane - column),
                                   *scratch);
                });

        // Slices that no window covers: before, between and after the windows.
        for (int64_t gap = 0; gap <= windows.count; ++gap) {
            const int64_t first = gap ? windows.start + (gap - 1) * windows.stride + slices : 0;
            const int64_t next = windows.start + gap * windows.stride;
            const int64_t end = (gap < windows.count ? next : depth) * plane;
#ifdef _OPENMP
#pragma omp for schedule(static) nowait
#endif
            for (int64_t at = first * plane; at < end; at += kShort) {
                const int64_t n = std::min(kShort, end - at);
                failure.run([&] {
                    predict(step, at, n, scratch->x0, *scratch);
                    advance(step, at, n, scratch->x0, *scratch);
                });
            }
        }
    }
    failure.raise();
}

}  // namespace mdf::MDF_ISA
