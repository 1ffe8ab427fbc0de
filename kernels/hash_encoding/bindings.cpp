#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>
#include <stdexcept>
#include <tuple>

#include "hash_encoding/native.h"

namespace nb = nanobind;

namespace {

template <class Type, int dims>
using Array = nb::ndarray<Type, nb::ndim<dims>, nb::c_contig, nb::device::cpu>;
using Rows = Array<float, 2>;
using ConstRows = Array<const float, 2>;
using Vector = Array<const float, 1>;
// scale, offset, size, resolution, hashed
using Levels = std::vector<std::tuple<double, int64_t, uint32_t, uint32_t, bool>>;
// weights, stride, start
using Windows = std::tuple<std::vector<double>, int64_t, int64_t>;

void expect(bool holds, const char *what) {
    if (!holds) throw std::invalid_argument(what);
}

// A large output is fresh memory, whose page faults cost as much as its encoding: asks for pages of
// 2 MB, which are filled six times faster. Below 32 MB the C library hands out memory again.
void want_large_pages(float *data, size_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t kPage = uintptr_t{1} << 21;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
    if (bytes > (size_t{32} << 20))
        madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);  // may be refused
#else
    (void)data, (void)bytes;
#endif
}

// The levels, checked against the table: nothing outside it is ever addressed.
template <class Table>
std::vector<mdf::HashLevel> checked(const Levels &levels, const Table &table) {
    std::vector<mdf::HashLevel> out;
    const int64_t rows = static_cast<int64_t>(table.shape(0));
    const size_t features = table.shape(1);
    expect(features == 1 || features == 2 || features == 4 || features == 8,
           "table: expected 1, 2, 4 or 8 features");
    for (const auto &[scale, offset, size, resolution, hashed] : levels) {
        expect(size > 0 && offset >= 0 && offset + size <= rows, "table: expected all levels");
        expect(!hashed || (size & (size - 1)) == 0, "levels: expected powers of two where hashed");
        out.push_back({scale, offset, size, resolution, hashed});
    }
    return out;
}

mdf::HashGrid checked(const Vector &z, const Vector &y, const Vector &x, const Windows &windows,
                      size_t planes) {
    const auto &[weights, stride, start] = windows;
    mdf::HashGrid grid{{z.data(), y.data(), x.data()},
                       {static_cast<int64_t>(z.shape(0)), static_cast<int64_t>(y.shape(0)),
                        static_cast<int64_t>(x.shape(0))},
                       static_cast<int64_t>(planes),
                       weights,
                       stride,
                       start};
    const int64_t taps = static_cast<int64_t>(weights.size());
    expect(taps > 0 && stride > 0 && start >= 0 && grid.planes > 0 &&
               start + (grid.planes - 1) * stride + taps <= grid.extent[0],
           "weights: expected windows inside the volume");
    expect(grid.extent[1] > 0 && grid.extent[2] > 0, "axes: expected no empty axis");
    return grid;
}

template <class Points, class Encoded>
void check_points(const Points &positions, const Encoded &encoded, const Levels &levels,
                  size_t features) {
    expect(positions.shape(1) == 3, "positions: expected [N, 3]");
    expect(encoded.shape(0) == positions.shape(0) && encoded.shape(1) == levels.size() * features,
           "encoded: expected [N, L*F]");
}

template <class Encoded>
void check_encoded(const Encoded &encoded, const Vector &y, const Vector &x, size_t features) {
    expect(encoded.shape(1) == y.shape(0) && encoded.shape(2) == x.shape(0) &&
               encoded.shape(3) == features,
           "encoded: expected [K, Y, X, L*F]");
}

}  // namespace

void bind_hash_encoding(nb::module_ &m) {
    m.def(
        "hash_points",
        [](Rows out, ConstRows positions, ConstRows table, const Levels &levels, int threads) {
            check_points(positions, out, levels, table.shape(1));
            const auto geometry = checked(levels, table);
            nb::gil_scoped_release release;
            want_large_pages(out.data(), out.nbytes());
            MDF_PICK(hash_points)(out.data(), positions.data(), positions.shape(0), table.data(),
                                  geometry, static_cast<int>(table.shape(1)), threads);
        },
        nb::arg("out").noconvert(), nb::arg("positions"), nb::arg("table"), nb::arg("levels"),
        nb::arg("threads"), "Encode positions [N, 3] into `out` [N, L*F].");

    m.def(
        "hash_points_backward_table",
        [](Rows grad_table, ConstRows grad, ConstRows positions, const Levels &levels,
           int threads) {
            check_points(positions, grad, levels, grad_table.shape(1));
            const auto geometry = checked(levels, grad_table);
            nb::gil_scoped_release release;
            MDF_PICK(hash_points_backward_table)(
                grad_table.data(), grad.data(), positions.data(), positions.shape(0), geometry,
                static_cast<int>(grad_table.shape(1)), threads);
        },
        nb::arg("grad_table").noconvert(), nb::arg("grad"), nb::arg("positions"),
        nb::arg("levels"), nb::arg("threads"),
        "Add the gradient of the table to `grad_table` [n_entries, F].");

    m.def(
        "hash_points_backward_positions",
        [](Rows out, ConstRows grad, ConstRows positions, ConstRows table, const Levels &levels,
           int threads) {
            check_points(positions, grad, levels, table.shape(1));
            check_points(out, grad, levels, table.shape(1));
            const auto geometry = checked(levels, table);
            nb::gil_scoped_release release;
            MDF_PICK(hash_points_backward_positions)(
                out.data(), grad.data(), positions.data(), positions.shape(0), table.data(),
                geometry, static_cast<int>(table.shape(1)), threads);
        },
        nb::arg("out").noconvert(), nb::arg("grad"), nb::arg("positions"), nb::arg("table"),
        nb::arg("levels"), nb::arg("threads"), "The gradient of the positions, into `out` [N, 3].");

    m.def(
        "hash_grid",
        [](Array<float, 4> out, Vector z, Vector y, Vector x, const Windows &windows,
           ConstRows table, const Levels &levels, int threads) {
            check_encoded(out, y, x, levels.size() * table.shape(1));
            const auto geometry = checked(levels, table);
            const auto grid = checked(z, y, x, windows, out.shape(0));
            nb::gil_scoped_release release;
            want_large_pages(out.data(), out.nbytes());
            MDF_PICK(hash_grid)(out.data(), grid, table.data(), geometry,
                                static_cast<int>(table.shape(1)), threads);
        },
        nb::arg("out").noconvert(), nb::arg("z"), nb::arg("y"), nb::arg("x"), nb::arg("windows"),
        nb::arg("table"), nb::arg("levels"), nb::arg("threads"),
        "Encode a voxel grid, or planes made of its slices, into `out` [K, Y, X, L*F].");

    m.def(
        "hash_grid_backward",
        [](Rows grad_table, Array<const float, 4> grad, Vector z, Vector y, Vector x,
           const Windows &windows, const Levels &levels, int threads) {
            check_encoded(grad, y, x, levels.size() * grad_table.shape(1));
            const auto geometry = checked(levels, grad_table);
            const auto grid = checked(z, y, x, windows, grad.shape(0));
            nb::gil_scoped_release release;
            MDF_PICK(hash_grid_backward)(grad_table.data(), grad.data(), grid, geometry,
                                         static_cast<int>(grad_table.shape(1)), threads);
        },
        nb::arg("grad_table").noconvert(), nb::arg("grad"), nb::arg("z"), nb::arg("y"),
        nb::arg("x"), nb::arg("windows"), nb::arg("levels"), nb::arg("threads"),
        "Add the gradient of the table to `grad_table` [n_entries, F].");
}
