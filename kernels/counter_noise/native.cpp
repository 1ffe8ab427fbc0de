// Box-Muller of Philox4x32-10 words in double, rounded once to float.
//
// log, sin and cos are written out as power series instead of calling libm: loops over them
// vectorise, and with IEEE add, multiply, divide and square root only (contraction is off) every
// machine, thread count and block gives the same bits.
#include "counter_noise/native.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "philox.h"

namespace mdf::MDF_ISA {
namespace {

constexpr int kQuads = 256;             // Counters per tile: its arrays (16 KiB) stay in the L1 cache.
constexpr int64_t kSegment = 1 << 14;   // Voxels per parallel work item.
constexpr double kTwoPi = 6.283185307179586476925286766559;

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

// log(u), u = (w + 0.5) / 2^32 in (0, 1). With u = m 2^k, m in [sqrt(1/2), sqrt(2)) and
// s = (m - 1) / (m + 1): log(m) = 2 atanh(s), |s| < 0.172, so ten terms are below 1e-17.
inline double log_uniform(uint32_t w) {
    constexpr uint64_t kSqrtHalf = 0x3FE6A09E667F3BCDu;
    constexpr uint64_t kMantissa = 0x000FFFFFFFFFFFFFu;
    const uint64_t shifted = to_bits(centre(w) * 0x1p-32) - kSqrtHalf + 0x3FF0000000000000u;
    // The biased exponent as a double, again by way of the mantissa of 2^52.
    const double k = from_bits(0x4330000000000000u | (shifted >> 52)) - (4503599627370496.0 + 1023.0);
    const double m = from_bits((shifted & kMantissa) + kSqrtHalf);
    const double s = (m - 1.0) / (m + 1.0);
    const double t = s * s;
    double p = 1.0 / 19;
    p = p * t + 1.0 / 17;
    p = p * t + 1.0 / 15;
    p = p * t + 1.0 / 13;
    p = p * t + 1.0 / 11;
    p = p * t + 1.0 / 9;
    p = p * t + 1.0 / 7;
    p = p * t + 1.0 / 5;
    p = p * t + 1.0 / 3;
    return 2.0 * (s + s * t * p) + k * 0.693147180559945309417232121458;
}

// Two standard normals from two words: r cos(2 pi v), r sin(2 pi v).
inline void box_muller(uint32_t w0, uint32_t w1, float &n0, float &n1) {
    const double radius = std::sqrt(-2.0 * log_uniform(w0));
    // The angle's nearest quarter turn is taken off in integers, which is exact.
    const uint32_t quarter = (w1 + 0x20000000u) >> 30;
    const int32_t rest = static_cast<int32_t>(w1 - (quarter << 30));
    const double x = (static_cast<double>(rest) + 0.5) * (kTwoPi * 0x1p-32);  // |x| <= pi / 4
    const double t = x * x;
    double s = 1.0 / 355687428096000;
    s = s * t - 1.0 / 1307674368000;
    s = s * t + 1.0 / 6227020800;
    s = s * t - 1.0 / 39916800;
    s = s * t + 1.0 / 362880;
    s = s * t - 1.0 / 5040;
    s = s * t + 1.0 / 120;
    s = s * t - 1.0 / 6;
    const double sine = x + x * t * s;
    double c = 1.0 / 20922789888000;
    c = c * t - 1.0 / 87178291200;
    c = c * t + 1.0 / 479001600;
    c = c * t - 1.0 / 3628800;
    c = c * t + 1.0 / 40320;
    c = c * t - 1.0 / 720;
    c = c * t + 1.0 / 24;
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
void fill_run(float *out, int64_t first, int64_t count, uint64_t seed, uint32_t step,
              uint32_t stream) {
    const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    alignas(64) uint32_t word[4][kQuads];
    alignas(64) float lane[4][kQuads];
    const int64_t end = first + count, stop = (end - 1) / 4 + 1;
    for (int64_t base = first / 4; base < stop; base += kQuads) {
        const int quads = static_cast<int>(std::min<int64_t>(kQuads, stop - base));
        for (int i = 0; i < quads; ++i) {
            const uint64_t index = static_cast<uint64_t>(base) + static_cast<uint64_t>(i);
            uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
            uint32_t c2 = step, c3 = stream;
            philox4x32_10(c0, c1, c2, c3, k0, k1);
            word[0][i] = c0;
            word[1][i] = c1;
            word[2][i] = c2;
            word[3][i] = c3;
        }
        for (int i = 0; i < quads; ++i) box_muller(word[0][i], word[1][i], lane[0][i], lane[1][i]);
        for (int i = 0; i < quads; ++i) box_muller(word[2][i], word[3][i], lane[2][i], lane[3][i]);
        const int64_t lo = std::max(first, base * 4);
        const int64_t hi = base + quads == stop ? end : (base + quads) * 4;
        for (int64_t v = lo; v < hi; ++v) out[v - first] = lane[v & 3][(v >> 2) - base];
    }
}

}  // namespace

void counter_noise(float *out, const Extent &shape, const Extent &offset, const Extent &volume,
                   uint64_t seed, uint32_t step, uint32_t stream, int threads) {
    // The block as `runs` stretches of voxels that are contiguous in the volume: rows, or whole
    // planes where the block spans them.
    const bool planes = shape[2] == volume[2];
    const int64_t runs = planes ? shape[0] : shape[0] * shape[1];
    const int64_t length = planes ? shape[1] * shape[2] : shape[2];
    const int64_t pieces = (length + kSegment - 1) / kSegment;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(std::max(threads, 1)) if (threads > 1)
#else
    (void)threads;
#endif
    for (int64_t item = 0; item < runs * pieces; ++item) {
        const int64_t run = item / pieces, from = item % pieces * kSegment;
        const int64_t z = offset[0] + (planes ? run : run / shape[1]);
        const int64_t y = offset[1] + (planes ? 0 : run % shape[1]);
        const int64_t first = (z * volume[1] + y) * volume[2] + offset[2] + from;
        fill_run(out + run * length + from, first, std::min(kSegment, length - from), seed, step,
                 stream);
    }
}

}  // namespace mdf::MDF_ISA
