// The avx2 form of the kernels.
#define NAME(x) x##_avx2
#include "kernel.h"
#include "winograd.h"
