// Vectors of float64 of this instruction set's width. Reductions run in eight lanes on every set, in
// as many vectors as that takes, so that all add in the same order. (Compilers find the vectors in
// plain loops over eight accumulators on some sets and not on others.)
#pragma once

#include <cstring>

namespace mdf::MDF_ISA {
namespace {

constexpr int kLanes = 8;

#if defined(__GNUC__)
#if defined(__AVX512F__)
constexpr int kWidth = 8;
#elif defined(__AVX__)
constexpr int kWidth = 4;
#else
constexpr int kWidth = 2;
#endif
typedef double Pack __attribute__((vector_size(8 * kWidth)));
typedef float FloatPack __attribute__((vector_size(4 * kWidth)));
#else
constexpr int kWidth = 1;
typedef double Pack;
#endif

// The first voxels at `values`, as many as a D holds.
template <class D, class V> inline D load(const V *values) { return static_cast<D>(*values); }

#if defined(__GNUC__)
template <> inline Pack load<Pack, float>(const float *values) {
    FloatPack pack;
    std::memcpy(&pack, values, sizeof pack);
    return __builtin_convertvector(pack, Pack);
}
template <> inline Pack load<Pack, double>(const double *values) {
    Pack pack;
    std::memcpy(&pack, values, sizeof pack);
    return pack;
}
#endif

}  // namespace
}  // namespace mdf::MDF_ISA
