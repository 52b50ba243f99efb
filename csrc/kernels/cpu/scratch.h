// Scratch memory of the calling thread, kept between calls: fresh pages would cost more than small products do.
#pragma once

#include <cstddef>

namespace ptq4arvg::cpu {

// At least `bytes` bytes, aligned to 64; valid until this thread's next call. Throws std::bad_alloc.
void* thread_scratch(size_t bytes);

}  // namespace ptq4arvg::cpu
