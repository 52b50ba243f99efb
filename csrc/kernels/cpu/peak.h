// What this machine can do at best: register-only loops of the multiplying instructions, and reads of a buffer.
//
// For benchmarks, which compare the kernels with these. The best of many short windows, so that other processes on the
// machine lower the figure as little as may be.
#pragma once

#include <cstdint>

namespace ptq4arvg::cpu {

// Multiplications and additions a second of all threads together. Kinds: "amx" and "vnni" (int8), "avx2_maddubs" (int8
// by pairs, with the widening to int32), "fma" (float32). Throws std::invalid_argument for another kind, one that this
// processor lacks, or bad arguments.
double measure_peak(const char* kind, int threads, double seconds);

// Bytes read a second by all threads together, each with its own part of a buffer of `bytes`, over and over.
double measure_bandwidth(int64_t bytes, int threads, double seconds);

}  // namespace ptq4arvg::cpu
