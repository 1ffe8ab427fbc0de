#pragma once

#include <cstdint>
#include <vector>

#include "counter_noise/noise_key.h"
#include "isa.h"

namespace mdf {

// A contiguous volume of floats, or of bfloat16 where `half`; no data where the part is left out.
struct Array {
    void *data = nullptr;
    bool half = false;
};

// A row of the table, its columns in the order of blended_step/reference.py but for the last.
struct StepRow {
    float p, q, w, low, high, trust, a, b, c, d, gamma;
};

// The axial projection of disjoint windows. mean = scale * sum(taps * x0); norm = sum(weights^2).
struct Windows {
    std::vector<float> weights, taps;
    float scale, norm;
    int64_t stride, start, count;
};

struct Step {
    Extent shape;
    Array x, prior, cond, uncond, noise, history, projections;
    StepRow row;
    Windows windows;
    bool draws;  // the noise of `key`, instead of reading it
    NoiseKey key;
};

}  // namespace mdf

// One step in place; see blended_step/reference.py. The same bits for any number of threads, on every
// machine.
MDF_NATIVE(blended_step, const Step &step, int threads)
