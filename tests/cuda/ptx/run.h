// Runs a grid to its end.
#pragma once

#include "machine.h"

namespace ptx {

// Blocks run together, `resident` at a time, warps and copies in a random order that `seed` decides. Throws
// std::runtime_error where the program does what it may not, where nothing can go on, or after too many instructions.
void run(const LaunchOf& launch, uint32_t resident, uint32_t seed, uint64_t most_steps);

}  // namespace ptx
