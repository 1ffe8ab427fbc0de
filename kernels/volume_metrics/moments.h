// Moments and extremes of a chunk of two volumes, in eight lanes of float64.
#pragma once

#include <algorithm>
#include <limits>

#include "volume_metrics/lanes.h"
#include "volume_metrics/mapping.h"

namespace mdf::MDF_ISA {
namespace {

class Moments {
  public:
    // The sums come first, in the order of the table's columns after `n`.
    enum { kX, kY, kXX, kYY, kXY, kSse, kSums, kLowX = kSums, kHighX, kLowY, kHighY, kAll };

    Moments() {
        constexpr double kInfinity = std::numeric_limits<double>::infinity();
        std::fill_n(lanes_[0], kSums * kLanes, 0.0);
        for (int quantity : {kLowX, kLowY}) std::fill_n(lanes_[quantity], kLanes, kInfinity);
        for (int quantity : {kHighX, kHighY}) std::fill_n(lanes_[quantity], kLanes, -kInfinity);
    }

    // Voxel i goes to lane i % kLanes: a tile that is not the last holds a multiple of kLanes.
    template <bool kMap, class V> void add(const V *x, const V *y, int count, const Mapping &m) {
        const int whole = count / kLanes * kLanes;
        for (int lane = 0; lane < kLanes; lane += kWidth)
            run<kMap, Pack>(lane, x, y, whole, m);
        for (int i = whole; i < count; ++i)
            run<kMap, double>(i - whole, x + whole, y + whole, 1, m);
    }

    // The row of one chunk, extremes still unmapped.
    void store(double *row) const {
        for (int q = 0; q < kSums; ++q) {
            row[q] = 0.0;
            for (double value : lanes_[q]) row[q] += value;
        }
        for (int q : {kLowX, kLowY}) row[q] = *std::min_element(lanes_[q], lanes_[q] + kLanes);
        for (int q : {kHighX, kHighY}) row[q] = *std::max_element(lanes_[q], lanes_[q] + kLanes);
    }

  private:
    // The lanes from `lane` that fit into a D, over every kLanes-th voxel.
    template <bool kMap, class D, class V>
    void run(int lane, const V *x, const V *y, int count, const Mapping &m) {
        D total[kAll];
        for (int q = 0; q < kAll; ++q) std::memcpy(&total[q], lanes_[q] + lane, sizeof(D));
        for (int i = lane; i < count + lane; i += kLanes) {
            D a = load<D>(x + i), b = load<D>(y + i);
            // The map is monotone, rounding included: it can wait until the extremes are known.
            total[kLowX] = a < total[kLowX] ? a : total[kLowX];
            total[kHighX] = a > total[kHighX] ? a : total[kHighX];
            total[kLowY] = b < total[kLowY] ? b : total[kLowY];
            total[kHighY] = b > total[kHighY] ? b : total[kHighY];
            if constexpr (kMap) {
                a = mapped(a, m);
                b = mapped(b, m);
            }
            const D difference = a - b;
            total[kX] += a;
            total[kY] += b;
            total[kXX] += a * a;
            total[kYY] += b * b;
            total[kXY] += a * b;
            total[kSse] += difference * difference;
        }
        for (int q = 0; q < kAll; ++q) std::memcpy(lanes_[q] + lane, &total[q], sizeof(D));
    }

    alignas(64) double lanes_[kAll][kLanes];
};

}  // namespace
}  // namespace mdf::MDF_ISA
