// Standard normals that belong to voxels: Box-Muller of Philox4x32-10 words in double, rounded once
// to float. For the native.cpp files that draw noise; compiled once per instruction set.
//
// log, sin and cos are written out as polynomials instead of calling libm: loops over them
// vectorise, and with IEEE add, multiply, divide and square root only (contraction is off) every
// machine, thread count and block gives the same bits. The polynomials interpolate at Chebyshev
// nodes, with as few terms as keep the relative error of a normal below 2e-13: one normal in some
// hundred thousand is then rounded to the other one of its two neighbours in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "counter_noise/noise_key.h"
#include "philox.h"

namespace mdf::MDF_ISA {
namespace {

constexpr int kQuads = 256;  // Counters per tile: its arrays (12 KiB) stay in the L1 cache.

// 64-bit lanes spare AVX-512 the shuffles around a 32 x 32 -> 64 bit multiplication (0.34 against
// 0.64 ns a voxel); without its 64-bit multiplier they cost more than they save.
#ifdef __AVX512DQ__
using Lane = uint64_t;
#else
using Lane = uint32_t;
#endif

inline double from_bits(uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint64_t to_bits(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// w + 0.5, exactly: the word goes into the mantissa of 2^52. (A conversion from uint32_t or int64_t
// has no vector instruction before AVX-512.)
inline double centre(uint32_t w) {
    return from_bits(0x4330000000000000u | w) - (4503599627370496.0 - 0.5);
}

// -2 log(u), u = (w + 0.5) / 2^32 in (0, 1). With u = m 2^k, m in [sqrt(1/2), sqrt(2)) and
// s = (m - 1) / (m + 1): log(m) = 2 atanh(s), |s| < 0.172.
inline double squared_radius(uint32_t w) {
    constexpr uint64_t kSqrtHalf = 0x3FE6A09E667F3BCDu;
    constexpr uint64_t kMantissa = 0x000FFFFFFFFFFFFFu;
    const uint64_t shifted = to_bits(centre(w) * 0x1p-32) - kSqrtHalf + 0x3FF0000000000000u;
    // The biased exponent as a double, again by way of the mantissa of 2^52.
    const double k = from_bits(0x4330000000000000u | (shifted >> 52)) - (4503599627370496.0 + 1023.0);
    const double m = from_bits((shifted & kMantissa) + kSqrtHalf);
    const double s = (m - 1.0) / (m + 1.0);
    const double t = s * s;
    double p = 0.096813268571010038694;
    p = p * t + 0.11095700415154251806;
    p = p * t + 0.1428587726795724448;
    p = p * t + 0.19999999398668792824;
    p = p * t + 0.33333333333687545039;
    return k * -1.386294361119890618834464242916 - 4.0 * (s + s * t * p);
}

// Two standard normals from two words: r cos(2 pi v), r sin(2 pi v).
inline void box_muller(uint32_t w0, uint32_t w1, float &n0, float &n1) {
    const double radius = std::sqrt(squared_radius(w0));
    // The angle's nearest quarter turn is taken off in integers, which is exact.
    const uint32_t quarter = (w1 + 0x20000000u) >> 30;
    const int32_t rest = static_cast<int32_t>(w1 - (quarter << 30));
    constexpr double kTurn = 6.283185307179586476925286766559 * 0x1p-32;
    const double x = (static_cast<double>(rest) + 0.5) * kTurn;  // |x| <= pi / 4
    const double t = x * x;
    double s = -2.4805636241834762561e-8;
    s = s * t + 2.7555990929565318647e-6;
    s = s * t - 0.00019841266916985965554;
    s = s * t + 0.0083333333310792230779;
    s = s * t - 0.16666666666663885933;
    const double sine = x + x * t * s;
    double c = 2.0700600483433117729e-9;
    c = c * t - 2.7556369695573006221e-7;
    c = c * t + 0.000024801585210990515948;
    c = c * t - 0.0013888888887277342899;
    c = c * t + 0.041666666664678604;
    const double cosine = 1.0 - t * (0.5 - t * c);
    // Turn back by `quarter` quarter turns: exchange on odd ones, then the signs, as bit operations
    // on 64-bit lanes.
    const uint64_t odd = uint64_t{0} - static_cast<uint64_t>(quarter & 1u);
    const uint64_t bits_s = to_bits(sine), bits_c = to_bits(cosine);
    const uint64_t exchange = (bits_s ^ bits_c) & odd;
    const uint64_t negate_c = static_cast<uint64_t>((quarter + 1u) & 2u) << 62;
    const uint64_t negate_s = static_cast<uint64_t>(quarter & 2u) << 62;
    n0 = static_cast<float>(radius * from_bits((bits_c ^ exchange) ^ negate_c));
    n1 = static_cast<float>(radius * from_bits((bits_s ^ exchange) ^ negate_s));
}

// The normals of voxels [first, first + count) of the volume.
void fill_run(float *out, int64_t first, int64_t count, const NoiseKey &key) {
    const uint32_t k0 = static_cast<uint32_t>(key.seed);
    const uint32_t k1 = static_cast<uint32_t>(key.seed >> 32);
    alignas(64) uint32_t word[4][kQuads];
    alignas(64) float lane[4][kQuads], tile[4 * kQuads];
    const int64_t end = first + count, stop = (end - 1) / 4 + 1;
    for (int64_t base = first / 4; base < stop; base += kQuads) {
        // Whole vectors: a few quads too many cost less than a loop's scalar rest.
        const int quads = static_cast<int>(std::min<int64_t>(kQuads, (stop - base + 15) / 16 * 16));
        for (int i = 0; i < quads; ++i) {
            const uint64_t index = static_cast<uint64_t>(base) + static_cast<uint64_t>(i);
            Lane c0 = static_cast<Lane>(index), c1 = static_cast<Lane>(index >> 32);
            Lane c2 = key.step, c3 = key.stream;
            philox4x32_10(c0, c1, c2, c3, k0, k1);
            word[0][i] = static_cast<uint32_t>(c0);
            word[1][i] = static_cast<uint32_t>(c1);
            word[2][i] = static_cast<uint32_t>(c2);
            word[3][i] = static_cast<uint32_t>(c3);
        }
        for (int i = 0; i < quads; ++i) box_muller(word[0][i], word[1][i], lane[0][i], lane[1][i]);
        for (int i = 0; i < quads; ++i) box_muller(word[2][i], word[3][i], lane[2][i], lane[3][i]);
        for (int i = 0; i < quads; ++i)
            for (int j = 0; j < 4; ++j) tile[4 * i + j] = lane[j][i];
        const int64_t lo = std::max<int64_t>(first - base * 4, 0);
        const int64_t hi = std::min<int64_t>(end - base * 4, 4 * quads);
        std::memcpy(out + (base * 4 + lo - first), tile + lo,
                    static_cast<size_t>(hi - lo) * sizeof *out);
    }
}

// The normals of elements [from, from + count) of the block, in C order. A run is a stretch of them
// that is contiguous in the volume: a row, or a plane where the block spans its rows.
void fill_normals(float *out, int64_t from, int64_t count, const NoiseKey &key) {
    const Extent &shape = key.shape, &offset = key.offset, &volume = key.volume;
    const bool planes = shape[2] == volume[2];
    const int64_t length = planes ? shape[1] * shape[2] : shape[2];
    while (count > 0) {
        const int64_t run = from / length, skip = from % length;
        const int64_t z = offset[0] + (planes ? run : run / shape[1]);
        const int64_t y = offset[1] + (planes ? 0 : run % shape[1]);
        const int64_t first = (z * volume[1] + y) * volume[2] + offset[2] + skip;
        const int64_t part = std::min(count, length - skip);
        fill_run(out, first, part, key);
        out += part;
        from += part;
        count -= part;
    }
}

}  // namespace
}  // namespace mdf::MDF_ISA
