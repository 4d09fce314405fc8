// The plain C interface between Python (ctypes) and the kernels: one struct, no torch headers.
#ifndef MS_DEFORM_ATTN_PROBLEM_H
#define MS_DEFORM_ATTN_PROBLEM_H
#include <stdint.h>

#if defined(__GNUC__)
#define MSDA_EXPORT __attribute__((visibility("default")))
#else
#define MSDA_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { MSDA_FLOAT32 = 0, MSDA_BFLOAT16 = 1, MSDA_FLOAT16 = 2 };
enum { MSDA_OK = 0, MSDA_OUT_OF_MEMORY = 1 };

// All tensors are contiguous; everything but `value` is float32. B batch, S tokens, M heads, D channels, Q queries, L levels, P points.
typedef struct {
    int64_t batch, tokens, heads, channels, queries, levels, points;
    int64_t reference_size;  // 0: locations and weights are given; 2 or 4: fused, with references of that many numbers
    int64_t dtype;           // of value
    int64_t threads;
    int64_t layout;          // 0: choose, 1: read value in place, 2: copy each head into a padded buffer first
    const int64_t *shapes;   // [L, 2] (h, w)
    const void *value;       // [B, S, M, D]
    const float *reference;  // [B, Q, L, R]
    const float *offsets;    // [B, Q, M, L, P, 2]: sampling offsets (fused) or sampling locations
    const float *weights;    // [B, Q, M, L, P]: logits (fused) or attention weights
    const float *grad_output;  // [B, Q, M, D], backward only
    float *output;             // [B, Q, M, D], forward only
    float *grad_value;         // [B, S, M, D]
    float *grad_reference;     // [B, M, Q, L, R], one share per head, may be null
    float *grad_offsets;       // [B, Q, M, L, P, 2]
    float *grad_weights;       // [B, Q, M, L, P]
} msda_problem;

// A 3x3 convolution with stride 1 and one pixel of zeros around; float32, channels last. C and O are multiples of 32, `tiles` of 12.
typedef struct {
    int64_t batch, height, width, channels, out_channels;
    int64_t tiles;        // of 4x4 outputs that are worked on at once
    int64_t relu;         // 1: at the end
    int64_t threads;
    const float *input;   // [B, H, W, C]
    const float *weights; // [36, O / 16, C, 16], transformed
    const float *bias;    // [O], may be null
    const float *added;   // [B, H, W, O], may be null, may be `output`
    float *transformed;   // buffer of 36 * (tiles * C + 16)
    float *products;      // buffer of 36 * (tiles * O + 16)
    float *output;        // [B, H, W, O]
} winograd_problem;

// Runs fn(context, worker) once in each of `threads` workers; see threads.c.
void msda_parallel(void (*fn)(void *context, int worker), void *context, int threads);

// Asks for pages of 2 MB for memory that is about to be written for the first time; see threads.c.
void msda_use_huge_pages(void *memory, int64_t size);

#ifdef __cplusplus
}
#endif
#endif
