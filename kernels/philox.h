// Philox4x32-10, the counter-based generator that keys noise to voxels.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

namespace mdf {
namespace {

// Ten rounds on the four words of one counter, in place. Branch-free on plain scalars, so that a
// loop over counters vectorises once this is inlined. The words travel in the low 32 bits of `Lane`,
// uint32_t or uint64_t; the high bits of the latter are garbage, before and after.
template <class Lane>
inline void philox4x32_10(Lane &c0, Lane &c1, Lane &c2, Lane &c3, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53u} * static_cast<uint32_t>(c0);
        const uint64_t p1 = uint64_t{0xCD9E8D57u} * static_cast<uint32_t>(c2);
        const Lane n0 = static_cast<Lane>(p1 >> 32) ^ c1 ^ k0;
        const Lane n2 = static_cast<Lane>(p0 >> 32) ^ c3 ^ k1;
        c1 = static_cast<Lane>(p1);
        c3 = static_cast<Lane>(p0);
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

}  // namespace
}  // namespace mdf
