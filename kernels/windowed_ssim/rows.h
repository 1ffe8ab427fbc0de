// Rows of numbers: what windowed_ssim does to one row at a time. Included by native.cpp inside the
// namespace of an instruction set; the loops are plain so that the compiler vectorises them.

constexpr int kStatistics = 4;
constexpr int kStride = 272;  // Doubles a row of scratch: the widest block and its halo.

// Means of x, y, x^2 + y^2 and (x - y)^2 are all that SSIM needs, because 2 cov = var_x + var_y -
// var(x - y), and the last of them does not cancel where the two volumes agree. A `row` below is
// four rows of scratch one after the other, a pair (`in`, `out`) two: x and y. Rows and pairs of
// zeros stand for what has not entered a window yet.

// Rows of scratch are whole vectors: no loop has a remainder, and what lies past n is never read as
// a result.
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

struct Span {
    int64_t first, next;  // In elements; what is next is fetched ahead.
    int n;
};

template <typename T>
void convert(const void *data, const Span &span, const Map &map, double shift, double *out) {
    const T *in = static_cast<const T *>(data) + span.first;
    const int n = span.n;
#ifdef __GNUC__
    // A block's part of a plane is short and the next one lies far away: the hardware does not
    // guess it, and a quarter of the time went into waiting. (Not in a function of its own: GCC
    // takes calls that only prefetch for dead code.)
    const T *next = static_cast<const T *>(data) + span.next;
    for (int i = 0; i < n; i += 64 / sizeof(T)) __builtin_prefetch(next + i, 0, 2);
#endif
    if (map.identity) {
        for (int i = 0; i < n; ++i) out[i] = static_cast<double>(in[i]) - shift;
        return;
    }
    for (int i = 0; i < n; ++i) out[i] = mapped(static_cast<double>(in[i]), map) - shift;
}

// out = the mapped values of a span of a volume, less `shift`.
void load(const SsimVolume &volume, const Span &span, const Map &map, double shift, double *out) {
    switch (volume.type) {
        case SsimType::float32: return convert<float>(volume.data, span, map, shift, out);
        case SsimType::float64: return convert<double>(volume.data, span, map, shift, out);
        case SsimType::bfloat16: return convert<BFloat16>(volume.data, span, map, shift, out);
        case SsimType::uint8: return convert<uint8_t>(volume.data, span, map, shift, out);
        case SsimType::uint16: return convert<uint16_t>(volume.data, span, map, shift, out);
    }
}

// Running sums take in a pair of voxels and let go of the pair that left the window.
void slide(double *__restrict row, int n, const double *__restrict in,
           const double *__restrict out) {
    for (int i = 0; i < whole(n); ++i) {
        const double x = in[i], y = in[i + kStride], p = out[i], q = out[i + kStride];
        row[i] += x - p;
        row[i + kStride] += y - q;
        row[i + 2 * kStride] += (x * x + y * y) - (p * p + q * q);
        row[i + 3 * kStride] += (x - y) * (x - y) - (p - q) * (p - q);
    }
}

// The same, and sums over rows take in the row and let go of the row `old`, in one pass.
void slide(double *__restrict row, int n, const double *__restrict in, const double *__restrict out,
           double *__restrict down, const double *__restrict old) {
    for (int i = 0; i < whole(n); ++i) {
        const double x = in[i], y = in[i + kStride], p = out[i], q = out[i + kStride];
        const double s0 = row[i] + (x - p);
        const double s1 = row[i + kStride] + (y - q);
        const double s2 = row[i + 2 * kStride] + ((x * x + y * y) - (p * p + q * q));
        const double s3 = row[i + 3 * kStride] + ((x - y) * (x - y) - (p - q) * (p - q));
        row[i] = s0;
        row[i + kStride] = s1;
        row[i + 2 * kStride] = s2;
        row[i + 3 * kStride] = s3;
        down[i] += s0 - old[i];
        down[i + kStride] += s1 - old[i + kStride];
        down[i + 2 * kStride] += s2 - old[i + 2 * kStride];
        down[i + 3 * kStride] += s3 - old[i + 3 * kStride];
    }
}

// The terms of the four statistics of a pair.
void terms(double *__restrict row, int n, const double *__restrict in) {
    for (int i = 0; i < whole(n); ++i) {
        const double x = in[i], y = in[i + kStride];
        row[i] = x;
        row[i + kStride] = y;
        row[i + 2 * kStride] = x * x + y * y;
        row[i + 3 * kStride] = (x - y) * (x - y);
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

template <int kWidth>
inline double sum(const double *a) {
    static_assert(kWidth == 1 || kWidth == 7, "the windows' widths");
    if (kWidth == 1) return a[0];
    return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + a[6]);
}

// sums += SSIM of a row of windows `kWidth` wide; the statistics are of x - shift[0], y - shift[1].
//
// With 2 ux uy = ux^2 + uy^2 - (ux - uy)^2 and 2 cov = var_x + var_y - var(x - y), numerator and
// denominator differ by squares: the quotient of equal volumes is exactly 1.
template <int kWidth>
void similarity(const double *__restrict row, int n, const Formula &f, const double *shift,
                double *__restrict sums) {
    const double c1 = f.c1, c2 = f.c2, norm = f.norm, weight = f.weight;
    const double shift_x = shift[0], shift_y = shift[1];
    for (int i = 0; i < whole(n); ++i) {
        const double mx = sum<kWidth>(row + i) * weight;
        const double my = sum<kWidth>(row + i + kStride) * weight;
        const double m2 = sum<kWidth>(row + i + 2 * kStride) * weight;
        const double m3 = sum<kWidth>(row + i + 3 * kStride) * weight;
        const double md = mx - my;
        const double both = norm * (m2 - (mx * mx + my * my));
        const double apart = norm * (m3 - md * md);
        const double variance = (both < 0.0 ? 0.0 : both) + c2;
        const double ux = mx + shift_x, uy = my + shift_y, ud = ux - uy;
        const double luminance = ux * ux + uy * uy + c1;
        const double top = (luminance - ud * ud) * (variance - (apart < 0.0 ? 0.0 : apart));
        const double quotient = top / (luminance * variance);
        sums[i] += quotient > 1.0 ? 1.0 : quotient;
    }
}
