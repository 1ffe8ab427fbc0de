// Comparison of a mapped voxel with a threshold, without the map.
#pragma once

#include <cstring>
#include <limits>
#include <type_traits>

#include "volume_metrics/mapping.h"

namespace mdf::MDF_ISA {
namespace {

// The map is monotone, rounding included: `mapped(v) > threshold` is `v > limit` for one V, or
// `-v > limit` where the scale is negative.
template <class V> class Above {
  public:
    using Int = std::conditional_t<sizeof(V) == sizeof(float), int32_t, int64_t>;

    Above(double threshold, const Mapping &m) : sign_(m.scale < 0.0 ? V{-1} : V{1}) {
        // Bisection over all numbers in their order.
        Int below = -key(std::numeric_limits<V>::infinity()), above = -below;
        while (below + 1 < above) {
            const Int middle = below / 2 + above / 2 + (below % 2 + above % 2) / 2;
            const bool is_above = mapped(static_cast<double>(sign_ * value(middle)), m) > threshold;
            (is_above ? above : below) = middle;
        }
        limit_ = value(below);
    }

    Int operator()(V v) const { return sign_ * v > limit_; }

  private:
    // Neighbouring numbers have neighbouring keys: the bits of the magnitude, with the sign.
    static Int key(V magnitude) {
        Int bits;
        std::memcpy(&bits, &magnitude, sizeof bits);
        return bits;
    }
    static V value(Int key) {
        const Int bits = key < 0 ? -key : key;
        V magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        return key < 0 ? -magnitude : magnitude;
    }

    V sign_, limit_;
};

}  // namespace
}  // namespace mdf::MDF_ISA
