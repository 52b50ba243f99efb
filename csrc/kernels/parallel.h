// How kernels use threads, without knowing whose threads they are.
#pragma once

#include <cstdint>

namespace ptq4arvg {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);

// Calls function(begin, end, context) on pieces of [begin, end), none smaller than `grain` unless it is the only one.
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context);

struct Parallel {
  ParallelFor run;
  int (*threads)();
};

// Until set_parallel is called everything runs on the calling thread.
void set_parallel(Parallel parallel);
const Parallel& parallel();

// Internal linkage, so that each instruction set keeps its own copy.
template <class F>
static inline void parallel_for(int64_t count, int64_t grain, const F& body) {
  if (count <= 0) return;
  auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); };
  parallel().run(0, count, grain < 1 ? 1 : grain, call, const_cast<F*>(&body));
}

}  // namespace ptq4arvg
