// The nanobind module `microdiffusion_fast._native`: arrays come in by DLPack without a copy, the GIL
// is released around every kernel. Arguments are checked by the Python side of each kernel; each
// kernel's folder binds its own functions.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "isa.h"

namespace nb = nanobind;

void bind_axial_projection(nb::module_ &m);
void bind_blended_step(nb::module_ &m);
void bind_counter_noise(nb::module_ &m);
void bind_hash_encoding(nb::module_ &m);
void bind_volume_metrics(nb::module_ &m);
void bind_windowed_ssim(nb::module_ &m);

NB_MODULE(_native, m) {
    m.doc() = "Native CPU kernels of microdiffusion_fast.";
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("isa", [] { return mdf::isa_name(mdf::current_isa()); },
          "The instruction set that the kernels run on: baseline, avx2 or avx512.");
    m.def("use_isa", &mdf::use_isa, nb::arg("name"),
          "Choose the instruction set, for tests and benchmarks: all give the same bits.");

    m.attr("kernels") = nb::make_tuple("axial_projection", "blended_step", "counter_noise",
                                       "hash_encoding", "volume_metrics", "windowed_ssim");
    bind_axial_projection(m);
    bind_blended_step(m);
    bind_counter_noise(m);
    bind_hash_encoding(m);
    bind_volume_metrics(m);
    bind_windowed_ssim(m);
}
