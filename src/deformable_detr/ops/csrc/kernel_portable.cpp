// The portable form of the kernels.
#define NAME(x) x##_portable
#include "kernel.h"
#include "winograd.h"
