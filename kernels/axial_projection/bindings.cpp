#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_axial_projection(nb::module_ &) {}
