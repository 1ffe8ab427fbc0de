#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "axial_projection/native.h"

namespace nb = nanobind;
using Input = nb::ndarray<nb::ro, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Factor = nb::ndarray<nb::ro, double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

namespace {

mdf::Voxel voxel_type(const Input &in, const Output &out) {
    const nb::dlpack::dtype dtype = in.dtype();
    const nb::dlpack::dtype bfloat16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
    if (dtype == out.dtype()) {
        if (dtype == nb::dtype<float>()) return mdf::Voxel::float32;
        if (dtype == nb::dtype<double>()) return mdf::Voxel::float64;
        if (dtype == bfloat16) return mdf::Voxel::bfloat16;
    }
    throw std::invalid_argument("volume: expected a dtype that this kernel reads");
}

using Kernel = void (*)(const void *, void *, mdf::Voxel, const mdf::AxialWindows &, const mdf::Band *,
                        int);

// `projections` and `volume` are `in` and `out`, or the other way round.
template <class P, class V>
void run(Kernel kernel, const Input &in, const Output &out, const P &projections, const V &volume,
         const std::vector<double> &weights, int64_t stride, int64_t start,
         const std::optional<Factor> &factor, int threads) {
    const auto size = [](size_t n) { return static_cast<int64_t>(n); };
    const mdf::AxialWindows windows{weights.data(),
                               size(weights.size()),
                               stride,
                               start,
                               size(projections.shape(0)),
                               size(volume.shape(0)),
                               size(volume.shape(1) * volume.shape(2))};
    const int64_t end = start + (windows.count - 1) * stride + windows.taps;
    if (projections.shape(1) != volume.shape(1) || projections.shape(2) != volume.shape(2) ||
        stride < 1 || start < 0 || windows.count < 1 || end > windows.depth ||
        (factor && factor->shape(0) != projections.shape(0)))
        throw std::invalid_argument("windows: expected windows that fit the volume");
    mdf::Band band{};
    if (factor) band = {factor->data(), size(factor->shape(1)) - 1};
    const mdf::Voxel voxel = voxel_type(in, out);
    const void *from = in.data();
    void *to = out.data();
    nb::gil_scoped_release release;
    kernel(from, to, voxel, windows, factor ? &band : nullptr, threads);
}

}  // namespace

void bind_axial_projection(nb::module_ &m) {
    m.def(
        "axial_project",
        [](Input x, Output y, const std::vector<double> &weights, int64_t stride, int64_t start,
           std::optional<Factor> factor, int threads) {
            run(MDF_PICK(axial_project), x, y, y, x, weights, stride, start, factor, threads);
        },
        nb::arg("x").noconvert(), nb::arg("y").noconvert(), nb::arg("weights"), nb::arg("stride"),
        nb::arg("start"), nb::arg("factor").noconvert().none(), nb::arg("threads"),
        "y = A x, or (A A^T)^-1 A x with the rows of a banded Cholesky factor.");
    m.def(
        "axial_backproject",
        [](Input y, Output x, const std::vector<double> &weights, int64_t stride, int64_t start,
           std::optional<Factor> factor, int threads) {
            run(MDF_PICK(axial_backproject), y, x, y, x, weights, stride, start, factor, threads);
        },
        nb::arg("y").noconvert(), nb::arg("x").noconvert(), nb::arg("weights"), nb::arg("stride"),
        nb::arg("start"), nb::arg("factor").noconvert().none(), nb::arg("threads"),
        "x = A^T y, or A^T (A A^T)^-1 y with the rows of a banded Cholesky factor.");
}
