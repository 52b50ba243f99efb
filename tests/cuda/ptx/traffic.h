// How well warps use the banks of shared memory.
#pragma once

#include "machine.h"

namespace ptx {

// Notes that the lanes access `bytes` each where `at` says.
void note_banks(const Warp& w, const Argument& at, uint32_t lanes, size_t bytes);

}  // namespace ptx
