// Rows of numbers: what windowed_ssim does to one row at a time. Included by native.cpp inside the
// namespace of an instruction set; the loops are plain so that the compiler vectorises them.

constexpr int kStatistics = 4;

// Means of x, y, x^2 + y^2 and (x - y)^2 are all that SSIM needs, because 2 cov = var_x + var_y -
// var(x - y), and the last of them does not cancel where the two volumes agree.
struct Row {
    double *statistic[kStatistics];
};

// Rows of scratch are whole vectors: no loop has a remainder, and what lies past n is never read as a
// result.
inline int whole(int n) { return (n + 7) & ~7; }

struct Map {
    double scale, offset, low, high;
    bool identity;
};

inline double mapped(double value, const Map &map) {
    if (map.identity) return value;
    const double v = value * map.scale + map.offset;
    const double raised = v < map.low ? map.low : v;  // NaN passes both comparisons.
    return raised > map.high ? map.high : raised;
}

struct BFloat16 {  // The upper half of a float.
    uint16_t bits;
    explicit operator double() const {
        const uint32_t word = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &word, sizeof value);
        return value;
    }
};

template <typename T>
void convert(const void *data, int64_t first, int n, const Map &map, double shift, double *out) {
    const T *in = static_cast<const T *>(data) + first;
    if (map.identity) {
        for (int i = 0; i < n; ++i) out[i] = static_cast<double>(in[i]) - shift;
        return;
    }
    for (int i = 0; i < n; ++i) out[i] = mapped(static_cast<double>(in[i]), map) - shift;
}

// out = the mapped values first .. first + n - 1 of a volume, less `shift`.
void load(const SsimVolume &volume, int64_t first, int n, const Map &map, double shift,
          double *out) {
    switch (volume.type) {
        case SsimType::float32: return convert<float>(volume.data, first, n, map, shift, out);
        case SsimType::float64: return convert<double>(volume.data, first, n, map, shift, out);
        case SsimType::bfloat16: return convert<BFloat16>(volume.data, first, n, map, shift, out);
        case SsimType::uint8: return convert<uint8_t>(volume.data, first, n, map, shift, out);
        case SsimType::uint16: return convert<uint16_t>(volume.data, first, n, map, shift, out);
    }
}

// Per voxel terms of the four statistics: stored, or added to what is there.
template <bool kAdd>
void enter(const Row &row, int n, const double *__restrict x, const double *__restrict y) {
    double *__restrict s0 = row.statistic[0], *__restrict s1 = row.statistic[1];
    double *__restrict s2 = row.statistic[2], *__restrict s3 = row.statistic[3];
    for (int i = 0; i < whole(n); ++i) {
        const double d = x[i] - y[i];
        s0[i] = kAdd ? s0[i] + x[i] : x[i];
        s1[i] = kAdd ? s1[i] + y[i] : y[i];
        s2[i] = kAdd ? s2[i] + (x[i] * x[i] + y[i] * y[i]) : x[i] * x[i] + y[i] * y[i];
        s3[i] = kAdd ? s3[i] + d * d : d * d;
    }
}

// The running sums take in a voxel (x, y) and let go of the one (p, q) that left the window.
void slide(const Row &row, int n, const double *__restrict x, const double *__restrict y,
           const double *__restrict p, const double *__restrict q) {
    double *__restrict s0 = row.statistic[0], *__restrict s1 = row.statistic[1];
    double *__restrict s2 = row.statistic[2], *__restrict s3 = row.statistic[3];
    for (int i = 0; i < whole(n); ++i) {
        const double d = x[i] - y[i], e = p[i] - q[i];
        s0[i] += x[i] - p[i];
        s1[i] += y[i] - q[i];
        s2[i] += (x[i] * x[i] + y[i] * y[i]) - (p[i] * p[i] + q[i] * q[i]);
        s3[i] += d * d - e * e;
    }
}

// sum += in - out, the running sum over rows; `out` is null while the window fills.
void slide(double *__restrict sum, int n, const double *__restrict in,
           const double *__restrict out) {
    if (out == nullptr) {
        for (int i = 0; i < whole(n); ++i) sum[i] += in[i];
    } else {
        for (int i = 0; i < whole(n); ++i) sum[i] += in[i] - out[i];
    }
}

void sum7(const double *__restrict in, int n, double *__restrict out) {
    for (int i = 0; i < whole(n); ++i) {
        out[i] = ((in[i] + in[i + 1]) + (in[i + 2] + in[i + 3])) + ((in[i + 4] + in[i + 5]) + in[i + 6]);
    }
}

// out = sum of taps[k] * in[k], symmetric taps: along x, y and z alike.
void filter11(const double *const in[11], const double *taps, int n, double *__restrict out) {
    const double *a0 = in[0], *a1 = in[1], *a2 = in[2], *a3 = in[3], *a4 = in[4], *a5 = in[5],
                 *a6 = in[6], *a7 = in[7], *a8 = in[8], *a9 = in[9], *a10 = in[10];
    const double t0 = taps[0], t1 = taps[1], t2 = taps[2], t3 = taps[3], t4 = taps[4], t5 = taps[5];
    for (int i = 0; i < whole(n); ++i) {
        const double outer = (a0[i] + a10[i]) * t0 + (a1[i] + a9[i]) * t1;
        const double inner = (a2[i] + a8[i]) * t2 + (a3[i] + a7[i]) * t3;
        out[i] = (outer + inner) + ((a4[i] + a6[i]) * t4 + a5[i] * t5);
    }
}

struct Formula {
    double c1, c2, norm, weight;  // weight: makes means of the window sums.
};

// sums += SSIM of a row of windows, whose statistics are of x - shift_x and y - shift_y.
//
// With 2 ux uy = ux^2 + uy^2 - (ux - uy)^2 and 2 cov = var_x + var_y - var(x - y), numerator and
// denominator differ by squares: the quotient of equal volumes is exactly 1.
void similarity(const Row &row, int n, const Formula &f, double shift_x, double shift_y,
                double *__restrict sums) {
    const double *s0 = row.statistic[0], *s1 = row.statistic[1];
    const double *s2 = row.statistic[2], *s3 = row.statistic[3];
    const double c1 = f.c1, c2 = f.c2, norm = f.norm, weight = f.weight;
    for (int i = 0; i < whole(n); ++i) {
        const double mx = s0[i] * weight, my = s1[i] * weight, md = mx - my;
        const double both = norm * (s2[i] * weight - (mx * mx + my * my));
        const double apart = norm * (s3[i] * weight - md * md);
        const double variance = (both < 0.0 ? 0.0 : both) + c2;
        const double ux = mx + shift_x, uy = my + shift_y, ud = ux - uy;
        const double luminance = ux * ux + uy * uy + c1;
        const double top = (luminance - ud * ud) * (variance - (apart < 0.0 ? 0.0 : apart));
        const double quotient = top / (luminance * variance);
        sums[i] += quotient > 1.0 ? 1.0 : quotient;
    }
}
