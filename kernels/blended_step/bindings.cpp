#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "blended_step/native.h"

namespace nb = nanobind;
// seed, step, stream, offset, volume
using Key = std::tuple<uint64_t, uint32_t, uint32_t, mdf::Extent, mdf::Extent>;
using Volume = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu>;

using Part = std::optional<Volume>;

namespace {

mdf::Extent shape_of(const Volume &volume) {
    return {static_cast<int64_t>(volume.shape(0)), static_cast<int64_t>(volume.shape(1)),
            static_cast<int64_t>(volume.shape(2))};
}

mdf::Array array(const Part &volume, const mdf::Extent &shape) {
    if (!volume) return {};
    if (shape_of(*volume) != shape)
        throw std::invalid_argument("volumes: expected those of a step to fit each other");
    const bool half = volume->dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat);
    if (!half && volume->dtype() != nb::dtype<float>())
        throw std::invalid_argument("volumes: expected float32 or bfloat16");
    return {volume->data(), half};
}

// A plain mean is the sum times its weight, as in the reference.
mdf::Windows windows_of(const std::vector<double> &weights, double norm, int64_t stride,
                        int64_t start, int64_t count, int64_t depth) {
    const int64_t slices = static_cast<int64_t>(weights.size());
    if (start < 0 || (count > 1 && stride < slices) ||
        start + (count - 1) * stride + slices > depth)
        throw std::invalid_argument("start: expected disjoint windows inside x");
    mdf::Windows windows{{weights.begin(), weights.end()}, {}, 1.0f, static_cast<float>(norm),
                         stride, start, count};
    windows.taps = windows.weights;
    if (stride == slices && std::count(weights.begin(), weights.end(), weights[0]) == slices) {
        windows.scale = windows.weights[0];
        std::fill(windows.taps.begin(), windows.taps.end(), 1.0f);
    }
    return windows;
}

}  // namespace

void bind_blended_step(nb::module_ &m) {
    m.def(
        "blended_step",
        [](Volume x, Volume prior, Volume cond, Part uncond, Part noise, Part history,
           Part projections, const std::array<double, 11> &row, const std::optional<Key> &key,
           const std::vector<double> &weights, double norm, int64_t stride, int64_t start,
           int threads) {
            mdf::Step step{};
            mdf::StepRow &r = step.row;
            step.shape = shape_of(x);
            step.x = array(x, step.shape);
            step.prior = array(prior, step.shape);
            step.cond = array(cond, step.shape);
            step.uncond = array(uncond, step.shape);
            step.noise = array(noise, step.shape);
            step.history = array(history, step.shape);
            float *const fields[] = {&r.p, &r.q, &r.w, &r.low, &r.high, &r.trust,
                                     &r.a, &r.b, &r.c, &r.d, &r.gamma};
            for (size_t i = 0; i < row.size(); ++i) *fields[i] = static_cast<float>(row[i]);
            if (projections) {
                const int64_t count = static_cast<int64_t>(projections->shape(0));
                step.projections = array(projections, {count, step.shape[1], step.shape[2]});
                step.windows = windows_of(weights, norm, stride, start, count, step.shape[0]);
            }
            step.draws = key.has_value();
            if (key) {
                const auto &[seed, word, stream, offset, volume] = *key;
                step.key = {seed, word, stream, step.shape, offset, volume};
                for (size_t i = 0; i < 3; ++i)
                    if (offset[i] < 0 || offset[i] > volume[i] - step.shape[i])
                        throw std::invalid_argument("offset: expected the block inside the volume");
            }
            nb::gil_scoped_release release;
            MDF_PICK(blended_step)(step, threads);
        },
        nb::arg("x"), nb::arg("prior"), nb::arg("cond"), nb::arg("uncond").none(),
        nb::arg("noise").none(), nb::arg("history").none(), nb::arg("projections").none(),
        nb::arg("row"), nb::arg("key").none(), nb::arg("weights"), nb::arg("norm"),
        nb::arg("stride"), nb::arg("start"), nb::arg("threads"),
        "Advance `x` (and `history`) by one step, in place; float32 or bfloat16, C-contiguous.");
}
