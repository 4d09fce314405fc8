// What must hold before a kernel touches memory. A few dozen comparisons per call, so they are made in every build: a mistake on the
// other side of the interface then ends in an error instead of a heap that was written over.
#include "problem.h"

#include <stddef.h>

enum { MANY = 1 << 20 };          // points of a query, channels of a head: their buffers are counted in ints
#define MOST ((int64_t)1 << 30)   // tokens and queries: 32-bit indices
#define LONGEST ((int64_t)1 << 24)  // pixels of a level's side: exact as float

typedef struct {
    const void *data;
    int64_t bytes, count, element;
    int optional;
} buffer;

static int check_buffer(buffer b) {
    int64_t needed;
    if (b.data == NULL) return b.optional ? MSDA_OK : MSDA_NULL_POINTER;
    if ((uintptr_t)b.data % (uintptr_t)b.element != 0) return MSDA_BAD_ALIGNMENT;
    if (__builtin_mul_overflow(b.count, b.element, &needed)) return MSDA_TOO_LARGE;
    return b.bytes == needed ? MSDA_OK : MSDA_BAD_BUFFER_SIZE;
}

static int check_buffers(const buffer *buffers, int count) {
    for (int i = 0; i < count; ++i) {
        const int status = check_buffer(buffers[i]);
        if (status != MSDA_OK) return status;
    }
    return MSDA_OK;
}

// The product, or -1 where it does not fit.
static int64_t product(int count, const int64_t *factors) {
    int64_t result = 1;
    for (int i = 0; i < count; ++i)
        if (__builtin_mul_overflow(result, factors[i], &result)) return -1;
    return result;
}
#define PRODUCT(...) product(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (const int64_t[]){__VA_ARGS__})

static int check_levels(const msda_problem *p) {
    int64_t tokens = 0;
    for (int64_t l = 0; l < p->levels; ++l) {
        const int64_t h = p->shapes[2 * l], w = p->shapes[2 * l + 1];
        if (h < 1 || w < 1) return MSDA_BAD_LEVELS;
        if (h > LONGEST || w > LONGEST) return MSDA_TOO_LARGE;
        tokens += h * w;  // below 2^48, and added up at most 2^20 times only while it stays below 2^30
        if (tokens > p->tokens) return MSDA_BAD_LEVELS;
    }
    return tokens == p->tokens ? MSDA_OK : MSDA_BAD_LEVELS;
}

int msda_check(const msda_problem *p, int backward) {
    const int64_t sizes[] = {p->batch, p->tokens, p->heads, p->channels, p->queries, p->levels, p->points, p->threads};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); ++i)
        if (sizes[i] < 1) return MSDA_BAD_SIZES;
    if (p->reference_size != 0 && p->reference_size != 2 && p->reference_size != 4) return MSDA_BAD_SIZES;
    if (p->dtype < MSDA_FLOAT32 || p->dtype > MSDA_FLOAT16) return MSDA_BAD_SIZES;
    if (p->geometry_dtype < MSDA_FLOAT32 || p->geometry_dtype > MSDA_FLOAT16 || p->layout < 0 || p->layout > 2) return MSDA_BAD_SIZES;
    if (p->tokens > MOST || p->queries > MOST || p->threads > MANY || p->channels > MANY || p->heads > MANY) return MSDA_TOO_LARGE;
    if (p->levels > MANY || p->points > MANY || p->levels * p->points > MANY) return MSDA_TOO_LARGE;

    const int64_t element = p->dtype == MSDA_FLOAT32 ? 4 : 2, geometry = p->geometry_dtype == MSDA_FLOAT32 ? 4 : 2;
    const int64_t values = PRODUCT(p->batch, p->tokens, p->heads, p->channels);
    const int64_t outputs = PRODUCT(p->batch, p->queries, p->heads, p->channels);
    const int64_t weights = PRODUCT(p->batch, p->queries, p->heads, p->levels, p->points);
    const int64_t offsets = PRODUCT(p->batch, p->queries, p->heads, p->levels, p->points, 2);
    const int64_t references = PRODUCT(p->batch, p->queries, p->levels, p->reference_size);
    const int64_t shares = PRODUCT(p->batch, p->heads, p->queries, p->levels, p->reference_size);
    if (values < 0 || outputs < 0 || offsets < 0 || shares < 0) return MSDA_TOO_LARGE;
    const buffer inputs[] = {
        {p->shapes, p->shapes_bytes, 2 * p->levels, sizeof(int64_t), 0},
        {p->value, p->value_bytes, values, element, 0},
        {p->reference, p->reference_bytes, references, sizeof(float), p->reference_size == 0},
        {p->offsets, p->offsets_bytes, offsets, geometry, 0},
        {p->weights, p->weights_bytes, weights, geometry, 0},
    };
    const buffer forward[] = {{p->output, p->output_bytes, outputs, element, 0}};
    const buffer gradients[] = {
        {p->grad_output, p->grad_output_bytes, outputs, sizeof(float), 0},
        {p->grad_value, p->grad_value_bytes, values, sizeof(float), 0},
        {p->grad_reference, p->grad_reference_bytes, shares, sizeof(float), 1},
        {p->grad_offsets, p->grad_offsets_bytes, offsets, sizeof(float), 0},
        {p->grad_weights, p->grad_weights_bytes, weights, sizeof(float), 0},
    };
    int status = check_buffers(inputs, 5);
    if (status == MSDA_OK) status = backward ? check_buffers(gradients, 5) : check_buffers(forward, 1);
    return status == MSDA_OK ? check_levels(p) : status;
}

int winograd_check(const winograd_problem *p) {
    const int64_t sizes[] = {p->batch, p->height, p->width, p->channels, p->out_channels, p->tiles, p->threads};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); ++i) {
        if (sizes[i] < 1) return MSDA_BAD_SIZES;
        if (sizes[i] > MOST) return MSDA_TOO_LARGE;
    }
    if (p->channels % 32 != 0 || p->out_channels % 32 != 0 || p->tiles % 12 != 0) return MSDA_BAD_SIZES;
    const int64_t inputs = PRODUCT(p->batch, p->height, p->width, p->channels);
    const int64_t outputs = PRODUCT(p->batch, p->height, p->width, p->out_channels);
    const int64_t transformed = PRODUCT(36, p->tiles, p->channels), products = PRODUCT(36, p->tiles, p->out_channels);
    const int64_t weights = PRODUCT(36, p->channels, p->out_channels);
    if (inputs < 0 || outputs < 0 || transformed < 0 || products < 0 || weights < 0) return MSDA_TOO_LARGE;
    const buffer buffers[] = {
        {p->input, p->input_bytes, inputs, sizeof(float), 0},
        {p->weights, p->weights_bytes, weights, sizeof(float), 0},
        {p->bias, p->bias_bytes, p->out_channels, sizeof(float), 1},
        {p->added, p->added_bytes, outputs, sizeof(float), 1},
        {p->transformed, p->transformed_bytes, transformed + 36 * 16, sizeof(float), 0},
        {p->products, p->products_bytes, products + 36 * 16, sizeof(float), 0},
        {p->output, p->output_bytes, outputs, sizeof(float), 0},
    };
    return check_buffers(buffers, 7);
}

MSDA_EXPORT const char *msda_message(int status) {
    static const char *const messages[] = {
        "nothing is wrong",
        "not enough memory for its buffers",
        "a size or kind is not one of those that exist",
        "the levels do not have as many pixels as value has tokens",
        "a size is beyond what 32-bit indices reach",
        "a tensor is missing",
        "a tensor is not aligned to its elements",
        "a tensor does not have the size that the shapes ask for",
    };
    return status >= 0 && status < MSDA_STATUS_COUNT ? messages[status] : "unknown";
}

// Says which structs this library was built with, so that a library of other sources is not called.
MSDA_EXPORT int64_t msda_interface(void) {
    return (int64_t)MSDA_INTERFACE << 32 | (int64_t)sizeof(msda_problem) << 16 | (int64_t)sizeof(winograd_problem);
}
