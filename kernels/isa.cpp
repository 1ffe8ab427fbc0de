#include "isa.h"

#include <stdexcept>

namespace mdf {
namespace {

bool has(Isa isa) {
    if (isa == Isa::baseline) return true;
#ifdef MDF_X86
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    return isa == Isa::avx2 ? v3 : v3 && v4;
#else
    return false;
#endif
}

Isa best() { return has(Isa::avx512) ? Isa::avx512 : has(Isa::avx2) ? Isa::avx2 : Isa::baseline; }

Isa &chosen() {
    static Isa isa = best();
    return isa;
}

}  // namespace

Isa current_isa() { return chosen(); }

const char *isa_name(Isa isa) {
    return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

void use_isa(const std::string &name) {
    for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
        if (name != isa_name(isa)) continue;
        if (!has(isa)) throw std::invalid_argument("isa: expected one of this machine, got " + name);
        chosen() = isa;
        return;
    }
    throw std::invalid_argument("isa: expected baseline, avx2 or avx512, got " + name);
}

}  // namespace mdf
