// Moments and extremes of a chunk of two volumes.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "volume_metrics/lanes.h"
#include "volume_metrics/mapping.h"

namespace mdf::MDF_ISA {
namespace {

class Moments {
  public:
    // The sums come first, in the order of the table's columns after `n`.
    enum { kX, kY, kXX, kYY, kXY, kSse, kSums, kLowX = kSums, kHighX, kLowY, kHighY, kAll };

    // Voxel i goes to lane i % kLanes: a tile that is not the last holds a multiple of kLanes.
    template <bool kMap, class V> void add(const V *x, const V *y, int count, const Mapping &m) {
        const int whole = count / kStep * kStep;
        add_lanes<kMap, true>(0, x, y, whole, m);
        for (int lane = kWidth; lane < kLanes; lane += kWidth)
            add_lanes<kMap, false>(lane, x, y, whole, m);
        for (int i = whole; i < count; ++i) {
            const int lane = i % kLanes;
            double total[kSums];
            for (int q = 0; q < kSums; ++q) total[q] = lanes_[q][lane];
            add_voxels<kMap>(total, x + i, y + i, m);
            for (int q = 0; q < kSums; ++q) lanes_[q][lane] = total[q];
            extend(x[i], low_x_, high_x_);
            extend(y[i], low_y_, high_y_);
        }
    }

    // The row of one chunk, extremes still unmapped.
    void store(double *row) const {
        for (int q = 0; q < kSums; ++q) {
            row[q] = 0.0;
            for (double value : lanes_[q]) row[q] += value;
        }
        row[kLowX] = low_x_;
        row[kHighX] = high_x_;
        row[kLowY] = low_y_;
        row[kHighY] = high_y_;
    }

  private:
    static constexpr double kInfinity = std::numeric_limits<double>::infinity();
    static constexpr int kStep = 16;  // A full vector of float32 on the widest set.

    template <bool kMap, class D, class V>
    static void add_voxels(D *total, const V *x, const V *y, const Mapping &m) {
        D a = widen<D>(x), b = widen<D>(y);
        if constexpr (kMap) {
            a = mapped(a, m);
            b = mapped(b, m);
        }
        const D difference = a - b;
        total[kX] += a;
        total[kY] += b;
        if constexpr (!kMap && std::is_same_v<V, float>) {
            // float64 holds the products of float32 values.
            total[kXX] = add_exact_product(a, a, total[kXX]);
            total[kYY] = add_exact_product(b, b, total[kYY]);
            total[kXY] = add_exact_product(a, b, total[kXY]);
        } else {
            total[kXX] += a * a;
            total[kYY] += b * b;
            total[kXY] += a * b;
        }
        total[kSse] += difference * difference;
    }

    // Of the voxels as they are stored: the map is monotone, rounding included, and can wait. NaN
    // loses every comparison; the sums have it.
    template <class T, class L> static void extend(T v, L &low, L &high) {
        low = v < low ? v : low;
        high = v > high ? v : high;
    }

    // The lanes from `lane` that fit into a Pack, over every kLanes-th voxel.
    template <bool kMap, bool kExtremes, class V>
    void add_lanes(int lane, const V *x, const V *y, int count, const Mapping &m) {
        using Full = typename FullOf<V>::type;
        constexpr int kFull = sizeof(Full) / sizeof(V);
        Pack total[kSums];
        for (int q = 0; q < kSums; ++q) total[q] = load<Pack>(lanes_[q] + lane);
        Full low_x = Full{} + static_cast<V>(kInfinity), high_x = -low_x;
        Full low_y = low_x, high_y = high_x;
        for (int i = 0; i < count; i += kStep) {
            for (int j = 0; kExtremes && j < kStep; j += kFull) {
                extend(load<Full>(x + i + j), low_x, high_x);
                extend(load<Full>(y + i + j), low_y, high_y);
            }
            for (int j = 0; j < kStep; j += kLanes)
                add_voxels<kMap>(total, x + i + lane + j, y + i + lane + j, m);
        }
        for (int q = 0; q < kSums; ++q) std::memcpy(lanes_[q] + lane, &total[q], sizeof(Pack));
        if constexpr (kExtremes) {
            keep<V>(low_x, high_x, low_x_, high_x_);
            keep<V>(low_y, high_y, low_y_, high_y_);
        }
    }

    template <class V, class Full>
    static void keep(const Full &lows, const Full &highs, double &low, double &high) {
        V values[sizeof(Full) / sizeof(V)];
        std::memcpy(values, &lows, sizeof lows);
        for (V value : values) low = std::min<double>(low, value);
        std::memcpy(values, &highs, sizeof highs);
        for (V value : values) high = std::max<double>(high, value);
    }

    alignas(64) double lanes_[kSums][kLanes] = {};
    double low_x_ = kInfinity, high_x_ = -kInfinity, low_y_ = kInfinity, high_y_ = -kInfinity;
};

}  // namespace
}  // namespace mdf::MDF_ISA
