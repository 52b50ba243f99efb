// x86 intrinsics. PTQ4ARVG_EMULATE takes them from SIMDe instead, so that AVX-512 code can be tested for its results
// on processors that lack it (tests/csrc); nothing that is installed is built this way.
#pragma once

#if defined(PTQ4ARVG_EMULATE)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include "simde_gaps.h"
#else
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's _mm512_undefined_ps() and its kin (bug 105593)
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#endif
