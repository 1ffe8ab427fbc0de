#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>

#include <stdexcept>

#include "windowed_ssim/native.h"

namespace nb = nanobind;
using Volume = nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu>;
using Sums = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

namespace {

constexpr nb::dlpack::dtype kBFloat16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};

mdf::SsimVolume view(const Volume &volume) {
    if (volume.stride(2) != 1) throw std::invalid_argument("volume: expected contiguous rows");
    mdf::SsimType type;
    if (volume.dtype() == nb::dtype<float>()) {
        type = mdf::SsimType::float32;
    } else if (volume.dtype() == nb::dtype<double>()) {
        type = mdf::SsimType::float64;
    } else if (volume.dtype() == kBFloat16) {
        type = mdf::SsimType::bfloat16;
    } else if (volume.dtype() == nb::dtype<uint8_t>()) {
        type = mdf::SsimType::uint8;
    } else if (volume.dtype() == nb::dtype<uint16_t>()) {
        type = mdf::SsimType::uint16;
    } else {
        throw nb::type_error("volume: expected float32, float64, bfloat16, uint8, uint16");
    }
    return {volume.data(), type, volume.stride(0), volume.stride(1)};
}

}  // namespace

void bind_windowed_ssim(nb::module_ &m) {
    m.def(
        "windowed_ssim",
        [](Sums sums, const Volume &reference, const Volume &test, bool gaussian, bool cubic,
           std::array<double, 11> taps, std::array<double, 3> constants, std::array<double, 4> map,
           int threads) {
            const mdf::SsimVolume x = view(reference), y = view(test);
            const int64_t window = gaussian ? 11 : 7, depth = cubic ? window : 1;
            std::array<int64_t, 3> shape;
            for (size_t i = 0; i < 3; ++i) {
                shape[i] = static_cast<int64_t>(reference.shape(i));
                if (test.shape(i) != reference.shape(i) || shape[i] < (i == 0 ? depth : window))
                    throw std::invalid_argument("test: expected the reference's shape, no smaller "
                                                "than the window");
            }
            if (static_cast<int64_t>(sums.shape(0)) != shape[0] - depth + 1)
                throw std::invalid_argument("sums: expected one value a plane of windows");
            const mdf::SsimOptions options = {gaussian,     cubic,        taps,   constants[0],
                                              constants[1], constants[2], map[0], map[1],
                                              map[2],       map[3]};
            double *out = sums.data();
            nb::gil_scoped_release release;
            MDF_PICK(windowed_ssim)(out, x, y, shape, options, threads);
        },
        nb::arg("sums").noconvert(), nb::arg("reference").noconvert(),
        nb::arg("test").noconvert(), nb::arg("gaussian"), nb::arg("cubic"), nb::arg("taps"),
        nb::arg("constants"), nb::arg("map"), nb::arg("threads"),
        "Fill `sums` with the sum of the SSIM map of every plane of windows; constants: C1, C2 and "
        "the covariance norm; map: scale, offset, low, high.");
}
