// Where the bytes of a packed panel's groups lie (layout.h).
#pragma once

#include "kernels/cpu/layout.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

struct PanelBytes {
  const uint8_t* codes;  // 8 bits: the codes; else the low four bits
  const uint8_t* pairs;  // 6 bits: the high two bits
};

PTQ4ARVG_FN PanelBytes panel_bytes_of(const uint8_t* panel, const Layout& layout) {
  return {panel, panel + layout.nibbles};
}

// Asks for the cache lines of a panel that begin in this group, some way ahead.
template <int Bits>
PTQ4ARVG_FN void prefetch_group(const PanelBytes& panel, int64_t group) {
  constexpr int kAhead = 1024, kBytes = Bits == 8 ? 64 : 32;
  if (group * kBytes % 64 == 0) __builtin_prefetch(panel.codes + group * kBytes + kAhead);
  if (Bits == 6 && group % 4 == 0) __builtin_prefetch(panel.pairs + group * 16 + kAhead / 2);
}

}  // namespace
}  // namespace ptq4arvg::cpu
