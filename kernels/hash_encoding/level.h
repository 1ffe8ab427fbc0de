// Cells and table rows of one level, shared by the point and grid kernels. Included by native.cpp
// alone, inside namespace mdf::MDF_ISA.
namespace {

constexpr int64_t kSlab = 1 << 22;  // Floats of results that wait to be interleaved.

// The smallest quotient estimate that one subtraction corrects: floor(2^32 / size).
struct Rows {
    explicit Rows(const HashLevel &level)
        : size(level.size),
          inverse(static_cast<uint32_t>((uint64_t{1} << 32) / level.size)),
          stride_y(level.hashed ? 2654435761u : level.resolution),
          stride_z(level.hashed ? 805459861u : level.resolution * level.resolution) {}

    // value mod size, for every 32-bit value: the estimate falls short by one at most.
    uint32_t wrap(uint32_t value) const {
        const uint32_t quotient =
            static_cast<uint32_t>((static_cast<uint64_t>(value) * inverse) >> 32);
        const uint32_t rest = value - quotient * size;
        return rest >= size ? rest - size : rest;
    }

    // Row of the vertex whose coordinates times the strides are x, y, z. A hashed level's size is a
    // power of two.
    template <bool hashed>
    uint32_t row(uint32_t x, uint32_t y, uint32_t z) const {
        return hashed ? (x ^ y ^ z) & (size - 1) : wrap(x + y + z);
    }

    uint32_t size, inverse, stride_y, stride_z;
};

// Lower vertex and fraction of a coordinate: product and sum in double, rounded once, as in
// reference.cell. A coordinate far outside [0, 1] still gives a row of the table.
inline void cell(float position, double scale, uint32_t &lower, float &fraction) {
    const float shifted = static_cast<float>(static_cast<double>(position) * scale + 0.5);
    const float below = std::floor(shifted);
    lower = static_cast<uint32_t>(static_cast<int32_t>(below));
    fraction = shifted - below;
}

// Results of a block of points, one level after the other (`distance` points apart), into rows of
// all levels. Kernels write by level first: a row of the result would be fetched for every level.
template <int F>
void interleave(float *out, const float *by_level, int64_t points, int64_t distance,
                int64_t n_levels) {
    for (int64_t i = 0; i < points; ++i)
        for (int64_t l = 0; l < n_levels; ++l) {
            std::memcpy(out, by_level + (l * distance + i) * F, F * sizeof(float));
            out += F;
        }
}

// The transpose of interleave.
template <int F>
void separate(float *by_level, const float *in, int64_t points, int64_t distance,
              int64_t n_levels) {
    for (int64_t i = 0; i < points; ++i)
        for (int64_t l = 0; l < n_levels; ++l) {
            std::memcpy(by_level + (l * distance + i) * F, in, F * sizeof(float));
            in += F;
        }
}

// Calls use(std::integral_constant<int, F>) for the number of features.
template <class Use>
void with_features(int n_features, Use use) {
    switch (n_features) {
        case 1: return use(std::integral_constant<int, 1>());
        case 2: return use(std::integral_constant<int, 2>());
        case 4: return use(std::integral_constant<int, 4>());
        case 8: return use(std::integral_constant<int, 8>());
    }
}

}  // namespace
