#pragma once

#include <cstdint>

#include "counter_noise/noise_key.h"
#include "isa.h"

// Fills the C-contiguous block `out` of `key.shape` with the standard normals of its place in the
// volume. The same bits for any number of threads, on every machine.
MDF_NATIVE(counter_noise, float *out, const NoiseKey &key, int threads)
