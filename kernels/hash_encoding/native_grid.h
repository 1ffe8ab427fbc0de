// Voxel grids: a lattice vertex is looked up once, then interpolated along x, y and z in turn; the
// backward pass runs the same steps transposed. Included by native.cpp alone.
namespace {

constexpr int64_t kBand = 16;       // Rows of a work item.
constexpr int64_t kDepth = 8;       // Planes of a slab at least: they share lattice planes.
constexpr int64_t kItem = 1 << 17;  // Gradients of an item, which stay in the L2 cache.

// A work item: planes [k0, k1) of the result, rows [y0, y1).
struct Item {
    int64_t height() const { return y1 - y0; }
    int64_t rows() const { return (k1 - k0) * height(); }

    int64_t k0, k1, y0, y1;
};

struct Plan {
    Plan(const HashGrid &g, const std::vector<HashLevel> &levels, int n_features)
        : grid(g), stride(static_cast<int64_t>(levels.size()) * n_features) {
        for (const HashLevel &level : levels) lattices.emplace_back(g, level);
    }

    // The result in slabs of about `floats`, at least `planes` deep and kBand rows high.
    std::vector<Item> slabs(int64_t floats, int64_t planes) const {
        const int64_t line = grid.extent[2] * stride;
        const int64_t rows = std::max(kBand, floats / (planes * line) / kBand * kBand);
        const int64_t height = std::min(rows, grid.extent[1]);
        const int64_t depth = std::max(planes, floats / (height * line));
        std::vector<Item> items;
        for (int64_t k = 0; k < grid.planes; k += depth)
            for (int64_t y = 0; y < grid.extent[1]; y += height)
                items.push_back({k, std::min(grid.planes, k + depth), y,
                                 std::min(grid.extent[1], y + height)});
        return items;
    }

    // First of the L*F features of a row of the result.
    int64_t at(int64_t plane, int64_t y) const {
        return (plane * grid.extent[1] + y) * grid.extent[2] * stride;
    }

    const HashGrid &grid;
    int64_t stride;
    std::vector<Lattice> lattices;
};

struct Scratch {
    Scratch(const Plan &plan, int n_features) : row(plan.grid.extent[2] * n_features) {
        size_t widest = 0;
        for (const Lattice &lattice : plan.lattices)
            widest = std::max(widest, lattice.x.vertex.size());
        for (auto &ring_index : index) ring_index.resize(widest);
        entries.resize(widest * n_features);
        for (auto &ring_row : ring) ring_row.resize(row.size());
        for (auto &sum : sums) sum.resize(row.size());
        row_sum.resize(row.size());
        line_sum.resize(entries.size());
    }

    // Lattice rows that are needed together lie side by side: the parity of their slot tells which.
    std::vector<uint32_t> index[2];
    std::vector<float> entries, row, ring[2];
    std::vector<double> row_sum, line_sum, sums[2];  // of the backward pass
};

// Finds the table rows of one lattice row and asks the memory for them.
template <int F>
void look_up(const float *table, const Lattice &lattice, int slot_z, int slot_y,
             std::vector<uint32_t> &index) {
    lattice.indices(index.data(), slot_z, slot_y);
    for (int64_t i = 0; i < lattice.x.size(); i += 8 / F)  // neighbours share cache lines
        prefetch(table + static_cast<size_t>(index[i]) * F);
}

// Interpolates a lattice row that was looked up, to [X, F].
template <int F>
void along_x(const float *table, const Lattice &lattice, int slot_y, Scratch &scratch) {
    const uint32_t *index = scratch.index[slot_y & 1].data();
    float *entries = scratch.entries.data(), *out = scratch.ring[slot_y & 1].data();
    const int64_t vertices = lattice.x.size();
    for (int64_t i = 0; i < vertices; ++i)
        std::memcpy(entries + i * F, table + static_cast<size_t>(index[i]) * F, F * sizeof(float));
    const int *slot = lattice.x.slot.data(), *nearer = lattice.x.nearer.data();
    const float *way = lattice.x.way.data();
    const int64_t n = static_cast<int64_t>(lattice.x.slot.size());
    for (int64_t i = 0; i < n; ++i) {
        const float *lower = entries + static_cast<int64_t>(slot[i]) * F, *upper = lower + F;
        const float *from = entries + static_cast<int64_t>(nearer[i]) * F;
        float value[F];
        for (int f = 0; f < F; ++f) value[f] = from[f] + (upper[f] - lower[f]) * way[i];
        std::memcpy(out + i * F, value, sizeof value);
    }
}

// use(y, row) with the features [X, F] of each row of one lattice plane along z.
template <int F, class Use>
void for_rows(const float *table, const Lattice &lattice, int slot_z, const Item &item,
              Scratch &scratch, Use use) {
    const int64_t length = static_cast<int64_t>(scratch.row.size());
    float *row = scratch.row.data();
    int next = lattice.y.slot[item.y0];
    const int last = lattice.y.slot[item.y1 - 1] + 1;
    look_up<F>(table, lattice, slot_z, next, scratch.index[next & 1]);
    for (int64_t y = item.y0; y < item.y1; ++y) {
        const int slot = lattice.y.slot[y];
        for (; next <= slot + 1; ++next) {
            if (next < last)
                look_up<F>(table, lattice, slot_z, next + 1, scratch.index[(next + 1) & 1]);
            along_x<F>(table, lattice, next, scratch);
        }
        const float *lower = scratch.ring[slot & 1].data(),
                    *upper = scratch.ring[(slot + 1) & 1].data();
        const float *from = lattice.y.nearer[y] == slot ? lower : upper;
        const float way = lattice.y.way[y];
        for (int64_t i = 0; i < length; ++i) row[i] = from[i] + (upper[i] - lower[i]) * way;
        use(y, row);
    }
}

// The band of a slab [planes, rows, X, F] of one level.
template <int F>
void encode_band(float *out, const Plan &plan, const Item &slab, const Item &band, int64_t l,
                 const float *table, Scratch &scratch) {
    const Lattice &lattice = plan.lattices[l];
    const int64_t length = plan.grid.extent[2] * F;
    const auto row_of = [&](int64_t plane, int64_t y) {
        return out + ((plane - slab.k0) * slab.height() + y - slab.y0) * length;
    };
    for (int64_t k = band.k0; k < band.k1; ++k)
        std::fill(row_of(k, band.y0), row_of(k, band.y1), 0.0f);
    const std::vector<Tap> taps = lattice.taps(plan.grid, band.k0, band.k1);
    for (size_t first = 0, last; first < taps.size(); first = last) {
        for (last = first; last < taps.size() && taps[last].slot == taps[first].slot;) ++last;
        for_rows<F>(table, lattice, taps[first].slot, band, scratch, [&](int64_t y, float *row) {
            for (size_t t = first; t < last; ++t) {
                float *to = row_of(taps[t].plane, y);
                const float w = static_cast<float>(taps[t].weight);
                for (int64_t i = 0; i < length; ++i) to[i] += row[i] * w;
            }
        });
    }
}

// Transpose of along_x, up to the lattice: entries [vertices, F] of a row [X, F].
template <int F>
void back_along_x(float *entries, const double *row, const Lattice &lattice, double *sums) {
    const int *slot = lattice.x.slot.data();
    const float *fraction = lattice.x.fraction.data();
    const int64_t n = static_cast<int64_t>(lattice.x.slot.size()), line = lattice.x.size() * F;
    std::fill(sums, sums + line, 0.0);
    for (int64_t i = 0; i < n; ++i) {
        double *lower = sums + static_cast<int64_t>(slot[i]) * F, *upper = lower + F;
        const double w = fraction[i], v = 1.0 - w;
        for (int f = 0; f < F; ++f) {
            lower[f] += row[i * F + f] * v;
            upper[f] += row[i * F + f] * w;
        }
    }
    for (int64_t i = 0; i < line; ++i) entries[i] = static_cast<float>(sums[i]);
}

// Gradients of a level's lattice by one item: [slots along z, slots along y, vertices along x, F].
struct Part {
    Part(const HashGrid &grid, const Lattice &lattice, const Item &item)
        : taps(lattice.taps(grid, item.k0, item.k1)),
          z0(taps.front().slot),
          z1(taps.back().slot + 1),
          y0(lattice.y.slot[item.y0]),
          y1(lattice.y.slot[item.y1 - 1] + 2) {}

    int64_t rows() const { return static_cast<int64_t>(z1 - z0) * (y1 - y0); }

    std::vector<Tap> taps;
    int z0, z1, y0, y1;  // slots
    std::vector<float> entries;
};

template <int F>
void back_item(Part &part, const float *grad, const Plan &plan, const Item &item, int64_t l,
               Scratch &scratch) {
    const Lattice &lattice = plan.lattices[l];
    const int64_t n = plan.grid.extent[2], stride = plan.stride;
    const int64_t line = lattice.x.size() * F;
    const int64_t length = n * F;
    part.entries.resize(static_cast<size_t>(part.rows() * line));
    double *row = scratch.row_sum.data();
    for (size_t first = 0, last; first < part.taps.size(); first = last) {
        const int slot_z = part.taps[first].slot;
        for (last = first; last < part.taps.size() && part.taps[last].slot == slot_z;) ++last;
        float *plane = part.entries.data() + (slot_z - part.z0) * (part.y1 - part.y0) * line;
        int done = part.y0;  // rows of the lattice that wait for no further voxel
        for (auto &ring_row : scratch.sums) std::fill(ring_row.begin(), ring_row.end(), 0.0);
        const auto flush = [&](int end) {
            for (; done < end; ++done) {
                std::vector<double> &sum = scratch.sums[done & 1];
                back_along_x<F>(plane + (done - part.y0) * line, sum.data(), lattice,
                                scratch.line_sum.data());
                std::fill(sum.begin(), sum.end(), 0.0);
            }
        };
        for (int64_t y = item.y0; y < item.y1; ++y) {
            const int slot = lattice.y.slot[y];
            flush(slot);
            std::fill(row, row + length, 0.0);
            for (size_t t = first; t < last; ++t) {
                const float *from = grad + plan.at(part.taps[t].plane, y) + l * F;
                const double w = part.taps[t].weight;
                for (int64_t i = 0; i < n; ++i)
                    for (int f = 0; f < F; ++f) row[i * F + f] += from[i * stride + f] * w;
            }
            const double w = lattice.y.fraction[y], v = 1.0 - w;
            double *lower = scratch.sums[slot & 1].data(),
                   *upper = scratch.sums[(slot + 1) & 1].data();
            for (int64_t i = 0; i < length; ++i) {
                lower[i] += row[i] * v;
                upper[i] += row[i] * w;
            }
        }
        flush(part.y1);
    }
}

template <int F>
void scatter_part(float *table, const Part &part, const Lattice &lattice, Scratch &scratch) {
    const float *entry = part.entries.data();
    const int height = part.y1 - part.y0, lines = (part.z1 - part.z0) * height;
    const auto find = [&](int line) {
        look_up<F>(table, lattice, part.z0 + line / height, part.y0 + line % height,
                   scratch.index[line & 1]);
    };
    find(0);
    for (int line = 0; line < lines; ++line) {
        if (line + 1 < lines) find(line + 1);
        for (const uint32_t *i = scratch.index[line & 1].data(), *end = i + lattice.x.size();
             i < end; ++i)
            for (int f = 0; f < F; ++f) table[static_cast<size_t>(*i) * F + f] += *entry++;
    }
}

}  // namespace

void hash_grid(float *out, const HashGrid &grid, const float *table,
               const std::vector<HashLevel> &levels, int n_features, int threads) {
    const Plan plan(grid, levels, n_features);
    const int64_t n_levels = static_cast<int64_t>(levels.size());
    with_features(n_features, [&](auto features) {
        constexpr int F = decltype(features)::value;
        const std::vector<Item> slabs = plan.slabs(kSlab, kDepth);
        const std::unique_ptr<float[]> by_level(
            new float[slabs[0].rows() * grid.extent[2] * plan.stride]);
        Failure failure;
#pragma omp parallel num_threads(threads)
        {
            std::optional<Scratch> scratch;
            failure.run([&] { scratch.emplace(plan, F); });
            for (const Item &slab : slabs) {
                const int64_t bands = (slab.y1 - slab.y0 - 1) / kBand + 1;
                const int64_t width = grid.extent[2], voxels = slab.rows() * width;
                // Level by level, so that the level's part of the table stays cached.
#pragma omp for schedule(dynamic)
                for (int64_t i = 0; i < n_levels * bands; ++i) {
                    const int64_t l = i / bands, y = slab.y0 + i % bands * kBand;
                    const Item band{slab.k0, slab.k1, y, std::min(slab.y1, y + kBand)};
                    failure.run([&] {
                        encode_band<F>(by_level.get() + l * voxels * F, plan, slab, band, l,
                                       table + levels[l].offset * F, *scratch);
                    });
                }
#pragma omp for schedule(static)
                for (int64_t row = 0; row < slab.rows(); ++row) {
                    const int64_t k = slab.k0 + row / slab.height(), y = row % slab.height();
                    interleave<F>(out + plan.at(k, slab.y0 + y), by_level.get() + row * width * F,
                                  width, voxels, n_levels);
                }
            }
        }
        failure.raise();
    });
}

void hash_grid_backward(float *grad_table, const float *grad, const HashGrid &grid,
                        const std::vector<HashLevel> &levels, int n_features, int threads) {
    const Plan plan(grid, levels, n_features);
    const std::vector<Item> items = plan.slabs(kItem, 1);
    const int64_t n_items = static_cast<int64_t>(items.size());
    const int64_t n_levels = static_cast<int64_t>(levels.size());
    with_features(n_features, [&](auto features) {
        constexpr int F = decltype(features)::value;
        for (int64_t first = 0, last; first < n_items; first = last) {
            // As many items as the scratch holds, whatever the number of threads.
            std::vector<std::vector<Part>> parts;
            int64_t floats = 0;
            for (last = first; last < n_items && floats < kSlab; ++last) {
                parts.emplace_back();
                for (const Lattice &lattice : plan.lattices) {
                    parts.back().emplace_back(grid, lattice, items[last]);
                    floats += parts.back().back().rows() * lattice.x.size() * F;
                }
            }
            Failure failure;
#pragma omp parallel num_threads(threads)
            {
                std::optional<Scratch> scratch;
                failure.run([&] { scratch.emplace(plan, F); });
#pragma omp for schedule(dynamic)
                for (int64_t i = first; i < last; ++i)
                    for (int64_t l = 0; l < n_levels; ++l)
                        failure.run([&] {
                            back_item<F>(parts[i - first][l], grad, plan, items[i], l, *scratch);
                        });
                // A level belongs to one thread, which adds the items in order: the same bits for
                // any number of threads. The finest levels, which have most to add, come first.
#pragma omp for schedule(dynamic)
                for (int64_t l = n_levels - 1; l >= 0; --l)
                    for (int64_t i = first; i < last; ++i)
                        failure.run([&] {
                            scatter_part<F>(grad_table + levels[l].offset * F, parts[i - first][l],
                                            plan.lattices[l], *scratch);
                        });
            }
            failure.raise();
        }
    });
}
