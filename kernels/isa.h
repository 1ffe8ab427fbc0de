// One build, several instruction sets: CMake compiles every native.cpp once per set, with MDF_ISA as
// the namespace of that copy, and the module picks the best one that this machine has.
//
//   native.h     MDF_NATIVE(counter_noise, float *out, ...);      declares every copy
//   native.cpp   namespace mdf::MDF_ISA { void counter_noise(float *out, ...) { ... } }
//   bindings     MDF_PICK(counter_noise)(out, ...);
//
// Contraction to fused multiply-add is off and no loop is reassociated, so all copies give the same
// bits. Helpers in a native.cpp belong in an anonymous namespace or in MDF_ISA: an inline function of
// external linkage, compiled for AVX-512, could otherwise be the one that the linker keeps for all.
#pragma once

#include <string>

namespace mdf {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// What the kernels run on: the best set of this machine, or what `use_isa` chose.
Isa current_isa();
const char *isa_name(Isa isa);
// Throws std::invalid_argument for a set that this build or this machine does not have.
void use_isa(const std::string &name);

}  // namespace mdf

#ifdef MDF_X86
#define MDF_NATIVE(name, ...)               \
    namespace mdf::baseline {               \
    void name(__VA_ARGS__);                 \
    }                                       \
    namespace mdf::avx2 {                   \
    void name(__VA_ARGS__);                 \
    }                                       \
    namespace mdf::avx512 {                 \
    void name(__VA_ARGS__);                 \
    }
#define MDF_PICK(name)                                                  \
    (mdf::current_isa() == mdf::Isa::avx512   ? &mdf::avx512::name      \
     : mdf::current_isa() == mdf::Isa::avx2   ? &mdf::avx2::name        \
                                              : &mdf::baseline::name)
#else
#define MDF_NATIVE(name, ...)               \
    namespace mdf::baseline {               \
    void name(__VA_ARGS__);                 \
    }
#define MDF_PICK(name) (&mdf::baseline::name)
#endif
