// What the memory engine tells a barrier in shared memory.
#pragma once

#include "machine.h"

namespace ptx {

// Bytes that a barrier waits for have come; `address` may lie in another block of the cluster.
void bytes_arrived(Block& block, uint32_t address, int64_t bytes);

}  // namespace ptx
