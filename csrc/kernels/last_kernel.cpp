#include "kernels/last_kernel.h"

#include <atomic>

namespace ptq4arvg {
namespace {

std::atomic<const char*> last{""};

}  // namespace

void set_last_kernel(const char* name) { last.store(name, std::memory_order_relaxed); }
const char* last_kernel() { return last.load(std::memory_order_relaxed); }

}  // namespace ptq4arvg
