#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include <array>
#include <limits>
#include <optional>
#include <stdexcept>

#include "volume_metrics/native.h"

namespace nb = nanobind;
using Input = nb::ndarray<nb::ro, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Centres = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Clip = std::optional<std::array<double, 2>>;
using BinArguments = std::array<std::array<double, 3>, 2>;

namespace {

mdf::Volume volume(const Input &array) {
    const nb::dlpack::dtype dtype = array.dtype();
    const nb::dlpack::dtype bfloat16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
    for (auto [known, pixel] : {std::pair{nb::dtype<uint8_t>(), mdf::Pixel::uint8},
                                {nb::dtype<int16_t>(), mdf::Pixel::int16},
                                {nb::dtype<uint16_t>(), mdf::Pixel::uint16},
                                {bfloat16, mdf::Pixel::bfloat16},
                                {nb::dtype<float>(), mdf::Pixel::float32},
                                {nb::dtype<double>(), mdf::Pixel::float64}})
        if (dtype == known) return {array.data(), pixel};
    throw std::invalid_argument("volume: expected a dtype that this kernel reads");
}

mdf::Mapping mapping(double scale, double offset, const Clip &clip) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const auto [low, high] = clip.value_or(std::array{-kInfinity, kInfinity});
    return {scale, offset, low, high, scale == 1.0 && offset == 0.0 && !clip};
}

std::array<mdf::Bins, 2> of_both(const BinArguments &bins) {
    const auto &[x, y] = bins;
    return {{{x[0], x[1], x[2]}, {y[0], y[1], y[2]}}};
}

void check_shapes(const Input &x, const Input &y, bool outputs_fit) {
    for (size_t axis = 0; axis < 3; ++axis) outputs_fit &= x.shape(axis) == y.shape(axis);
    if (!outputs_fit) throw std::invalid_argument("volumes, outputs: expected shapes that agree");
}

}  // namespace

void bind_volume_metrics(nb::module_ &m) {
    m.def(
        "volume_metrics",
        [](Input x, Input y, double scale, double offset, Clip clip,
           std::optional<BinArguments> bins, std::optional<Table> table,
           Counts counts, int threads) {
            check_shapes(x, y, counts.size() == 512 && (!table || table->shape(0) == x.shape(0)));
            const auto both = of_both(bins.value_or(BinArguments{}));
            const auto a = volume(x), b = volume(y);
            const auto map = mapping(scale, offset, clip);
            const auto slices = static_cast<int64_t>(x.shape(0));
            const auto voxels = static_cast<int64_t>(x.shape(1) * x.shape(2));
            double *rows = table ? table->data() : nullptr;
            int64_t *out = counts.data();
            nb::gil_scoped_release release;
            MDF_PICK(volume_metrics)(a, b, slices, voxels, map, bins ? both.data() : nullptr,
                                     rows, out, threads);
        },
        nb::arg("reference").noconvert(), nb::arg("test").noconvert(), nb::arg("scale"),
        nb::arg("offset"), nb::arg("clip").none(), nb::arg("bins").none(),
        nb::arg("table").none(), nb::arg("counts").noconvert(), nb::arg("threads"),
        "Per-slice sums into `table` [Z, 11], histograms added to `counts` [2, 256].");

    m.def(
        "overlap_counts",
        [](Input x, Input y, double threshold_x, double threshold_y, double scale, double offset,
           Clip clip, Counts counts, int threads) {
            check_shapes(x, y, counts.shape(0) == x.shape(0) && counts.shape(1) == 3);
            const auto a = volume(x), b = volume(y);
            const auto map = mapping(scale, offset, clip);
            const auto slices = static_cast<int64_t>(x.shape(0));
            const auto voxels = static_cast<int64_t>(x.shape(1) * x.shape(2));
            int64_t *out = counts.data();
            nb::gil_scoped_release release;
            MDF_PICK(overlap_counts)(a, b, slices, voxels, map, threshold_x, threshold_y, out,
                                     threads);
        },
        nb::arg("reference").noconvert(), nb::arg("test").noconvert(), nb::arg("threshold_x"),
        nb::arg("threshold_y"), nb::arg("scale"), nb::arg("offset"), nb::arg("clip").none(),
        nb::arg("counts").noconvert(), nb::arg("threads"),
        "Voxels above the thresholds, added to `counts` [Z, 3].");

    m.def(
        "joint_counts",
        [](Input x, Input y, double scale, double offset, Clip clip, BinArguments bins,
           Centres centres, Counts counts, int threads) {
            check_shapes(x, y, centres.size() == 512 && counts.size() == 512 * 512);
            const auto both = of_both(bins);
            const auto a = volume(x), b = volume(y);
            const auto map = mapping(scale, offset, clip);
            const auto slices = static_cast<int64_t>(x.shape(0));
            const auto voxels = static_cast<int64_t>(x.shape(1) * x.shape(2));
            const double *middle = centres.data();
            int64_t *out = counts.data();
            nb::gil_scoped_release release;
            MDF_PICK(joint_counts)(a, b, slices, voxels, map, both.data(), middle, out, threads);
        },
        nb::arg("reference").noconvert(), nb::arg("test").noconvert(), nb::arg("scale"),
        nb::arg("offset"), nb::arg("clip").none(), nb::arg("bins"),
        nb::arg("centres").noconvert(), nb::arg("counts").noconvert(), nb::arg("threads"),
        "Voxels in every pair of half bins, added to `counts` [512, 512].");
}
