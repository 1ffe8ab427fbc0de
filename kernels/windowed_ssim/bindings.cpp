#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_windowed_ssim(nb::module_ &) {}
