// A vector of W floats with the few operations the kernels need. The compiler's vector extension gives SSE2, NEON, AVX2 and AVX-512
// code from the same lines; only what it cannot say (floor, max and min with known NaN behaviour) is spelled per instruction set.
#ifndef MS_DEFORM_ATTN_VECTOR_H
#define MS_DEFORM_ATTN_VECTOR_H
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

INLINE vf load(const float *p) {
    vf r;
    memcpy(&r, p, sizeof r);
    return r;
}
INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vi load_int(const int32_t *p) {
    vi r;
    memcpy(&r, p, sizeof r);
    return r;
}
INLINE void store_int(int32_t *p, vi v) { memcpy(p, &v, sizeof v); }
INLINE vf broadcast(float x) { return x - (vf){}; }  // x - 0 is x for every x, -0 and NaN included

// max(a, b) and min(a, b) give b when either is NaN.
INLINE vf vmax(vf a, vf b) {
#if W == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif W == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
    return a > b ? a : b;
#endif
}
INLINE vf vmin(vf a, vf b) {
#if W == 16
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif W == 8
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
    return a < b ? a : b;
#endif
}

// a * b + c with one rounding at the end, whatever the compiler's optimisation, where the processor can.
#if defined(__FMA__) || (defined(__ARM_NEON) && defined(__ARM_FEATURE_FMA))
#define FUSED
INLINE vf fused(vf a, vf b, vf c) {
#if W == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif W == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__)
    return (vf)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#else
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#endif
}
#endif

INLINE vi to_int(vf x) { return __builtin_convertvector(x, vi); }
INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

// Only for |x| < 2^31.
INLINE vf vfloor(vf x) {
#if W == 16
    return (vf)_mm512_roundscale_ps((__m512)x, 9);
#elif W == 8
    return (vf)_mm256_floor_ps((__m256)x);
#else
    vf truncated = to_float(to_int(x));
    return truncated + to_float(truncated > x);  // the comparison is -1 where it holds
#endif
}

#if defined(__clang__)
#define SHUFFLE2(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE2(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

#if W == 16
#define EVENS(a, b) SHUFFLE2(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODDS(a, b) SHUFFLE2(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define ZIP_LOW(a, b) SHUFFLE2(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define ZIP_HIGH(a, b) SHUFFLE2(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif W == 8
#define EVENS(a, b) SHUFFLE2(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODDS(a, b) SHUFFLE2(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#define HALVES(a, b) SHUFFLE2(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define ZIP_LOW(a, b) SHUFFLE2(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define ZIP_HIGH(a, b) SHUFFLE2(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define EVENS(a, b) SHUFFLE2(a, b, 0, 2, 4, 6)
#define ODDS(a, b) SHUFFLE2(a, b, 1, 3, 5, 7)
#define ZIP_LOW(a, b) SHUFFLE2(a, b, 0, 4, 1, 5)
#define ZIP_HIGH(a, b) SHUFFLE2(a, b, 2, 6, 3, 7)
#endif

// W vectors in, one vector of their W sums out, in order: each step adds neighbours of two vectors and packs the halves.
template <int N>
INLINE vf sum_each(vf *v) {
    if constexpr (N == 1) {
        return v[0];
    } else {
        for (int i = 0; i < N / 2; ++i) v[i] = EVENS(v[2 * i], v[2 * i + 1]) + ODDS(v[2 * i], v[2 * i + 1]);
        return sum_each<N / 2>(v);
    }
}

// Lanes i and i ^ N exchanged.
template <int N>
INLINE vf exchange(vf v) {
#if W == 16
    return SHUFFLE2(v, v, 0 ^ N, 1 ^ N, 2 ^ N, 3 ^ N, 4 ^ N, 5 ^ N, 6 ^ N, 7 ^ N, 8 ^ N, 9 ^ N, 10 ^ N, 11 ^ N, 12 ^ N, 13 ^ N, 14 ^ N,
                    15 ^ N);
#elif W == 8
    return SHUFFLE2(v, v, 0 ^ N, 1 ^ N, 2 ^ N, 3 ^ N, 4 ^ N, 5 ^ N, 6 ^ N, 7 ^ N);
#else
    return SHUFFLE2(v, v, 0 ^ N, 1 ^ N, 2 ^ N, 3 ^ N);
#endif
}

// The sum (the largest) of all lanes, in every lane.
template <int N = W / 2>
INLINE vf sum_lanes(vf v) {
    v = v + exchange<N>(v);
    if constexpr (N > 1) v = sum_lanes<N / 2>(v);
    return v;
}
template <int N = W / 2>
INLINE vf max_lanes(vf v) {
    v = vmax(v, exchange<N>(v));
    if constexpr (N > 1) v = max_lanes<N / 2>(v);
    return v;
}

// exp(x) for x <= 0 (about one unit in the last place): 2^n * e^r with |r| <= ln(2) / 2, e^r by its Taylor polynomial; NaN stays NaN.
INLINE vf exp_nonpositive(vf x) {
    x = vmax(broadcast(-87.0f), x);
    vf n = vfloor(x * 1.44269504088896341f + 0.5f);
    n = vmin(vmax(n, broadcast(-126.0f)), broadcast(0.0f));
    vf r = x - n * 0.693359375f;  // ln(2) in two parts, the first one exact in few bits
    r = r + n * 2.12194440e-4f;
    vf p = broadcast(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (vf)((to_int(n) + 127) << 23);
}

// W numbers of the type of `value`, as float.
INLINE vf load_as_float(const float *p) { return load(p); }

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

INLINE vf load_as_float(const bfloat16 *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
INLINE vf load_as_float(const float16 *p) {
#if W == 16
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
    vh h;
    memcpy(&h, p, sizeof h);
    vu bits = __builtin_convertvector(h, vu);
    vu magnitude = (bits & 0x7fffu) << 13;
    vf scaled = (vf)magnitude * 5.192296858534828e33f;  // 2^112 moves the exponent's bias from 15 to 127, subnormals included
    vu special = (vu)(magnitude >= (0x7c00u << 13));    // infinity and NaN
    vu result = (special & (magnitude | 0x7f800000u)) | (~special & (vu)scaled);
    return (vf)(result | ((bits & 0x8000u) << 16));
#endif
}

// W floats in the type of the output, rounded to the nearest, ties to even.
INLINE vu bfloat16_bits(vf v) {  // in the upper half
    const vu bits = (vu)v, rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const vu nan = (vu)((bits & 0x7fffffffu) > 0x7f800000u);  // rounding could make it an infinity
    return (nan & (bits | 0x00400000u)) | (~nan & rounded);
}
INLINE void store_as(float *p, vf v) { store(p, v); }
INLINE void store_as(bfloat16 *p, vf v) {
    const vh h = __builtin_convertvector(bfloat16_bits(v) >> 16, vh);
    memcpy(p, &h, sizeof h);
}
INLINE void store_as(float16 *p, vf v) {
#if W == 16
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif W == 8
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    const vu bits = (vu)v, magnitude = bits & 0x7fffffffu;
    const vu nan = (vu)(magnitude > 0x7f800000u), large = (vu)(magnitude >= (143u << 23)), small = (vu)(magnitude < (113u << 23));
    const vu subnormal = (vu)((vf)magnitude + 0.5f) - (126u << 23);  // adding 1/2 shifts the bits into place and rounds them
    const vu normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    vu half = (small & subnormal) | (~small & normal);
    half = (large & ((nan & 0x7e00u) | (~nan & 0x7c00u))) | (~large & half);
    const vh h = __builtin_convertvector(half | ((bits >> 16) & 0x8000u), vh);
    memcpy(p, &h, sizeof h);
#endif
}
template <typename T>
INLINE void store_one(T *p, float x) {
    T padded[W];
    store_as(padded, broadcast(x));
    *p = padded[0];
}

// N vectors of channels, and the way back. Two vectors of bfloat16 are one load: each 32 bits hold an even and an odd channel, which
// a shift and a mask take apart; so they stay in that order (even ones, odd ones) until they are stored.
template <int N, typename T>
INLINE void load_channels(const T *p, vf *v) {
    for (int i = 0; i < N; ++i) v[i] = load_as_float(p + i * W);
}
template <int N, typename T>
INLINE void store_channels(T *p, const vf *v) {
    for (int i = 0; i < N; ++i) store_as(p + i * W, v[i]);
}
template <int N>
INLINE void load_channels(const bfloat16 *p, vf *v) {
    if constexpr (N % 2 != 0) {
        for (int i = 0; i < N; ++i) v[i] = load_as_float(p + i * W);
    } else {
        for (int i = 0; i < N; i += 2) {
            vu pairs;
            memcpy(&pairs, p + i * W, sizeof pairs);
            v[i] = (vf)(pairs << 16), v[i + 1] = (vf)(pairs & 0xffff0000u);
        }
    }
}
template <int N>
INLINE void store_channels(bfloat16 *p, const vf *v) {
    if constexpr (N % 2 != 0) {
        for (int i = 0; i < N; ++i) store_as(p + i * W, v[i]);
    } else {
        for (int i = 0; i < N; i += 2) {
            const vu pairs = (bfloat16_bits(v[i]) >> 16) | (bfloat16_bits(v[i + 1]) & 0xffff0000u);
            memcpy(p + i * W, &pairs, sizeof pairs);
        }
    }
}
INLINE float one_as_float(const float *p) { return *p; }
template <typename T>
INLINE float one_as_float(const T *p) {
    T padded[W] = {*p};
    return load_as_float(padded)[0];
}
#endif
