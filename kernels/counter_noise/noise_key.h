#pragma once

#include <array>
#include <cstdint>

namespace mdf {

using Extent = std::array<int64_t, 3>;  // z, y, x

// Whose noise: that of the block of `shape` at `offset` of a volume. See counter_noise/reference.py.
struct NoiseKey {
    uint64_t seed;
    uint32_t step, stream;
    Extent shape, offset, volume;
};

}  // namespace mdf
