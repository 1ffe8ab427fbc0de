// The map from stored to compared values.
#pragma once

#include "volume_metrics/native.h"

namespace mdf::MDF_ISA {
namespace {

// Every lane of v, a number or a vector of them, mapped and clipped; NaN stays NaN.
template <class D> inline D mapped(D v, const Mapping &m) {
    v = v * m.scale + m.offset;
    const D low = D{} + m.low, high = D{} + m.high;
    v = low > v ? low : v;
    return high < v ? high : v;
}

}  // namespace
}  // namespace mdf::MDF_ISA
