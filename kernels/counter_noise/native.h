#pragma once

#include <array>
#include <cstdint>

#include "isa.h"

namespace mdf {
using Extent = std::array<int64_t, 3>;  // z, y, x
}

// Fills the C-contiguous block `out` of `shape` with the standard normals of its place, `offset`, in
// `volume`. The same bits for any number of threads, on every machine. See counter_noise/reference.py.
MDF_NATIVE(counter_noise, float *out, const Extent &shape, const Extent &offset,
           const Extent &volume, uint64_t seed, uint32_t step, uint32_t stream, int threads)
