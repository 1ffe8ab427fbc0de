// Counts of 256 bins, bit-equal to numpy.histogram's.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "volume_metrics/mapping.h"

namespace mdf::MDF_ISA {
namespace {

constexpr int kBins = 256;

// numpy's rule in float64: the quotient can round across an edge, so the edges themselves decide.
inline int32_t exact_bin(double v, const Mapping &m, const Bins &bins) {
    v = mapped(v, m);
    double b = (v - bins.low) * bins.factor;
    b = b > 0.0 ? b : 0.0;  // NaN too.
    b = b < kBins - 1.0 ? b : kBins - 1.0;
    b = static_cast<double>(static_cast<int32_t>(b));
    b -= v < b * bins.step + bins.low ? 1.0 : 0.0;
    b += v >= (b + 1.0) * bins.step + bins.low ? 1.0 : 0.0;
    b = b > 0.0 ? b : 0.0;
    b = b < kBins - 1.0 ? b : kBins - 1.0;
    return static_cast<int32_t>(b);
}

// The same bins by way of the voxels' own arithmetic, V, several times faster. With kParts = 2 half
// bins, 2 b and above the centre of bin b 2 b + 1: Otsu's threshold is a centre.
template <class V, int kParts = 1> class BinFinder {
  public:
    BinFinder(const Mapping &m, const Bins &bins, const double *centres = nullptr)
        : m_(m), bins_(bins), centres_(centres) {
        // The middle of the end parts: beyond the outer edges, and at them, where dark and saturated
        // voxels lie, nothing is close to an inner edge.
        const double factor = kParts * bins.factor;
        const auto inside = [](double v) { return std::min(std::max(v, 0.5), kAll - 0.5); };
        const double slope = m.scale * factor, origin = (m.offset - bins.low) * factor;
        factor_ = static_cast<V>(slope);
        shift_ = static_cast<V>(origin);
        low_ = static_cast<V>(inside((m.low - bins.low) * factor));
        high_ = static_cast<V>(inside((m.high - bins.low) * factor));
        // The rounding of factor, shift, product and sum in V, and of map, edges and quotient in
        // float64, all in parts; the margin is twice that.
        const double in_v =
            std::numeric_limits<V>::epsilon() * (1.5 * kAll + 1.5 * std::abs(origin));
        const double largest = std::abs(bins.low) + kBins * bins.step + std::abs(m.offset);
        const double error = in_v + 0x1p-50 * factor * largest + 0x1p-42;
        margin_ = static_cast<V>(2.0 * error);
        // No number that overflows or loses digits to underflow.
        usual_ = std::abs(slope) > 1e-30 && std::abs(slope) < 1e30 && error < 0.1;
    }

    void find(const V *values, int n, int32_t *out) {
        if (usual_ && find_inside(values, n, out)) return;
        int varied = 0;
        for (int i = 0; i < n; ++i) varied |= values[i] != last_;
        if (!varied) {  // A flat background on an edge.
            std::fill_n(out, n, last_bin_);
            return;
        }
        if (usual_) {
            find_by_edge(values, n, out);
        } else {
            for (int i = 0; i < n; ++i) out[i] = exact_bin(static_cast<double>(values[i]), m_, bins_);
        }
        for (int i = 0; kParts == 2 && i < n; ++i)
            out[i] = 2 * out[i] +
                     (mapped(static_cast<double>(values[i]), m_) > centres_[out[i]] ? 1 : 0);
        last_ = values[n - 1];
        last_bin_ = out[n - 1];
    }

  private:
    static_assert(kParts == 1 || kParts == 2, "whole bins or halves");
    static constexpr int kAll = kParts * kBins;

    // In parts from the lower edge.
    V position(V v) const {
        v = v * factor_ + shift_;
        v = v > low_ ? v : low_;  // NaN too.
        return v < high_ ? v : high_;
    }

    // False if some voxel lies too close to an edge.
    bool find_inside(const V *values, int n, int32_t *out) const {
        int close = 0;
        for (int i = 0; i < n; ++i) {
            const V at = position(values[i]);
            out[i] = static_cast<int32_t>(at);
            const V rest = at - static_cast<V>(out[i]);
            close |= (rest < margin_) | (rest > V{1} - margin_);
        }
        return close == 0;
    }

    // Only the nearest edge is in doubt, and is asked.
    void find_by_edge(const V *values, int n, int32_t *out) const {
        for (int i = 0; i < n; ++i) {
            const V at = position(values[i]) * (V{1} / kParts);
            const V nearest = static_cast<V>(static_cast<int32_t>(at + V{0.5}));
            double b = static_cast<double>(nearest);
            b -= mapped(static_cast<double>(values[i]), m_) < b * bins_.step + bins_.low ? 1.0 : 0.0;
            b = b > 0.0 ? b : 0.0;
            b = b < kBins - 1.0 ? b : kBins - 1.0;
            out[i] = static_cast<int32_t>(b);
        }
    }

    const Mapping m_;
    const Bins bins_;
    const double *const centres_;
    V factor_, shift_, low_, high_, margin_;
    bool usual_;
    V last_ = std::numeric_limits<V>::quiet_NaN();
    int32_t last_bin_ = 0;
};

// The counters of one thread.
class Histograms {
  public:
    Histograms(const Mapping &m, const Bins *bins, int64_t *counts)
        : m_(m), bins_(bins), counts_(counts) {}
    ~Histograms() {
        if (bins_) flush();
    }
    Histograms(const Histograms &) = delete;
    Histograms &operator=(const Histograms &) = delete;

    template <class V> void add(const V *x, const V *y, int count) {
        if ((pending_ += count) > kFlush) flush();
        BinFinder<V> bins_x(m_, bins_[0]), bins_y(m_, bins_[1]);
        for (int i = 0; i < count; i += kBlock) {
            const int n = std::min(kBlock, count - i);
            alignas(64) int32_t index_x[kBlock], index_y[kBlock];
            bins_x.find(x + i, n, index_x);
            bins_y.find(y + i, n, index_y);
            count_block(index_x, index_y, n);
        }
    }

  private:
    static constexpr int kBlock = 64;
    static constexpr int kCopies = 8;  // Of a counter: equal neighbours do not wait for each other.
    static constexpr int64_t kFlush = 1 << 30;  // Voxels before a 32-bit counter could overflow.

    void count_block(const int32_t *index_x, const int32_t *index_y, int n) {
        int i = 0;
        for (; i + kCopies <= n; i += kCopies)
            for (int copy = 0; copy < kCopies; ++copy) {
                ++counters_[0][index_x[i + copy]][copy];
                ++counters_[1][index_y[i + copy]][copy];
            }
        for (; i < n; ++i) {
            ++counters_[0][index_x[i]][0];
            ++counters_[1][index_y[i]][0];
        }
    }

    void flush() {
        pending_ = 0;
#ifdef _OPENMP
#pragma omp critical(mdf_volume_metrics)
#endif
        for (int which = 0; which < 2; ++which)
            for (int b = 0; b < kBins; ++b)
                for (uint32_t &counter : counters_[which][b]) {
                    counts_[which * kBins + b] += counter;
                    counter = 0;
                }
    }

    const Mapping m_;
    const Bins *bins_;
    int64_t *counts_;
    int64_t pending_ = 0;
    alignas(64) uint32_t counters_[2][kBins][kCopies] = {};
};

}  // namespace
}  // namespace mdf::MDF_ISA
