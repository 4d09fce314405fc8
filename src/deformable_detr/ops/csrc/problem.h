// The plain C interface between Python (ctypes) and the kernels: one struct for each of them, no torch headers.
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

#define MSDA_INTERFACE 3  // to be raised with every change of the structs or of what they mean

enum { MSDA_FLOAT32 = 0, MSDA_BFLOAT16 = 1, MSDA_FLOAT16 = 2 };

// What a kernel returns; `msda_message` says it in words.
enum {
    MSDA_OK,
    MSDA_OUT_OF_MEMORY,
    MSDA_BAD_SIZES,
    MSDA_BAD_LEVELS,
    MSDA_TOO_LARGE,
    MSDA_NULL_POINTER,
    MSDA_BAD_ALIGNMENT,
    MSDA_BAD_BUFFER_SIZE,
    MSDA_STATUS_COUNT
};

// All tensors are contiguous; `value`, `output`, `offsets` and `weights` say their type, all others are float32. B batch, S tokens, M heads, D channels, Q queries, L levels, P points.
// Every pointer is followed by the size of its memory in bytes, which must be what the sizes ask for.
typedef struct {
    int64_t batch, tokens, heads, channels, queries, levels, points;
    int64_t reference_size;  // 0: locations and weights are given; 2 or 4: fused, with references of that many numbers
    int64_t dtype;           // of value
    int64_t geometry_dtype;  // of offsets and weights
    int64_t threads;
    int64_t layout;          // 0: choose, 1: read value in place, 2: copy each head into a padded buffer first
    const int64_t *shapes;   // [L, 2] (h, w)
    int64_t shapes_bytes;
    const void *value;       // [B, S, M, D]
    int64_t value_bytes;
    const float *reference;  // [B, Q, L, R], null when R is 0
    int64_t reference_bytes;
    const void *offsets;     // [B, Q, M, L, P, 2]: sampling offsets (fused) or sampling locations
    int64_t offsets_bytes;
    const void *weights;     // [B, Q, M, L, P]: logits (fused) or attention weights
    int64_t weights_bytes;
    const float *grad_output;  // [B, Q, M, D], backward only
    int64_t grad_output_bytes;
    void *output;              // [B, Q, M, D], of the type of value, forward only
    int64_t output_bytes;
    float *grad_value;         // [B, S, M, D], backward only, like the rest
    int64_t grad_value_bytes;
    float *grad_reference;     // [B, M, Q, L, R], one share per head, may be null
    int64_t grad_reference_bytes;
    float *grad_offsets;       // [B, Q, M, L, P, 2]
    int64_t grad_offsets_bytes;
    float *grad_weights;       // [B, Q, M, L, P]
    int64_t grad_weights_bytes;
} msda_problem;

// A 3x3 convolution with stride 1 and one pixel of zeros around; float32, channels last. C and O are multiples of 32, `tiles` of 12.
typedef struct {
    int64_t batch, height, width, channels, out_channels;
    int64_t tiles;        // of 4x4 outputs that are worked on at once
    int64_t relu;         // 1: at the end
    int64_t threads;
    const float *input;   // [B, H, W, C]
    int64_t input_bytes;
    const float *weights; // [36, O / 16, C, 16], transformed
    int64_t weights_bytes;
    const float *bias;    // [O], may be null
    int64_t bias_bytes;
    const float *added;   // [B, H, W, O], may be null, may be `output`
    int64_t added_bytes;
    float *transformed;   // buffer of 36 * (tiles * C + 16)
    int64_t transformed_bytes;
    float *products;      // buffer of 36 * (tiles * O + 16)
    int64_t products_bytes;
    float *output;        // [B, H, W, O]
    int64_t output_bytes;
} winograd_problem;

// The door: whether a problem may be worked on at all (MSDA_OK), or what is wrong with it; see checks.c.
int msda_check(const msda_problem *problem, int backward);
int winograd_check(const winograd_problem *problem);

// Runs fn(context, worker) once in each of `threads` workers; see threads.c.
void msda_parallel(void (*fn)(void *context, int worker), void *context, int threads);

// Asks for pages of 2 MB for memory that is about to be written for the first time; see threads.c.
MSDA_EXPORT void msda_use_huge_pages(void *memory, int64_t size);

#ifdef __cplusplus
}
#endif
#endif
