#include "counter_noise/native.h"

#include <algorithm>

#include "counter_noise/normals.h"

namespace mdf::MDF_ISA {

void counter_noise(float *out, const NoiseKey &key, int threads) {
    constexpr int64_t kSegment = 1 << 14;  // Voxels per parallel work item.
    const int64_t voxels = key.shape[0] * key.shape[1] * key.shape[2];
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(std::max(threads, 1)) if (threads > 1)
#else
    (void)threads;
#endif
    for (int64_t from = 0; from < voxels; from += kSegment)
        fill_normals(out + from, from, std::min(kSegment, voxels - from), key);
}

}  // namespace mdf::MDF_ISA
