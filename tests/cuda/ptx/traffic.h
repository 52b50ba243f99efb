// How well warps use the banks of shared memory, and how many instructions they are for a multiprocessor.
#pragma once

#include "machine.h"

namespace ptx {

// Notes that the lanes access `bytes` each where `at` says.
void note_banks(const Warp& w, const Argument& at, uint32_t lanes, size_t bytes);

// About how many machine instructions ptxas makes of an instruction: one, none of those that only name a value, several
// of 64-bit integers, and the usual path of a division or a root. What has units of its own, float64, counts no more.
int slots_of(const Instruction& i);

}  // namespace ptx
