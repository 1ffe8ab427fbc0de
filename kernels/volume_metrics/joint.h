// Counts of pairs of half bins: where one threshold a volume is known later, who is above which.
#pragma once

#include <vector>

#include "volume_metrics/histogram.h"

namespace mdf::MDF_ISA {
namespace {

// The counters of one thread: 1 MiB, of which volumes that resemble each other touch a diagonal.
class JointCounts {
  public:
    JointCounts(const Mapping &m, const Bins *bins, const double *centres, int64_t *counts)
        : m_(m), bins_(bins), centres_(centres), counts_(counts), counters_(kHalves * kHalves) {}
    ~JointCounts() { flush(); }
    JointCounts(const JointCounts &) = delete;
    JointCounts &operator=(const JointCounts &) = delete;

    template <class V> void add(const V *x, const V *y, int count) {
        if ((pending_ += count) > kFlush) flush();
        BinFinder<V, 2> bins_x(m_, bins_[0], centres_), bins_y(m_, bins_[1], centres_ + kBins);
        for (int i = 0; i < count; i += kBlock) {
            const int n = std::min(kBlock, count - i);
            alignas(64) int32_t index_x[kBlock], index_y[kBlock];
            bins_x.find(x + i, n, index_x);
            bins_y.find(y + i, n, index_y);
            count_block(index_x, index_y, n);
        }
    }

  private:
    static constexpr int kHalves = 2 * kBins, kBlock = 64;
    static constexpr int64_t kFlush = 1 << 30;  // Voxels before a 32-bit counter could overflow.

    void count_block(int32_t *index_x, const int32_t *index_y, int n) {
        int varied = 0;
        for (int i = 0; i < n; ++i) {
            index_x[i] = kHalves * index_x[i] + index_y[i];
            varied |= index_x[i] ^ index_x[0];
        }
        if (!varied) {  // Dark on dark: one counter, which every voxel would wait for.
            counters_[index_x[0]] += n;
            return;
        }
        for (int i = 0; i < n; ++i) ++counters_[index_x[i]];
    }

    void flush() {
        pending_ = 0;
#ifdef _OPENMP
#pragma omp critical(mdf_volume_metrics)
#endif
        for (size_t i = 0; i < counters_.size(); ++i) counts_[i] += counters_[i];
        std::fill(counters_.begin(), counters_.end(), 0u);
    }

    const Mapping m_;
    const Bins *bins_;
    const double *centres_;
    int64_t *counts_;
    int64_t pending_ = 0;
    std::vector<uint32_t> counters_;
};

}  // namespace
}  // namespace mdf::MDF_ISA
