// Comes before CUTLASS's headers: switches its asserts off.
//
// A device assert is a call. A call anywhere in a kernel makes ptxas serialize its wgmma instructions, and costs the
// other kernels registers.
#pragma once

#if !defined(NDEBUG)
#define NDEBUG
#endif
