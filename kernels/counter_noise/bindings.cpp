#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>

#include <stdexcept>

#include "counter_noise/native.h"
#include "philox.h"

namespace nb = nanobind;
using Volume = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Words2 = std::array<uint32_t, 2>;
using Words4 = std::array<uint32_t, 4>;

void bind_counter_noise(nb::module_ &m) {
    m.def(
        "philox4x32",
        [](Words4 c, Words2 key) {
            mdf::philox4x32_10(c[0], c[1], c[2], c[3], key[0], key[1]);
            return c;
        },
        nb::arg("counter"), nb::arg("key"), "Philox4x32-10 of one counter.");

    m.def(
        "counter_noise",
        [](Volume out, mdf::Extent offset, mdf::Extent volume, uint64_t seed, uint32_t step,
           uint32_t stream, int threads) {
            mdf::NoiseKey key{seed, step, stream, {}, offset, volume};
            for (size_t i = 0; i < 3; ++i) {
                key.shape[i] = static_cast<int64_t>(out.shape(i));
                if (offset[i] < 0 || offset[i] > volume[i] - key.shape[i])
                    throw std::invalid_argument("offset: expected the block inside the volume");
            }
            float *data = out.data();
            nb::gil_scoped_release release;
            MDF_PICK(counter_noise)(data, key, threads);
        },
        nb::arg("out").noconvert(), nb::arg("offset"), nb::arg("volume"), nb::arg("seed"),
        nb::arg("step"), nb::arg("stream"), nb::arg("threads"),
        "Fill `out` with the block at `offset` of a volume's standard normals.");
}
