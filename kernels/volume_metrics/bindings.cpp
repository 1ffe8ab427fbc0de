#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_volume_metrics(nb::module_ &) {}
