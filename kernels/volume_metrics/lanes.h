// Vectors of this instruction set's width. Sums run in eight lanes of float64 on every set, in as
// many vectors as that takes, so that all add in the same order. (Compilers find the vectors in plain
// loops over eight accumulators on some sets and not on others.)
#pragma once

#include <cstring>

#if defined(__GNUC__) && defined(__FMA__)
#include <immintrin.h>
#endif

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
typedef float HalfPack __attribute__((vector_size(4 * kWidth)));
typedef float FloatPack __attribute__((vector_size(8 * kWidth)));
#else
constexpr int kWidth = 1;
typedef double Pack;
typedef float FloatPack;
#endif

// A full vector of V.
template <class V> struct FullOf;
template <> struct FullOf<float> { typedef FloatPack type; };
template <> struct FullOf<double> { typedef Pack type; };

// The bytes of a D at `values`.
template <class D, class V> inline D load(const V *values) {
    D pack;
    std::memcpy(&pack, values, sizeof pack);
    return pack;
}

// As many voxels from `values` on as a D holds, in float64.
template <class D, class V> inline D widen(const V *values) { return static_cast<D>(*values); }
#if defined(__GNUC__)
template <> inline Pack widen<Pack, double>(const double *values) { return load<Pack>(values); }
template <> inline Pack widen<Pack, float>(const float *values) {
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(load<HalfPack>(values));  // GCC would convert it in two halves.
#else
    return __builtin_convertvector(load<HalfPack>(values), Pack);
#endif
}
#endif

// a * b + sum of an exact product a * b: the same bits with and without fusion.
template <class D> inline D add_exact_product(D a, D b, D sum) { return a * b + sum; }
#if defined(__GNUC__) && defined(__AVX512F__)
template <> inline Pack add_exact_product(Pack a, Pack b, Pack sum) {
    return _mm512_fmadd_pd(a, b, sum);
}
#elif defined(__GNUC__) && defined(__FMA__)
template <> inline Pack add_exact_product(Pack a, Pack b, Pack sum) {
    return _mm256_fmadd_pd(a, b, sum);
}
#endif

}  // namespace
}  // namespace mdf::MDF_ISA
