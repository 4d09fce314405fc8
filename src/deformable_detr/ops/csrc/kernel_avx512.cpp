// The avx512 form of the kernels.
#define NAME(x) x##_avx512
#include "kernel.h"
#include "winograd.h"
