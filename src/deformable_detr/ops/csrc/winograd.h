// 3x3 convolutions with stride 1 by Winograd's F(4x4, 3x3): 36 multiplications for 16 outputs instead of 144; included once per
// instruction set, after kernel.h.
//
// Of the polynomial's roots, 0 and infinity are the usual ones; +-2/3 and +-3/2 stand in place of +-1 and +-2, because the numbers in
// the transforms are then of one size: the rounding error of a sum over 256 channels is a third of the usual one.
#include "problem.h"
#include "vector.h"

namespace {
namespace winograd {

enum {
    OUT = 4,                    // side of a tile of the output
    IN = OUT + 2,               // side of what it depends on
    PANEL = 16,                 // output channels that lie side by side in the weights
    ROWS = W == 16 ? 12 : 6,    // tiles that are multiplied together: ROWS x 2 sums stay in registers
    COLUMNS = 2 * W,
    DEPTH = 256,                // input channels at a time: a panel of them fits the first cache
    CHUNK = 192,                // tiles at a time: their input channels fit the second cache
    TILES_PER_TASK = 8,
};
constexpr float A = 2.0f / 3, B = 3.0f / 2, A2 = A * A, B2 = B * B;

// What the threads of one phase share.
struct Phase {
    winograd_problem p;
    int64_t columns;              // tiles in a row of an image
    int64_t per_image;            // tiles of an image
    int64_t first, count;         // tiles of this block
    int64_t in_plane, out_plane;  // from one of the 36 positions to the next, in the buffers
    int64_t next;                 // task
};

struct Tile {
    int64_t image, y, x;  // of its first output
};

INLINE Tile tile_at(const Phase &phase, int64_t index) {
    const int64_t tile = phase.first + index, rest = tile % phase.per_image;
    return {tile / phase.per_image, rest / phase.columns * OUT, rest % phase.columns * OUT};
}

INLINE void transform_input(const vf *d, vf *result) {
    const vf even_a = d[4] - B2 * d[2], odd_a = A * (d[3] - B2 * d[1]);
    const vf even_b = d[4] - A2 * d[2], odd_b = B * (d[3] - A2 * d[1]);
    result[0] = d[0] - (A2 + B2) * d[2] + d[4];  // A * B is 1
    result[1] = even_a + odd_a;
    result[2] = even_a - odd_a;
    result[3] = even_b + odd_b;
    result[4] = even_b - odd_b;
    result[5] = d[1] - (A2 + B2) * d[3] + d[5];
}

INLINE void transform_output(const vf *m, vf *result) {
    const vf sum_a = m[1] + m[2], difference_a = A * (m[1] - m[2]), sum_b = m[3] + m[4], difference_b = B * (m[3] - m[4]);
    result[0] = m[0] + sum_a + sum_b;
    result[1] = difference_a + difference_b;
    result[2] = A2 * sum_a + B2 * sum_b;
    result[3] = A2 * difference_a + B2 * difference_b + m[5];
}

// [6, 6] pixels around a tile, all channels → the tile's row in each of the 36 matrices.
void gather(const Phase &phase, int64_t index) {
    const winograd_problem &p = phase.p;
    const Tile tile = tile_at(phase, index);
    const float *image = p.input + tile.image * p.height * p.width * p.channels;
    float *row = p.transformed + index * p.channels;
    for (int64_t c = 0; c < p.channels; c += W) {
        vf half[IN][IN];
        for (int x = 0; x < IN; ++x) {
            vf pixels[IN], column[IN];
            const int64_t left = tile.x + x - 1;
            for (int y = 0; y < IN; ++y) {
                const int64_t top = tile.y + y - 1;
                const bool inside = left >= 0 && left < p.width && top >= 0 && top < p.height;
                pixels[y] = inside ? load(image + (top * p.width + left) * p.channels + c) : (vf){};
            }
            transform_input(pixels, column);
            for (int y = 0; y < IN; ++y) half[y][x] = column[y];
        }
        for (int y = 0; y < IN; ++y) {
            vf line[IN];
            transform_input(half[y], line);
            for (int x = 0; x < IN; ++x) store(row + (IN * y + x) * phase.in_plane + c, line[x]);
        }
    }
}

// The tile's row in each of the 36 products → its [4, 4] outputs, as far as they lie in the image.
void scatter(const Phase &phase, int64_t index) {
    const winograd_problem &p = phase.p;
    const Tile tile = tile_at(phase, index);
    const int64_t height = p.height - tile.y < OUT ? p.height - tile.y : OUT, width = p.width - tile.x < OUT ? p.width - tile.x : OUT;
    const int64_t corner = ((tile.image * p.height + tile.y) * p.width + tile.x) * p.out_channels;
    const float *row = p.products + index * p.out_channels;
    for (int64_t c = 0; c < p.out_channels; c += W) {
        vf half[OUT][IN];
        for (int x = 0; x < IN; ++x) {
            vf products[IN], column[OUT];
            for (int y = 0; y < IN; ++y) products[y] = load(row + (IN * y + x) * phase.out_plane + c);
            transform_output(products, column);
            for (int y = 0; y < OUT; ++y) half[y][x] = column[y];
        }
        const vf bias = p.bias != NULL ? load(p.bias + c) : (vf){};
        for (int64_t y = 0; y < height; ++y) {
            vf line[OUT];
            transform_output(half[y], line);
            for (int64_t x = 0; x < width; ++x) {
                const int64_t at = corner + (y * p.width + x) * p.out_channels + c;
                vf value = line[x] + bias;
                if (p.added != NULL) value += load(p.added + at);
                store(p.output + at, p.relu ? vmax((vf){}, value) : value);  // NaN stays NaN
            }
        }
    }
}

template <void (*EACH)(const Phase &, int64_t)>
void each_tile(void *context, int) {
    Phase &phase = *(Phase *)context;
    for (;;) {
        const int64_t from = __atomic_fetch_add(&phase.next, TILES_PER_TASK, __ATOMIC_RELAXED), to = from + TILES_PER_TASK;
        if (from >= phase.count) return;
        for (int64_t index = from; index < to && index < phase.count; ++index) EACH(phase, index);
    }
}

// ROWS tiles times COLUMNS output channels, over some input channels.
INLINE void multiply_block(const winograd_problem &p, const float *a, const float *b, int64_t depth, float *product, bool first) {
    vf sums[ROWS][2];
    const float *panels[2] = {b, b + W / PANEL * PANEL * p.channels + W % PANEL};
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < 2; ++j) sums[i][j] = first ? (vf){} : load(product + i * p.out_channels + j * W);
    for (int64_t k = 0; k < depth; ++k) {
        const vf b0 = load(panels[0] + k * PANEL), b1 = load(panels[1] + k * PANEL);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            const vf x = broadcast(a[i * p.channels + k]);
            sums[i][0] += x * b0;
            sums[i][1] += x * b1;
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < 2; ++j) store(product + i * p.out_channels + j * W, sums[i][j]);
}

// The 36 matrix products; a task is one of them for some tiles. Rows up to a multiple of ROWS are computed, whatever is in them.
void multiply(void *context, int) {
    Phase &phase = *(Phase *)context;
    const winograd_problem &p = phase.p;
    const int64_t chunks = (phase.count + CHUNK - 1) / CHUNK;
    for (;;) {
        const int64_t task = __atomic_fetch_add(&phase.next, 1, __ATOMIC_RELAXED);
        if (task >= IN * IN * chunks) return;
        const int64_t position = task / chunks, from = task % chunks * CHUNK;
        const int64_t to = from + CHUNK < phase.count ? from + CHUNK : phase.count;
        const float *a = p.transformed + position * phase.in_plane, *b = p.weights + position * p.channels * p.out_channels;
        float *product = p.products + position * phase.out_plane;
        for (int64_t k = 0; k < p.channels; k += DEPTH) {
            const int64_t depth = p.channels - k < DEPTH ? p.channels - k : DEPTH;
            for (int64_t column = 0; column < p.out_channels; column += COLUMNS) {
                const float *panel = b + column / PANEL * PANEL * p.channels + k * PANEL + column % PANEL;
                for (int64_t row = from; row < to; row += ROWS)
                    multiply_block(p, a + row * p.channels + k, panel, depth, product + row * p.out_channels + column, k == 0);
            }
        }
    }
}

void run_phase(Phase phase, void (*work)(void *, int)) { msda_parallel(work, &phase, (int)phase.p.threads); }

void convolve(const winograd_problem *p) {
    const int64_t columns = (p->width + OUT - 1) / OUT, per_image = (p->height + OUT - 1) / OUT * columns;
    const int64_t total = p->batch * per_image;
    for (int64_t first = 0; first < total; first += p->tiles) {
        const int64_t count = total - first < p->tiles ? total - first : p->tiles;
        const Phase phase = {*p, columns, per_image, first, count, p->tiles * p->channels + W, p->tiles * p->out_channels + W, 0};
        run_phase(phase, each_tile<gather>);
        run_phase(phase, multiply);
        run_phase(phase, each_tile<scatter>);
    }
}

}  // namespace winograd
}  // namespace

extern "C" MSDA_EXPORT int NAME(winograd_convolution)(const winograd_problem *p) {
    const int status = winograd_check(p);
    if (status == MSDA_OK) winograd::convolve(p);
    return status;
}
