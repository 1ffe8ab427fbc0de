#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_hash_encoding(nb::module_ &) {}
