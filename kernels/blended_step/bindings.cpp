#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_blended_step(nb::module_ &) {}
