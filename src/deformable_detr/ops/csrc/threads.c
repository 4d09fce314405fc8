// Threads and the choice of instructions. The threads come from the OpenMP runtime that torch has already loaded: its GOMP_parallel is
// handed in at run time, so that there is one pool and nothing to link against. Without it, plain threads are started for each call.
#include "problem.h"

#include <pthread.h>
#include <stddef.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

typedef void (*gomp_parallel_t)(void (*)(void *), void *, unsigned, unsigned);
static gomp_parallel_t gomp_parallel = NULL;

MSDA_EXPORT void msda_use_gomp(void *function) { gomp_parallel = (gomp_parallel_t)(size_t)function; }

typedef struct {
    void (*fn)(void *, int);
    void *context;
    int next_worker;
} team;

static void enter(void *argument) {
    team *t = (team *)argument;
    t->fn(t->context, __atomic_fetch_add(&t->next_worker, 1, __ATOMIC_RELAXED));
}

static void *enter_thread(void *argument) {
    enter(argument);
    return NULL;
}

void msda_parallel(void (*fn)(void *, int), void *context, int threads) {
    team t = {fn, context, 0};
    if (threads <= 1) {
        enter(&t);
        return;
    }
    if (gomp_parallel != NULL) {
        gomp_parallel(enter, &t, (unsigned)threads, 0);
        return;
    }
    pthread_t handles[256];
    int started = 0;
    if (threads > 256) threads = 256;
    for (; started < threads - 1; ++started)
        if (pthread_create(&handles[started], NULL, enter_thread, &t) != 0) break;
    enter(&t);
    for (int i = 0; i < started; ++i) pthread_join(handles[i], NULL);
}

// Fresh memory comes in pages of 4 kB, each with a fault of its own, which for the gradient of value costs more than computing it.
// Linux gives pages of 2 MB to those who ask; where it does not, nothing changes.
MSDA_EXPORT void msda_use_huge_pages(void *memory, int64_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 2 << 20, first = ((uintptr_t)memory + page - 1) / page * page, last = ((uintptr_t)memory + size) / page * page;
    if (last > first) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)memory, (void)size;
#endif
}

// 1 when this processor (and the operating system) can run the named form.
MSDA_EXPORT int msda_supports(int isa) {
#if defined(MSDA_X86)
    __builtin_cpu_init();
    if (isa == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == 2)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
#endif
    return isa == 0;
}
