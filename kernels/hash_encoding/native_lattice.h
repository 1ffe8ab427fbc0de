// The lattice of vertices of one level that a voxel grid touches. Included by native.cpp alone.
namespace {

inline void prefetch(const float *address) {
#ifdef __GNUC__
    __builtin_prefetch(address);
#else
    (void)address;
#endif
}

// The vertices that the cells along an axis touch, and where in them the two of each voxel lie:
// `slot` and `slot + 1`. Never more than two a voxel, however fine the level. Interpolation starts
// from the nearer of the two, like torch.lerp, because it rounds less.
struct Axis {
    Axis(const float *positions, int64_t n, double scale)
        : slot(n), nearer(n), fraction(n), way(n) {
        for (int64_t i = 0; i < n; ++i) {
            uint32_t lower;
            cell(positions[i], scale, lower, fraction[i]);
            if (vertex.empty() || lower != vertex[vertex.size() - 2]) {
                if (vertex.empty() || lower != vertex.back()) vertex.push_back(lower);
                vertex.push_back(lower + 1);
            }
            slot[i] = static_cast<int>(vertex.size()) - 2;
            const bool upper = fraction[i] >= 0.5f;
            nearer[i] = slot[i] + upper;
            way[i] = upper ? fraction[i] - 1.0f : fraction[i];
        }
    }

    int64_t size() const { return static_cast<int64_t>(vertex.size()); }

    std::vector<uint32_t> vertex;
    std::vector<int> slot, nearer;
    std::vector<float> fraction, way;  // from the lower vertex; from the nearer one
};

// The weight in plane `plane` of the result of the vertices in `slot` along z.
struct Tap {
    int slot;
    int64_t plane;
    double weight;
};

struct Lattice {
    Lattice(const HashGrid &grid, const HashLevel &l)
        : level(l),
          rows(l),
          z(grid.axis[0], grid.extent[0], l.scale),
          y(grid.axis[1], grid.extent[1], l.scale),
          x(grid.axis[2], grid.extent[2], l.scale) {}

    // Interpolation along z times the axial weights, of planes [first, last), by slot, then plane.
    std::vector<Tap> taps(const HashGrid &grid, int64_t first, int64_t last) const {
        std::vector<Tap> all, merged;
        for (int64_t k = first; k < last; ++k)
            for (size_t i = 0; i < grid.weights.size(); ++i) {
                const size_t slice = grid.start + k * grid.stride + i;
                const float upper = z.fraction[slice], lower = 1.0f - upper;
                all.push_back({z.slot[slice], k, grid.weights[i] * lower});
                all.push_back({z.slot[slice] + 1, k, grid.weights[i] * upper});
            }
        std::stable_sort(all.begin(), all.end(), [](const Tap &a, const Tap &b) {
            return a.slot != b.slot ? a.slot < b.slot : a.plane < b.plane;
        });
        for (const Tap &tap : all) {
            if (!merged.empty() && merged.back().slot == tap.slot &&
                merged.back().plane == tap.plane)
                merged.back().weight += tap.weight;
            else
                merged.push_back(tap);
        }
        return merged;
    }

    // Rows within the level of the vertices along x at one place along y and z.
    void indices(uint32_t *index, int slot_z, int slot_y) const {
        const uint32_t at_y = y.vertex[slot_y] * rows.stride_y;
        const uint32_t at_z = z.vertex[slot_z] * rows.stride_z;
        const int64_t n = x.size();
        const uint32_t *vertex = x.vertex.data();
        if (level.hashed)
            for (int64_t i = 0; i < n; ++i) index[i] = rows.row<true>(vertex[i], at_y, at_z);
        else
            for (int64_t i = 0; i < n; ++i) index[i] = rows.row<false>(vertex[i], at_y, at_z);
    }

    HashLevel level;
    Rows rows;
    Axis z, y, x;
};

}  // namespace
