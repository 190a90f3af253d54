/* Batch norm in training mode, with the residual sum and the ReLU that follow it, on channels-last rows.
 *
 * x, skip, y, g and twin (gradients of y), dx and dskip are n rows of c numbers, float32 or bfloat16; statistics are float32.
 * Each function reads its rows twice, once for the statistics and once for the result, and writes them once.
 * Short rows are joined into wide ones, so that the inner loops are long enough to be vectorised.
 *
 * Included once for every element type by defining ELEMENT, LOAD, STORE and NAME.
 */
#ifndef ELEMENT

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define WIDE 128 /* numbers in a joined row, at least where rows are shorter */
#define BLOCK 64 /* joined rows summed in float32 before they are added in float64 */

static inline float from_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static inline uint16_t to_bfloat16(float value) { /* to the nearest, ties to even */
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    return (uint16_t)((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

/* Add up pairs of joined partial sums [width] into a [c] and b [c]. */
static void gather(const double *pa, const double *pb, long width, long c, double *a, double *b) {
    for (long i = 0; i < c; i++) a[i] = b[i] = 0;
    for (long i = 0; i < width; i++) a[i % c] += pa[i], b[i % c] += pb[i];
}

static void tile(float *out, const float *in, long width, long c) {
    for (long i = 0; i < width; i++) out[i] = in[i % c];
}

#define ELEMENT float
#define LOAD(v) (v)
#define STORE(v) (v)
#define NAME(f) f##_float32
#include __FILE__
#undef ELEMENT
#undef LOAD
#undef STORE
#undef NAME
#define ELEMENT uint16_t
#define LOAD(v) from_bfloat16(v)
#define STORE(v) to_bfloat16(v)
#define NAME(f) f##_bfloat16
#include __FILE__

#else

/* y = relu(weight * (x - mean) / sqrt(variance + eps) + bias + skip); skip may be null, relu 0. Writes mean [c] and
 * rstd [c] and moves the running statistics, the variance being the unbiased one. Returns 0 where memory is short. */
int NAME(forward)(const ELEMENT *restrict x, const ELEMENT *restrict skip, ELEMENT *restrict y, long n, long c,
                  const float *weight, const float *bias, float *running_mean, float *running_var, float momentum,
                  float eps, int relu, float *mean, float *rstd) {
    long joined = c < WIDE ? WIDE / c : 1, width = joined * c, rows = n / joined, rest = (n - rows * joined) * c;
    char *memory = malloc(width * (6 * sizeof(float) + 2 * sizeof(double)) + 2 * c * sizeof(double));
    if (!memory) return 0;
    double *pa = (double *)memory, *pb = pa + width, *a = pb + width, *b = a + c;
    float *restrict sa = (float *)(b + c), *restrict sb = sa + width, *restrict first = sb + width;
    float *restrict scale = first + width, *restrict shift = scale + width, *scratch = shift + width;
    for (long i = 0; i < width; i++) pa[i] = pb[i] = 0, first[i] = LOAD(x[i % c]); /* sums of x - first: no cancelling */
    for (long row = 0; row <= rows; row += BLOCK) {
        long end = row + BLOCK < rows ? row + BLOCK : rows;
        memset(sa, 0, 2 * width * sizeof(float));
        for (long r = row; r < end; r++) {
            const ELEMENT *restrict p = x + r * width;
            for (long i = 0; i < width; i++) {
                float v = LOAD(p[i]) - first[i];
                sa[i] += v;
                sb[i] += v * v;
            }
        }
        for (long i = 0; i < width; i++) pa[i] += sa[i], pb[i] += sb[i];
    }
    for (long i = 0; i < rest; i++) {
        double v = LOAD(x[rows * width + i]) - first[i];
        pa[i] += v, pb[i] += v * v;
    }
    gather(pa, pb, width, c, a, b);
    for (long i = 0; i < c; i++) {
        double shifted = a[i] / n, variance = fmax(b[i] / n - shifted * shifted, 0);
        mean[i] = (float)(first[i] + shifted);
        rstd[i] = (float)(1 / sqrt(variance + eps));
        if (running_mean) {
            running_mean[i] += momentum * (mean[i] - running_mean[i]);
            running_var[i] += momentum * ((float)(variance * n / (n > 1 ? n - 1 : 1)) - running_var[i]);
        }
        scratch[i] = weight[i] * rstd[i];
    }
    tile(scale, scratch, width, c);
    for (long i = 0; i < c; i++) scratch[i] = bias[i] - mean[i] * scale[i];
    tile(shift, scratch, width, c);
    float floor = relu ? 0 : -INFINITY;
    for (long r = 0; r <= rows; r++) {
        long count = r < rows ? width : rest;
        const ELEMENT *restrict p = x + r * width, *restrict s = skip + (skip ? r * width : 0);
        ELEMENT *restrict q = y + r * width;
        if (skip)
            for (long i = 0; i < count; i++) {
                float v = LOAD(p[i]) * scale[i] + shift[i] + LOAD(s[i]);
                q[i] = STORE(v < floor ? floor : v);
            }
        else
            for (long i = 0; i < count; i++) {
                float v = LOAD(p[i]) * scale[i] + shift[i];
                q[i] = STORE(v < floor ? floor : v);
            }
    }
    free(memory);
    return 1;
}

/* The gradient of x's normalised sum: that of y, which is g + twin (where there is one), and 0 where y (null: nowhere) is cut off. */
#define GRADIENT(i) (!y || LOAD(y[i]) > floor ? (twin ? LOAD(g[i]) + LOAD(twin[i]) : LOAD(g[i])) : 0)

/* Add a row's gradients to sa, and their products with x - centre to sb; keep them in `dskip` where it is not null.
 * Inlined with null or not null known, so that no loop asks. */
static inline __attribute__((always_inline)) void NAME(sum_row)(
    const ELEMENT *restrict g, const ELEMENT *restrict twin, const ELEMENT *restrict x, const ELEMENT *restrict y,
    ELEMENT *restrict dskip, const float *restrict centre, float floor, long count, float *restrict sa,
    float *restrict sb) {
    for (long i = 0; i < count; i++) {
        float d = GRADIENT(i);
        sa[i] += d;
        sb[i] += d * (LOAD(x[i]) - centre[i]);
        if (dskip) dskip[i] = STORE(d);
    }
}

/* Write a row of dx. */
static inline __attribute__((always_inline)) void NAME(finish_row)(
    const ELEMENT *restrict g, const ELEMENT *restrict twin, const ELEMENT *restrict x, const ELEMENT *restrict y,
    float floor, ELEMENT *restrict dx, const float *restrict scale, const float *restrict slope,
    const float *restrict shift, long count) {
    for (long i = 0; i < count; i++) dx[i] = STORE(GRADIENT(i) * scale[i] + LOAD(x[i]) * slope[i] + shift[i]);
}

/* The gradients of `forward`: dx, dweight [c], dbias [c], and dskip where it is not null. The gradient of y is
 * g + twin, twin being null where y was used once. */
int NAME(backward)(const ELEMENT *restrict g, const ELEMENT *restrict twin, const ELEMENT *restrict x,
                   const ELEMENT *restrict y, ELEMENT *restrict dx, ELEMENT *restrict dskip, long n, long c,
                   const float *weight, const float *mean, const float *rstd, int relu, float *dweight, float *dbias) {
    long joined = c < WIDE ? WIDE / c : 1, width = joined * c, rows = n / joined, rest = (n - rows * joined) * c;
    char *memory = malloc(width * (6 * sizeof(float) + 2 * sizeof(double)) + 2 * c * sizeof(double));
    if (!memory) return 0;
    double *pa = (double *)memory, *pb = pa + width, *a = pb + width, *b = a + c;
    float *restrict sa = (float *)(b + c), *restrict sb = sa + width, *restrict centre = sb + width;
    float *restrict scale = centre + width, *restrict slope = scale + width, *restrict shift = slope + width;
    float floor = relu ? 0 : -INFINITY;
    tile(centre, mean, width, c);
    for (long i = 0; i < width; i++) pa[i] = pb[i] = 0, scale[i] = weight[i % c] * rstd[i % c];
    for (long row = 0; row <= rows; row += BLOCK) {
        long end = row + BLOCK < rows ? row + BLOCK : rows + 1;
        memset(sa, 0, 2 * width * sizeof(float));
        for (long r = row; r < end; r++) {
            long count = r < rows ? width : rest, at = r * width;
            if (twin && dskip)
                NAME(sum_row)(g + at, twin + at, x + at, y + at, dskip + at, centre, floor, count, sa, sb);
            else if (dskip)
                NAME(sum_row)(g + at, 0, x + at, y + at, dskip + at, centre, floor, count, sa, sb);
            else if (twin)
                NAME(sum_row)(g + at, twin + at, x + at, y + at, 0, centre, floor, count, sa, sb);
            else
                NAME(sum_row)(g + at, 0, x + at, y + at, 0, centre, floor, count, sa, sb);
        }
        for (long i = 0; i < width; i++) pa[i] += sa[i], pb[i] += sb[i];
        if (end > rows) break;
    }
    gather(pa, pb, width, c, a, b);
    for (long i = 0; i < c; i++) {
        dbias[i] = (float)a[i];
        dweight[i] = (float)(b[i] * rstd[i]);
    }
    for (long i = 0; i < width; i++) {
        long k = i % c;
        slope[i] = (float)(-(double)scale[i] * rstd[k] * rstd[k] * b[k] / n);
        shift[i] = (float)(-(double)scale[i] * a[k] / n - (double)slope[i] * mean[k]);
    }
    for (long r = 0; r <= rows; r++) {
        long count = r < rows ? width : rest, at = r * width;
        if (dskip)
            NAME(finish_row)(dskip + at, 0, x + at, 0, floor, dx + at, scale, slope, shift, count);
        else if (twin)
            NAME(finish_row)(g + at, twin + at, x + at, y + at, floor, dx + at, scale, slope, shift, count);
        else
            NAME(finish_row)(g + at, 0, x + at, y + at, floor, dx + at, scale, slope, shift, count);
    }
    free(memory);
    return 1;
}

#endif
