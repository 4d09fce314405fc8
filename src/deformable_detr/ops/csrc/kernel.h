// Multi-scale deformable attention, forward and backward; included once per instruction set with NAME(x) giving each its own names.
//
// Work is cut into (batch, some heads); an item is one query of one head. When there are many samples per pixel (the encoder), a head's values are first copied into a
// buffer of their own with two rows and columns of zeros around each level: neighbours are then neighbours in memory, every clamped
// sample can be read without a mask, and a head fits the cache. Otherwise (the decoder) values are read where they are: all heads of a
// query one after the other, because they look at the same part of the image, and each row is asked for one group of items ahead.
#include "problem.h"
#include "vector.h"

#include <stdlib.h>

namespace {

enum { TILE = 8 };  // queries of an encoder are visited in tiles of so many pixels
enum { SLOTS = 4 };  // items that are prepared together
enum { PAD = 2 };   // far samples are clamped to -2, so that both of their corners are zeros

struct Level {
    int h, w, first_token, first_row, stride;  // first_row: of pixel (0, 0) in the padded buffer
};

// What all tasks share.
struct Plan {
    msda_problem p;
    Level *levels;
    int points;         // L * P
    int padded_points;  // rounded up to whole vectors
    int width;          // channels of a row in the buffer, whole vectors
    int64_t rows;       // of the buffer, per head
    int32_t *order;     // in which queries are visited, or null
    // Per point: its level's size, first row and stride, as vectors want them.
    float *point_w, *point_h;
    int32_t *point_base, *point_stride, *point_wi, *point_hi;
    bool packed;
};

// What one query and head needs: filled by `prepare`. Several of them lie behind each other, so that a few queries can be prepared at
// once and the processor can overlap their long chains of arithmetic.
struct Scratch {
    float *offsets, *weights;  // as float32, where they are not already
    float *x, *y, *fx, *fy, *attention, *scale_x, *scale_y;
    float *corner_weights;   // [4, padded_points]
    int32_t *corner_index;   // packed: [padded_points] element of the first corner; in place: [4, padded_points] token or -1
    float *dots;             // [padded_points * 4 + W]
    float *gx, *gy, *ga;
    float *zeros, *trash;    // [width], shared
};

INLINE int round_up(int64_t n, int64_t unit) { return (int)((n + unit - 1) / unit * unit); }

template <typename T>
INLINE T *take(char **memory, int64_t count) {
    T *result = (T *)*memory;
    *memory += (count * sizeof(T) + 63) / 64 * 64;
    return result;
}

INLINE int64_t slot_floats(const Plan &plan) { return (int64_t)plan.padded_points * (3 + 7 + 4 + 4 + 4 + 3) + W; }

int64_t scratch_bytes(const Plan &plan) { return round_up(4 * (2 * SLOTS * slot_floats(plan) + 2 * plan.width), 64); }

INLINE Scratch slot(const Plan &plan, float *memory, int index) {
    Scratch s;
    const int64_t n = plan.padded_points;
    s.zeros = memory, s.trash = memory + plan.width;
    memory += 2 * plan.width + index * slot_floats(plan);
    s.offsets = memory, s.weights = s.offsets + 2 * n;
    s.x = s.weights + n, s.y = s.x + n, s.fx = s.y + n, s.fy = s.fx + n, s.attention = s.fy + n, s.scale_x = s.attention + n;
    s.scale_y = s.scale_x + n, s.corner_weights = s.scale_y + n, s.corner_index = (int32_t *)(s.corner_weights + 4 * n);
    s.gx = s.corner_weights + 8 * n, s.gy = s.gx + n, s.ga = s.gy + n, s.dots = s.ga + n;
    return s;
}

// W points from `p`, of which `left` exist.
INLINE vf load_some(const float *p, int left, float missing) {
    if (left >= W) return load(p);
    float padded[W];
    for (int i = 0; i < W; ++i) padded[i] = i < left ? p[i] : missing;
    return load(padded);
}

INLINE void load_pairs(const float *p, int left, vf *x, vf *y) {
    vf a, b;
    if (left >= W) {
        a = load(p);
        b = load(p + W);
    } else {
        float padded[2 * W];
        for (int i = 0; i < 2 * W; ++i) padded[i] = i < 2 * left ? p[i] : 0.0f;
        a = load(padded);
        b = load(padded + W);
    }
    *x = EVENS(a, b);
    *y = ODDS(a, b);
}

// Numbers of the references of each level (the first COUNT of R), spread over the level's points from `first` on.
template <int N, int R, int COUNT>
INLINE void per_level(const float *reference, int first, int points, int total, vf *result) {
#if W == 16
    if constexpr (N != 0) {  // four levels of four points
        const int numbers = (total - first) / 4 * R;
        const __m512 four = _mm512_maskz_loadu_ps((__mmask16)(numbers >= 16 ? 0xffff : (1 << numbers) - 1), reference + first / 4 * R);
        const vi level = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
        for (int c = 0; c < COUNT; ++c) result[c] = (vf)_mm512_permutexvar_ps((__m512i)(level * R + c), four);
        return;
    }
#endif
    for (int c = 0; c < COUNT; ++c) {
#if W == 8
        if constexpr (N != 0) {
            const float a = reference[first / 4 * R + c], b = first + 4 < total ? reference[(first / 4 + 1) * R + c] : 0.0f;
            result[c] = HALVES(broadcast(a), broadcast(b));
            continue;
        }
#elif W == 4
        if constexpr (N != 0) {
            result[c] = broadcast(reference[first / 4 * R + c]);
            continue;
        }
#endif
        float lanes[W];
        for (int i = 0; i < W; ++i) lanes[i] = first + i < total ? reference[(first + i) / points * R + c] : 0.0f;
        result[c] = load(lanes);
    }
}

// The fraction of a * size + b beyond the half pixel `edge`, without losing the bits that a * size would round away. It lies a little
// outside [0, 1] where that rounding has put the floor on the wrong side of a pixel, and is cut off for samples far outside.
INLINE vf fraction(vf a, vf size, vf b, vf edge) {
#if defined(FUSED)
    vf f = fused(a, size, -edge) + b;
#else
    vf high = (vf)((vi)a & (vi)((vi){} + (int32_t)0xfffff000u));  // 12 bits: its product with a size below 4096 is exact
    vf rest = vmin(a - high, broadcast(1e30f));         // infinity minus itself must not hide on which side the sample lies
    vf f = (high * size - edge) + (rest * size + b);
#endif
    return vmin(vmax(f, broadcast(-0.5f)), broadcast(1.5f));
}

INLINE void softmax(const float *logits, float *attention, int points, int padded) {
    vf largest = broadcast(-__builtin_inff());
    for (int i = 0; i < padded; i += W) {
        vf v = load_some(logits + i, points - i, -__builtin_inff());
        store(attention + i, v);
        largest = vmax(largest, v);
    }
    vf top = max_lanes(largest);
    vf total = broadcast(0.0f);
    for (int i = 0; i < padded; i += W) {
        vf e = exp_nonpositive(load(attention + i) - top);
        store(attention + i, e);
        total += e;
    }
    vf scale = 1.0f / sum_lanes(total);
    for (int i = 0; i < padded; i += W) store(attention + i, load(attention + i) * scale);
}

// Attention weights, fractions, corner weights and corner places of all points of one query and head.
template <int R, bool PACKED, int N>
INLINE void prepare(const Plan &plan, const Scratch &s, const float *reference, const float *offsets, const float *weights) {
    const int n = plan.points, padded = plan.padded_points, points = (int)plan.p.points;
    if constexpr (R != 0) softmax(weights, s.attention, n, padded);
    for (int i = 0; i < padded; i += W) {
        vf w = load(plan.point_w + i), h = load(plan.point_h + i), a, ox, oy, x, y, bx, by, kx, ky;
        load_pairs(offsets + 2 * i, n - i, &ox, &oy);
        if constexpr (R == 0) {
            a = load_some(weights + i, n - i, 0.0f);
            store(s.attention + i, a);
            kx = ox, ky = oy, bx = by = broadcast(0.0f);
        } else {
            a = load(s.attention + i);
            vf r[R];
            per_level<N, R, R>(reference, i, points, n, r);
            kx = r[0], ky = r[1], bx = ox, by = oy;
            if constexpr (R == 4) {
                vf sx = r[2] * w * (0.5f / points), sy = r[3] * h * (0.5f / points);
                store(s.scale_x + i, sx), store(s.scale_y + i, sy);
                bx = ox * sx, by = oy * sy;
            }
        }
        const vf low = broadcast(-(float)PAD);
        x = vmin(vmax(kx * w + bx - 0.5f, low), w), y = vmin(vmax(ky * h + by - 0.5f, low), h);
        vf x0 = vfloor(x), y0 = vfloor(y);
        vf fx = fraction(kx, w, bx, x0 + 0.5f), fy = fraction(ky, h, by, y0 + 0.5f);
        vf cx = vfloor(fx), cy = vfloor(fy);  // -1, 0 or 1: to the right side
        fx -= cx, fy -= cy;
        x0 = vmin(vmax(x0 + cx, low), w), y0 = vmin(vmax(y0 + cy, low), h);
        vf ay1 = a * fy, ay0 = a - ay1;
        vf w01 = ay0 * fx, w11 = ay1 * fx;
        store(s.fx + i, fx), store(s.fy + i, fy);
        store(s.corner_weights + i, ay0 - w01);
        store(s.corner_weights + padded + i, w01);
        store(s.corner_weights + 2 * padded + i, ay1 - w11);
        store(s.corner_weights + 3 * padded + i, w11);
        vi xi = to_int(x0), yi = to_int(y0);
        if constexpr (PACKED) {
            store_int(s.corner_index + i, (load_int(plan.point_base + i) + yi * load_int(plan.point_stride + i) + xi) * plan.width);
        } else {
            vi wi = load_int(plan.point_wi + i), hi = load_int(plan.point_hi + i);
            vi token = load_int(plan.point_base + i) + yi * wi + xi;
            vi left = (xi >= 0) & (xi < wi), right = (xi >= -1) & (xi < wi - 1);
            vi top = (yi >= 0) & (yi < hi), bottom = (yi >= -1) & (yi < hi - 1);
            store_int(s.corner_index + i, token | ~(top & left));  // -1 outside
            store_int(s.corner_index + padded + i, (token + 1) | ~(top & right));
            store_int(s.corner_index + 2 * padded + i, (token + wi) | ~(bottom & left));
            store_int(s.corner_index + 3 * padded + i, (token + wi + 1) | ~(bottom & right));
        }
    }
}

// The four rows of a point.
template <typename T>
struct Corners {
    const T *at[4];
};

template <typename T, bool PACKED>
INLINE Corners<T> corners(const Plan &plan, const Scratch &s, const T *value, int point) {
    Corners<T> c;
    if constexpr (PACKED) {
        c.at[0] = value + s.corner_index[point];
        c.at[1] = c.at[0] + plan.width;
        c.at[2] = c.at[0] + plan.point_stride[point] * plan.width;
        c.at[3] = c.at[2] + plan.width;
    } else {
        const int64_t step = plan.p.heads * plan.p.channels;
        for (int k = 0; k < 4; ++k) {
            int64_t token = s.corner_index[k * plan.padded_points + point];
            c.at[k] = token < 0 ? (const T *)s.zeros : value + token * step;
        }
    }
    return c;
}

// NV vectors of channels from `channel` on: the weighted sum over all points and corners. T and O: of the values and of the output.
template <int NV, typename T, typename O, bool PACKED>
INLINE void gather(const Plan &plan, const Scratch &s, const T *value, int channel, O *output) {
    constexpr int CHAINS = W == 16 ? 4 : W == 8 ? 2 : 1;  // sums kept apart, to hide the latency of the additions
    const int padded = plan.padded_points;
    vf total[CHAINS][NV];
    for (int c = 0; c < CHAINS; ++c)
        for (int v = 0; v < NV; ++v) total[c][v] = broadcast(0.0f);
    for (int i = 0; i < plan.points; ++i) {
        Corners<T> from = corners<T, PACKED>(plan, s, value, i);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            vf weight = broadcast(s.corner_weights[k * padded + i]), row[NV];
            load_channels<NV>(from.at[k] + channel, row);
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) total[k % CHAINS][v] += weight * row[v];
        }
    }
    vf sums[NV];
    for (int v = 0; v < NV; ++v) {
        sums[v] = total[0][v];
        if constexpr (CHAINS == 2) sums[v] += total[1][v];
        if constexpr (CHAINS == 4) sums[v] = (sums[v] + total[1][v]) + (total[2][v] + total[3][v]);
    }
    store_channels<NV>(output, sums);
}

template <typename T, typename O, bool PACKED>
INLINE void gather_all(const Plan &plan, const Scratch &s, const T *value, O *output) {
    const int channels = (int)plan.p.channels;
    int d = 0;
    for (; d + 32 <= channels; d += 32) gather<32 / W, T, O, PACKED>(plan, s, value, d, output + d);
    for (; d + W <= channels; d += W) gather<1, T, O, PACKED>(plan, s, value, d, output + d);
    if (d == channels) return;
    if constexpr (PACKED) {
        O last[W];
        gather<1, T, O, PACKED>(plan, s, value, d, last);
        for (int i = d; i < channels; ++i) output[i] = last[i - d];
    } else {
        for (; d < channels; ++d) {
            float total = 0;
            for (int i = 0; i < plan.points; ++i) {
                Corners<T> from = corners<T, PACKED>(plan, s, value, i);
                for (int k = 0; k < 4; ++k) total += s.corner_weights[k * plan.padded_points + i] * one_as_float(from.at[k] + d);
            }
            store_one(output + d, total);
        }
    }
}

// What a forward pass keeps its copies in: bfloat16 as it is, half the size; float16 as float, because its conversion takes longer.
template <typename T>
struct PackedAs {
    typedef float type;
};
template <>
struct PackedAs<bfloat16> {
    typedef bfloat16 type;
};

INLINE void copy_channels(float *to, const float *from, int channels) { memcpy(to, from, channels * sizeof *to); }
INLINE void copy_channels(bfloat16 *to, const bfloat16 *from, int channels) { memcpy(to, from, channels * sizeof *to); }
template <typename T>
INLINE void copy_channels(float *to, const T *from, int channels) {
    int d = 0;
    for (; d + W <= channels; d += W) store(to + d, load_as_float(from + d));
    for (; d < channels; ++d) to[d] = one_as_float(from + d);
}

// Where a level with its margins begins in the padded buffer.
INLINE int64_t first_element(const Plan &plan, int level) {
    if (level == plan.p.levels) return plan.rows * plan.width;
    const Level &l = plan.levels[level];
    return ((int64_t)l.first_row - (int64_t)PAD * l.stride - PAD) * plan.width;
}

// Copies the levels [first, last) of one head into the padded buffer.
template <typename T, typename P>
void pack(const Plan &plan, const T *value, P *buffer, int first, int last) {
    const int channels = (int)plan.p.channels, width = plan.width;
    const int64_t step = plan.p.heads * plan.p.channels;
    P *to = buffer + first_element(plan, first);
    for (int l = first; l < last; ++l) {
        const Level &level = plan.levels[l];
        const T *from = value + level.first_token * step;
        const int64_t margin = (int64_t)level.stride * PAD * width;
        memset(to, 0, margin * sizeof *to);
        to += margin;
        for (int y = 0; y < level.h; ++y) {
            memset(to, 0, PAD * width * sizeof *to);
            to += PAD * width;
            for (int x = 0; x < level.w; ++x, from += step, to += width) {
                copy_channels(to, from, channels);
                if (width > channels) memset(to + channels, 0, (width - channels) * sizeof *to);
            }
        }
        memset(to, 0, (margin + PAD * width) * sizeof *to);
        to += margin + PAD * width;
    }
}

// The gradient of the levels [first, last) of one head, from the padded buffer to its place.
void unpack(const Plan &plan, const float *buffer, float *value, int first, int last) {
    const int channels = (int)plan.p.channels, width = plan.width;
    const int64_t step = plan.p.heads * plan.p.channels;
    for (int l = first; l < last; ++l) {
        const Level &level = plan.levels[l];
        float *to = value + level.first_token * step;
        for (int y = 0; y < level.h; ++y) {
            const float *from = buffer + ((int64_t)level.first_row + (int64_t)y * level.stride) * width;
            for (int x = 0; x < level.w; ++x, from += width, to += step) memcpy(to, from, channels * sizeof(float));
        }
    }
}

// The gradients of the points [first, last) of one query and head; scatters into grad_value.
template <int NV, typename T, bool PACKED, bool ADD>
INLINE void scatter(const Plan &plan, const Scratch &s, const T *value, const float *grad, float *grad_value, int channel, int first,
                    int last) {
    constexpr int GROUP = W / 4;  // points whose 4 corners fill one vector of dot products
    const int padded = plan.padded_points;
    vf g[NV];
    for (int v = 0; v < NV; ++v) g[v] = load(grad + v * W);  // of these channels
    for (int i = first; i < last; i += GROUP) {
        vf partial[W];
#pragma GCC unroll 4
        for (int j = 0; j < GROUP; ++j) {
            if (i + j >= last) {
                for (int k = 0; k < 4; ++k) partial[4 * j + k] = broadcast(0.0f);
                continue;
            }
            Corners<T> from = corners<T, PACKED>(plan, s, value, i + j);
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                vf weight = broadcast(s.corner_weights[k * padded + i + j]);
                float *to;
                if constexpr (PACKED) {
                    to = grad_value + ((const float *)from.at[k] - (const float *)value) + channel;
                } else {
                    const int64_t step = plan.p.heads * plan.p.channels;
                    int64_t token = s.corner_index[k * padded + i + j];
                    to = (token < 0 ? s.trash : grad_value + token * step) + channel;
                }
                vf dot = broadcast(0.0f);
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) {
                    dot += g[v] * load_as_float(from.at[k] + channel + v * W);
                    store(to + v * W, load(to + v * W) + weight * g[v]);
                }
                partial[4 * j + k] = dot;
            }
        }
        vf dots = sum_each<W>(partial);
        if constexpr (ADD) dots += load(s.dots + 4 * i);
        store(s.dots + 4 * i, dots);
    }
}

template <typename T, bool PACKED>
INLINE void scatter_all(const Plan &plan, const Scratch &s, const T *value, const float *grad, float *grad_value, int first, int last) {
    const int channels = (int)plan.p.channels;
    if (channels == 32) {
        scatter<32 / W, T, PACKED, false>(plan, s, value, grad, grad_value, 0, first, last);
        return;
    }
    memset(s.dots, 0, sizeof(float) * 4 * plan.padded_points);
    int d = 0;
    for (; d + W <= channels; d += W) scatter<1, T, PACKED, true>(plan, s, value, grad + d, grad_value, d, first, last);
    if (d == channels) return;
    if constexpr (PACKED) {
        float tail[W];
        for (int i = 0; i < W; ++i) tail[i] = d + i < channels ? grad[d + i] : 0.0f;
        scatter<1, T, PACKED, true>(plan, s, value, tail, grad_value, d, first, last);
    } else {
        const int64_t step = plan.p.heads * plan.p.channels;
        for (int i = first; i < last; ++i) {
            Corners<T> from = corners<T, PACKED>(plan, s, value, i);
            for (int k = 0; k < 4; ++k) {
                int64_t token = s.corner_index[k * plan.padded_points + i];
                float *to = token < 0 ? s.trash : grad_value + token * step;
                float weight = s.corner_weights[k * plan.padded_points + i];
                for (int c = d; c < channels; ++c) {
                    s.dots[4 * i + k] += grad[c] * one_as_float(from.at[k] + c);
                    to[c] += weight * grad[c];
                }
            }
        }
    }
}

// From dot products to gradients of pixels (gx, gy) and of attention weights (ga).
INLINE void point_gradients(const Plan &plan, const Scratch &s) {
    for (int i = 0; i < plan.padded_points; i += W) {
        const float *d = s.dots + 4 * i;
        vf a = load(d), b = load(d + W), c = load(d + 2 * W), e = load(d + 3 * W);
        vf even_low = EVENS(a, b), even_high = EVENS(c, e), odd_low = ODDS(a, b), odd_high = ODDS(c, e);
        vf d00 = EVENS(even_low, even_high), d10 = ODDS(even_low, even_high);
        vf d01 = EVENS(odd_low, odd_high), d11 = ODDS(odd_low, odd_high);
        vf fx = load(s.fx + i), fy = load(s.fy + i), attention = load(s.attention + i);
        vf top = d00 + fx * (d01 - d00), bottom = d10 + fx * (d11 - d10);
        store(s.ga + i, top + fy * (bottom - top));
        store(s.gy + i, attention * (bottom - top));
        store(s.gx + i, attention * ((d01 - d00) + fy * ((d11 - d10) - (d01 - d00))));
    }
}

// dL/dlogit = a * (dL/da - sum of a * dL/da)
INLINE void softmax_backward(const float *attention, float *grad, int padded) {
    vf total = broadcast(0.0f);
    for (int i = 0; i < padded; i += W) total += load(attention + i) * load(grad + i);
    vf mean = sum_lanes(total);
    for (int i = 0; i < padded; i += W) store(grad + i, load(attention + i) * (load(grad + i) - mean));
}

INLINE void store_pairs(const Scratch &s, const float *x, const float *y, float *to, int first, int last) {
    int i = first;
    if (first % W == 0)
        for (; i + W <= last; i += W) {
            vf a = load(x + i), b = load(y + i);
            store(to + 2 * i, ZIP_LOW(a, b));
            store(to + 2 * i + W, ZIP_HIGH(a, b));
        }
    for (; i < last; ++i) to[2 * i] = x[i], to[2 * i + 1] = y[i];
}

template <int R>
INLINE void reference_gradients(const Plan &plan, const Scratch &s, const float *offsets, float *to, int first_level, int last_level) {
    const int points = (int)plan.p.points;
    for (int l = first_level; l < last_level; ++l) {
        float x = 0, y = 0, w = 0, h = 0;
        for (int i = l * points; i < (l + 1) * points; ++i) {
            x += s.gx[i], y += s.gy[i];
            if constexpr (R == 4) {  // outside, where an offset may be infinite, nothing has a gradient
                if (s.gx[i] != 0) w += s.gx[i] * offsets[2 * i];
                if (s.gy[i] != 0) h += s.gy[i] * offsets[2 * i + 1];
            }
        }
        const Level &level = plan.levels[l];
        to[R * l] = x * level.w, to[R * l + 1] = y * level.h;
        if constexpr (R == 4) {
            to[R * l + 2] = w * level.w * (0.5f / points);
            to[R * l + 3] = h * level.h * (0.5f / points);
        }
    }
}

// gradient * scale, and zero where the gradient is, whatever the scale of a box is there.
INLINE vf scaled(vf gradient, vf scale) { return (vf)((vi)(gradient * scale) & (gradient != 0)); }

// Writes what `point_gradients` left, for the levels [first, last); the softmax is undone here when all levels are.
template <int R>
INLINE void write_gradients(const Plan &plan, const Scratch &s, int64_t row, int64_t reference_row, const float *offsets, int first,
                            int last) {
    const msda_problem &p = plan.p;
    const int n = plan.points, padded = plan.padded_points, begin = first * (int)p.points, end = last * (int)p.points;
    if constexpr (R != 0) {
        if (end - begin == n) softmax_backward(s.attention, s.ga, padded);
        if (p.grad_reference != NULL)
            reference_gradients<R>(plan, s, offsets, p.grad_reference + reference_row * p.levels * R, first, last);
    }
    memcpy(p.grad_weights + row * n + begin, s.ga + begin, sizeof(float) * (end - begin));
    if constexpr (R != 2) {
        const float *kx = R == 0 ? plan.point_w : s.scale_x, *ky = R == 0 ? plan.point_h : s.scale_y;
        for (int i = 0; i < padded; i += W) {
            store(s.gx + i, scaled(load(s.gx + i), load(kx + i)));
            store(s.gy + i, scaled(load(s.gy + i), load(ky + i)));
        }
    }
    store_pairs(s, s.gx, s.gy, p.grad_offsets + row * 2 * n, begin, end);
}

struct Run {
    const Plan *plan;
    int64_t tasks, next;
    int64_t heads;         // of a part
    int64_t chunks;        // forward: pieces of the queries of one part; backward: pieces of its levels
    char *packed;          // shared copies of heads, or null: each worker has its own
    int64_t first_part;    // the first (batch, head) in `packed`
    int failed;
};

// A copy of the plan that stores through pointers cannot change, with what N says known to the compiler:
// 0 nothing, 4: P = 4, 16: P = 4, L = 4 and D = 32 (the detector's own shape).
template <int N>
INLINE Plan specialised(const Plan &shared) {
    Plan plan = shared;
    if constexpr (N != 0) plan.p.points = 4;
    if constexpr (N == 16) plan.p.levels = 4, plan.p.channels = 32, plan.points = 16, plan.padded_points = 16, plan.width = 32;
    return plan;
}

INLINE int64_t take_task(Run *run) { return __atomic_fetch_add(&run->next, 1, __ATOMIC_RELAXED); }

// What a task works on: the heads [head, head + heads) of one image. Its items are numbered query by query, heads inside.
struct Part {
    int64_t batch, head, heads;
};

// Where an item's inputs and results lie: its row in [B, Q] and in [B, Q, M], and its head counted from the part's first one.
struct Row {
    int64_t query, row, head;
};

INLINE Row row_of(const Plan &plan, Part part, int64_t item) {
    const int64_t i = part.heads == 1 ? item : item / part.heads;
    Row r;
    r.head = item - i * part.heads;
    r.query = part.batch * plan.p.queries + (plan.order ? plan.order[i] : i);
    r.row = r.query * plan.p.heads + part.head + r.head;
    return r;
}

template <bool PACKED>
INLINE int slot_of(int64_t item) {
    return (int)((uint64_t)item % (PACKED ? SLOTS : 2 * SLOTS));
}

// Numbers of offsets or weights from `first` on: in place where they are float32, else widened into `scratch`.
INLINE const float *geometry_row(const Plan &plan, const void *numbers, int64_t first, int count, float *scratch) {
    if (plan.p.geometry_dtype == MSDA_FLOAT32) return (const float *)numbers + first;
    if (plan.p.geometry_dtype == MSDA_BFLOAT16)
        copy_channels(scratch, (const bfloat16 *)numbers + first, count);
    else
        copy_channels(scratch, (const float16 *)numbers + first, count);
    return scratch;
}

template <int R, bool PACKED, int N>
INLINE void prepare_row(const Plan &plan, const Scratch &s, Row at) {
    const msda_problem &p = plan.p;
    const int n = plan.points;
    prepare<R, PACKED, N>(plan, s, p.reference + at.query * p.levels * R, geometry_row(plan, p.offsets, at.row * 2 * n, 2 * n, s.offsets),
                          geometry_row(plan, p.weights, at.row * n, n, s.weights));
}

// Asks for the inputs and the places of the results of a query that comes soon: the rows of one head lie far apart, and
// the processor does not foresee tiles.
template <bool BACKWARD>
INLINE void prefetch_row(const Plan &plan, Row at) {
    const msda_problem &p = plan.p;
    const int64_t n = plan.points, d = p.channels;
    const int64_t geometry = p.geometry_dtype == MSDA_FLOAT32 ? 4 : 2;
    for (int64_t i = 0; i < 2 * n * geometry; i += 64) __builtin_prefetch((const char *)p.offsets + at.row * 2 * n * geometry + i);
    for (int64_t i = 0; i < n * geometry; i += 64) __builtin_prefetch((const char *)p.weights + at.row * n * geometry + i);
    if constexpr (BACKWARD) {
        for (int64_t i = 0; i < d; i += 16) __builtin_prefetch(p.grad_output + at.row * d + i);
        for (int64_t i = 0; i < 2 * n; i += 16) __builtin_prefetch(p.grad_offsets + at.row * 2 * n + i, 1);
        for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(p.grad_weights + at.row * n + i, 1);
    } else {
        const int64_t element = p.dtype == MSDA_FLOAT32 ? 4 : 2;
        for (int64_t i = 0; i < d * element; i += 64) __builtin_prefetch((const char *)p.output + at.row * d * element + i, 1);
    }
}

// Asks for the rows that the points [first, last) of a prepared item will read, and add to if there is a gradient.
template <typename T>
INLINE void prefetch_corners(const Plan &plan, const Scratch &s, const T *value, const float *grad_value, int first, int last) {
    const int64_t step = plan.p.heads * plan.p.channels, d = plan.p.channels;
    for (int k = 0; k < 4; ++k)
        for (int i = first; i < last; ++i) {
            const int64_t token = s.corner_index[k * plan.padded_points + i];
            if (token < 0) continue;
            for (int64_t c = 0; c < d; c += 64 / sizeof(T)) __builtin_prefetch(value + token * step + c);
            if (grad_value != NULL)
                for (int64_t c = 0; c < d; c += 16) __builtin_prefetch(grad_value + token * step + c, 1);
        }
}

// Prepares the items [begin, begin + SLOTS) as far as they exist, in one of two banks of slots when values are read in place.
template <int R, typename T, bool PACKED, int N, bool BACKWARD>
INLINE void prepare_group(const Plan &plan, float *scratch, Part part, const T *value, const float *grad_value, int64_t begin,
                          int64_t last, int first_point, int last_point) {
    for (int64_t item = begin; item < begin + SLOTS && item < last; ++item) {
        const Scratch s = slot(plan, scratch, slot_of<PACKED>(item));
        if (item + SLOTS < last) prefetch_row<BACKWARD>(plan, row_of(plan, part, item + SLOTS));
        const Row at = row_of(plan, part, item);
        prepare_row<R, PACKED, N>(plan, s, at);
        if constexpr (!PACKED)
            prefetch_corners(plan, s, value + at.head * plan.p.channels,
                             BACKWARD ? grad_value + at.head * plan.p.channels : NULL, first_point, last_point);
    }
}

// The items [first, last) of a part. `value` is the part's first head, in place or in the buffer; O: type of the output.
template <int R, typename T, typename O, bool PACKED, int N>
void forward_items(const Plan &shared, float *scratch, Part part, const T *value, int64_t first, int64_t last) {
    const Plan plan = specialised<N>(shared);
    const int64_t d = plan.p.channels;
    constexpr int AHEAD = PACKED ? 0 : SLOTS;
    for (int64_t begin = first; begin < last + AHEAD; begin += SLOTS) {
        prepare_group<R, T, PACKED, N, false>(plan, scratch, part, value, NULL, begin, last, 0, plan.points);
        if (begin < first + AHEAD) continue;
        for (int64_t item = begin - AHEAD; item < begin - AHEAD + SLOTS && item < last; ++item) {
            const Row at = row_of(plan, part, item);
            gather_all<T, O, PACKED>(plan, slot(plan, scratch, slot_of<PACKED>(item)), value + at.head * d,
                                     (O *)plan.p.output + at.row * d);
        }
    }
}

// The same backward, for the levels [first, last); `grad_value` goes with `value`.
template <int R, typename T, bool PACKED, int N>
void backward_items(const Plan &shared, float *scratch, Part part, const T *value, float *grad_value, int first, int last) {
    const Plan plan = specialised<N>(shared);
    const msda_problem &p = plan.p;
    const int64_t items = p.queries * part.heads, d = p.channels;
    const int first_point = first * (int)p.points, last_point = last * (int)p.points;
    constexpr int AHEAD = PACKED ? 0 : SLOTS;
    for (int64_t begin = 0; begin < items + AHEAD; begin += SLOTS) {
        prepare_group<R, T, PACKED, N, true>(plan, scratch, part, value, grad_value, begin, items, first_point, last_point);
        if (begin < AHEAD) continue;
        const int64_t from = begin - AHEAD, to = from + SLOTS < items ? from + SLOTS : items;
        for (int64_t item = from; item < to; ++item) {
            const Row at = row_of(plan, part, item);
            scatter_all<T, PACKED>(plan, slot(plan, scratch, slot_of<PACKED>(item)), value + at.head * d, p.grad_output + at.row * d,
                                   grad_value + at.head * d, first_point, last_point);
        }
        for (int64_t item = from; item < to; ++item) {
            const Row at = row_of(plan, part, item);
            const Scratch s = slot(plan, scratch, slot_of<PACKED>(item));
            point_gradients(plan, s);
            // [B, M, Q]: the gradient of the references comes in shares, one per head
            const int64_t share = ((part.batch * p.heads + part.head + at.head) - part.batch) * p.queries + at.query;
            const float *offsets = geometry_row(plan, p.offsets, at.row * 2 * plan.points, 2 * plan.points, s.offsets);
            write_gradients<R>(plan, s, at.row, share, offsets, first, last);
        }
    }
}

template <typename T>
INLINE const T *head_of(const msda_problem &p, Part part) {
    return (const T *)p.value + (part.batch * p.tokens * p.heads + part.head) * p.channels;
}

INLINE Part part_of(const Plan &plan, int64_t index, int64_t heads) {
    const int64_t parts = plan.p.heads / heads;  // of one image
    return {index / parts, index % parts * heads, heads};
}

// One worker of the forward pass. PACKED: a part is one head; without shared copies a task is all of it.
template <int R, typename T, bool PACKED, int N>
void forward_worker(void *context, int) {
    Run *run = (Run *)context;
    const Plan &plan = *run->plan;
    const msda_problem &p = plan.p;
    typedef typename PackedAs<T>::type P;
    const int64_t size = plan.rows * plan.width * (int64_t)sizeof(P), own = PACKED && run->packed == NULL ? size : 0;
    char *memory = (char *)aligned_alloc(64, (scratch_bytes(plan) + own + 127) / 64 * 64);
    if (memory == NULL) {
        run->failed = 1;
        return;
    }
    float *s = (float *)memset(memory, 0, scratch_bytes(plan));
    P *buffer = (P *)(memory + scratch_bytes(plan));
    for (int64_t task; (task = take_task(run)) < run->tasks;) {
        const int64_t index = task / run->chunks, chunk = task % run->chunks;
        const int64_t first = p.queries * chunk / run->chunks, last = p.queries * (chunk + 1) / run->chunks;
        const Part part = part_of(plan, run->first_part + index, run->heads);
        if constexpr (PACKED) {
            if (own) pack(plan, head_of<T>(p, part), buffer, 0, (int)p.levels);
            const P *value = own ? buffer : (const P *)(run->packed + index * size);
            forward_items<R, P, T, true, N>(plan, s, part, value, first, last);
        } else {
            forward_items<R, T, T, false, N>(plan, s, part, head_of<T>(p, part), first * part.heads, last * part.heads);
        }
    }
    free(memory);
}

template <typename T>
void pack_worker(void *context, int) {
    Run *run = (Run *)context;
    const Plan &plan = *run->plan;
    typedef typename PackedAs<T>::type P;
    for (int64_t task; (task = take_task(run)) < run->tasks;)
        pack(plan, head_of<T>(plan.p, part_of(plan, run->first_part + task, 1)), (P *)run->packed + task * plan.rows * plan.width, 0,
             (int)plan.p.levels);
}

// Sets the gradient of value to zero where it will be written in place, piece by piece.
void clear_worker(void *context, int) {
    Run *run = (Run *)context;
    const msda_problem &p = run->plan->p;
    const int64_t size = p.batch * p.tokens * p.heads * p.channels;
    for (int64_t task; (task = take_task(run)) < run->tasks;) {
        const int64_t first = size / run->tasks * task, last = task + 1 == run->tasks ? size : size / run->tasks * (task + 1);
        memset(p.grad_value + first, 0, sizeof(float) * (last - first));
    }
}

template <int R, typename T, bool PACKED, int N>
void backward_worker(void *context, int) {
    Run *run = (Run *)context;
    const Plan &plan = *run->plan;
    const msda_problem &p = plan.p;
    const int64_t size = PACKED ? plan.rows * plan.width * 4 : 0;
    char *memory = (char *)aligned_alloc(64, (scratch_bytes(plan) + 2 * size + 127) / 64 * 64);
    if (memory == NULL) {
        run->failed = 1;
        return;
    }
    float *s = (float *)memset(memory, 0, scratch_bytes(plan));
    float *buffer = (float *)(memory + scratch_bytes(plan)), *grad_buffer = buffer + size / 4;
    for (int64_t task; (task = take_task(run)) < run->tasks;) {
        const Part part = part_of(plan, task / run->chunks, run->heads);
        const int first = (int)(p.levels * (task % run->chunks) / run->chunks);
        const int last = (int)(p.levels * (task % run->chunks + 1) / run->chunks);
        float *grad_value = p.grad_value + (part.batch * p.tokens * p.heads + part.head) * p.channels;
        if constexpr (PACKED) {
            const int64_t begin = first_element(plan, first), end = first_element(plan, last);
            pack(plan, head_of<T>(p, part), buffer, first, last);
            memset(grad_buffer + begin, 0, (end - begin) * 4);
            backward_items<R, float, true, N>(plan, s, part, buffer, grad_buffer, first, last);
            unpack(plan, grad_buffer, grad_value, first, last);
        } else {
            backward_items<R, T, false, N>(plan, s, part, head_of<T>(p, part), grad_value, first, last);
        }
    }
    free(memory);
}

// After a backward pass whose levels were separate tasks: the softmax needs all of them.
void softmax_worker(void *context, int) {
    Run *run = (Run *)context;
    const Plan &plan = *run->plan;
    const msda_problem &p = plan.p;
    const int n = plan.points;
    char *memory = (char *)aligned_alloc(64, (scratch_bytes(plan) + 127) / 64 * 64);
    if (memory == NULL) {
        run->failed = 1;
        return;
    }
    memset(memory, 0, scratch_bytes(plan));
    Scratch s = slot(plan, (float *)memory, 0);
    for (int64_t task; (task = take_task(run)) < run->tasks;)
        for (int64_t row = task * p.queries; row < (task + 1) * p.queries; ++row) {
            softmax(geometry_row(plan, p.weights, row * n, n, s.weights), s.attention, n, plan.padded_points);
            memcpy(s.ga, p.grad_weights + row * n, sizeof(float) * n);
            softmax_backward(s.attention, s.ga, plan.padded_points);
            memcpy(p.grad_weights + row * n, s.ga, sizeof(float) * n);
        }
    free(memory);
}

// Queries of an encoder are the tokens themselves: visit those that look at the same part of the image together, in tiles that
// cut through all levels.
void tile_order(const Plan &plan, int32_t *order) {
    const msda_problem &p = plan.p;
    int rows = 1, columns = 1;
    for (int l = 0; l < p.levels; ++l) {
        const int r = (plan.levels[l].h + TILE - 1) / TILE, c = (plan.levels[l].w + TILE - 1) / TILE;
        rows = r > rows ? r : rows, columns = c > columns ? c : columns;
    }
    for (int ty = 0; ty < rows; ++ty)
        for (int tx = 0; tx < columns; ++tx)
            for (int l = 0; l < p.levels; ++l) {
                const Level &level = plan.levels[l];
                const int64_t y0 = (int64_t)level.h * ty / rows, y1 = (int64_t)level.h * (ty + 1) / rows;
                const int64_t x0 = (int64_t)level.w * tx / columns, x1 = (int64_t)level.w * (tx + 1) / columns;
                for (int64_t y = y0; y < y1; ++y)
                    for (int64_t x = x0; x < x1; ++x) *order++ = (int32_t)(level.first_token + y * level.w + x);
            }
}

// Fills the plan; its arrays live in one block, which is returned (null: out of memory).
char *make_plan(const msda_problem *p, Plan *plan) {
    plan->p = *p;
    plan->points = (int)(p->levels * p->points);
    plan->padded_points = round_up(plan->points, W);
    plan->width = round_up(p->channels, W);
    const bool encoder = p->queries == p->tokens;
    const int64_t bytes = 64 * 10 + p->levels * sizeof(Level) + (int64_t)plan->padded_points * 24 + (encoder ? p->queries * 4 : 0);
    char *block = (char *)aligned_alloc(64, (bytes + 127) / 64 * 64), *memory = block;
    if (block == NULL) return NULL;
    memset(block, 0, 64 * 10 + p->levels * sizeof(Level) + (int64_t)plan->padded_points * 24);
    plan->levels = take<Level>(&memory, p->levels);
    plan->point_w = take<float>(&memory, plan->padded_points);
    plan->point_h = take<float>(&memory, plan->padded_points);
    plan->point_base = take<int32_t>(&memory, plan->padded_points);
    plan->point_stride = take<int32_t>(&memory, plan->padded_points);
    plan->point_wi = take<int32_t>(&memory, plan->padded_points);
    plan->point_hi = take<int32_t>(&memory, plan->padded_points);
    int64_t token = 0, row = 0;
    for (int l = 0; l < p->levels; ++l) {
        Level &level = plan->levels[l];
        level.h = (int)p->shapes[2 * l], level.w = (int)p->shapes[2 * l + 1], level.stride = level.w + PAD;
        level.first_token = (int)token, level.first_row = (int)(row + (int64_t)PAD * level.stride + PAD);
        token += (int64_t)level.h * level.w, row += (int64_t)level.stride * (level.h + 2 * PAD) + PAD;
    }
    plan->rows = row;
    const bool fits = row * plan->width < INT32_MAX;  // offsets into the buffer are 32 bits
    plan->packed = fits && (p->layout == 2 || (p->layout == 0 && p->queries * plan->points >= 2 * p->tokens));
    for (int i = 0; i < plan->points; ++i) {
        const Level &level = plan->levels[i / p->points];
        plan->point_w[i] = (float)level.w, plan->point_h[i] = (float)level.h;
        plan->point_wi[i] = level.w, plan->point_hi[i] = level.h, plan->point_stride[i] = level.stride;
        plan->point_base[i] = plan->packed ? level.first_row : level.first_token;
    }
    plan->order = NULL;
    if (encoder) tile_order(*plan, plan->order = take<int32_t>(&memory, p->queries));
    return block;
}

template <int R, typename T, int N>
int run_forward(const Plan &plan) {
    const msda_problem &p = plan.p;
    const int64_t pairs = p.batch * p.heads;
    const int threads = (int)p.threads;
    Run run = {&plan, 0, 0, 1, 1, NULL, 0, 0};
    if (!plan.packed) {
        run.heads = p.heads, run.chunks = p.queries < 4 * threads ? p.queries : 4 * threads;
        run.tasks = p.batch * run.chunks;
        msda_parallel(forward_worker<R, T, false, N>, &run, threads);
        return run.failed ? MSDA_OUT_OF_MEMORY : MSDA_OK;
    }
    if (pairs % threads == 0 || pairs >= 4 * threads) {
        run.tasks = pairs;
        msda_parallel(forward_worker<R, T, true, N>, &run, threads);
        return run.failed ? MSDA_OUT_OF_MEMORY : MSDA_OK;
    }
    // More threads than heads: some heads at a time (at most about 64 MB) are copied by all, then used by all.
    const int64_t bytes = plan.rows * plan.width * (int64_t)sizeof(typename PackedAs<T>::type);
    int64_t group = (64 << 20) / bytes;
    group = group < 1 ? 1 : group > pairs ? pairs : group;
    run.packed = (char *)aligned_alloc(64, (bytes * group + 63) / 64 * 64);
    if (run.packed == NULL) return MSDA_OUT_OF_MEMORY;
    for (int64_t first = 0; first < pairs; first += group) {
        const int64_t count = pairs - first < group ? pairs - first : group;
        run.first_part = first, run.chunks = 1, run.tasks = count, run.next = 0;
        msda_parallel(pack_worker<T>, &run, threads);
        run.chunks = p.queries < 4 * threads ? p.queries : 4 * threads, run.tasks = count * run.chunks, run.next = 0;
        msda_parallel(forward_worker<R, T, true, N>, &run, threads);
    }
    free(run.packed);
    return run.failed ? MSDA_OUT_OF_MEMORY : MSDA_OK;
}

// As many heads as can go together when every thread shall have at least two parts of the gradient for itself.
int64_t heads_of_a_part(const msda_problem &p) {
    int64_t heads = p.heads;
    while (heads > 1 && (p.heads % heads != 0 || p.heads / heads * p.batch < 2 * p.threads)) --heads;
    return heads;
}

template <int R, typename T, int N>
int run_backward(const Plan &plan) {
    const msda_problem &p = plan.p;
    const int64_t pairs = p.batch * p.heads;
    Run run = {&plan, 0, 0, 1, 1, NULL, 0, 0};
    msda_use_huge_pages(p.grad_value, sizeof(float) * p.batch * p.tokens * p.heads * p.channels);
    if (!plan.packed) {
        run.tasks = 4 * p.threads;
        msda_parallel(clear_worker, &run, (int)p.threads);
        run.heads = heads_of_a_part(p), run.next = 0;
    }
    run.chunks = p.threads > pairs ? p.levels : 1;  // levels are disjoint parts of grad_value
    run.tasks = pairs / run.heads * run.chunks;
    msda_parallel(plan.packed ? backward_worker<R, T, true, N> : backward_worker<R, T, false, N>, &run, (int)p.threads);
    if (R != 0 && run.chunks > 1 && !run.failed) {
        run.tasks = pairs, run.next = 0;
        msda_parallel(softmax_worker, &run, (int)p.threads);
    }
    return run.failed ? MSDA_OUT_OF_MEMORY : MSDA_OK;
}

template <int R, typename T>
int run(const Plan &plan, bool backward) {
    if (plan.p.points == 4 && plan.p.levels == 4 && plan.p.channels == 32)
        return backward ? run_backward<R, T, 16>(plan) : run_forward<R, T, 16>(plan);
    if (plan.p.points == 4) return backward ? run_backward<R, T, 4>(plan) : run_forward<R, T, 4>(plan);
    return backward ? run_backward<R, T, 0>(plan) : run_forward<R, T, 0>(plan);
}

template <typename T>
int run(const Plan &plan, bool backward) {
    if (plan.p.reference_size == 0) return run<0, T>(plan, backward);
    if (plan.p.reference_size == 2) return run<2, T>(plan, backward);
    return run<4, T>(plan, backward);
}

int run(const msda_problem *p, bool backward) {
    int status = msda_check(p, backward);
    if (status != MSDA_OK) return status;
    Plan plan;
    char *block = make_plan(p, &plan);
    if (block == NULL) return MSDA_OUT_OF_MEMORY;
    if (p->dtype == MSDA_FLOAT32)
        status = run<float>(plan, backward);
    else if (p->dtype == MSDA_BFLOAT16)
        status = run<bfloat16>(plan, backward);
    else
        status = run<float16>(plan, backward);
    free(block);
    return status;
}

}  // namespace

extern "C" MSDA_EXPORT int NAME(msda_forward)(const msda_problem *p) { return run(p, false); }
extern "C" MSDA_EXPORT int NAME(msda_backward)(const msda_problem *p) { return run(p, true); }
