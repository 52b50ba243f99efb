#include "kernels/parallel.h"

namespace ptq4arvg {
namespace {

void run_here(int64_t begin, int64_t end, int64_t, RangeFunction function, void* context) {
  function(begin, end, context);
}

int one_thread() { return 1; }

Parallel current{run_here, one_thread};

}  // namespace

void set_parallel(Parallel parallel) { current = parallel; }

const Parallel& parallel() { return current; }

}  // namespace ptq4arvg
