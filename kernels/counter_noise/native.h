// counter_noise on the CPU; the contract is in reference.py.
#pragma once

#include <array>
#include <cstdint>

namespace mdf {

using Extent = std::array<int64_t, 3>;  // z, y, x

// Fills out[shape] with the block at `offset` of the standard normals of a `volume`-shaped grid.
// The values do not depend on `threads`.
void counter_noise(float *out, const Extent &shape, const Extent &offset, const Extent &volume,
                   uint64_t seed, uint32_t step, uint32_t stream, int threads);

}  // namespace mdf
