// The packed weight on CPUs: the same bytes for every instruction set.
//
// Panels of 16 columns; in a panel, groups of 4 k; in a group, column by column the 4 codes that one 32-bit lane of a
// dot-product instruction takes. Element e of a group is column e / 4, k offset e % 4. A panel holds
//   8 bits  64 bytes a group, int8
//   4 bits  32 bytes a group: element e in byte e % 32, the low half for e < 32
//   6 bits  a plane as at 4 bits with the low four bits, then a plane with the high two: 16 bytes a group,
//           element e in byte e % 16 at bit 2 (e / 16)
// and last its 16 column sums (int32). Levels are stored, so zero points come off when unpacking. Elements past K
// hold their column's zero point and columns past N hold level 0 with zero point 0: both unpack to code 0.
#pragma once

#include "kernels/format.h"

namespace ptq4arvg::cpu {

constexpr int kPanel = 16;
constexpr int kGroup = 4;
constexpr int kGroupCodes = kPanel * kGroup;

struct Layout {
  int64_t panels, groups;
  int64_t nibbles;      // byte offset of the second plane in a panel
  int64_t sums;         // byte offset of the column sums in a panel
  int64_t panel_bytes;
};

PTQ4ARVG_FN Layout layout_of(int64_t n, int64_t k, int bits) {
  const int64_t groups = (k + kGroup - 1) / kGroup;
  const int64_t sums = groups * kGroupCodes * bits / 8;
  return {(n + kPanel - 1) / kPanel, groups, groups * (kGroupCodes / 2), sums,
          sums + kPanel * static_cast<int64_t>(sizeof(int32_t))};
}

PTQ4ARVG_FN int stored_level(const uint8_t* panel, const Layout& layout, int bits, int64_t group, int e) {
  if (bits == 8) return static_cast<int8_t>(panel[group * kGroupCodes + e]);
  const int low = (panel[group * 32 + e % 32] >> (e < 32 ? 0 : 4)) & 15;
  if (bits == 4) return low;
  return low | (((panel[layout.nibbles + group * 16 + e % 16] >> (2 * (e / 16))) & 3) << 4);
}

// The panel's bytes must be zero before the first store.
PTQ4ARVG_FN void store_level(uint8_t* panel, const Layout& layout, int bits, int64_t group, int e, int level) {
  if (bits == 8) {
    panel[group * kGroupCodes + e] = static_cast<uint8_t>(level);
    return;
  }
  panel[group * 32 + e % 32] |= static_cast<uint8_t>((level & 15) << (e < 32 ? 0 : 4));
  if (bits == 6) panel[layout.nibbles + group * 16 + e % 16] |= static_cast<uint8_t>((level >> 4) << (2 * (e / 16)));
}

// Zero points of a panel's columns; 0 for those past N.
PTQ4ARVG_FN void panel_zeros(const int32_t* zero, int bits, int64_t n, int64_t panel, int8_t* out) {
  for (int c = 0; c < kPanel; ++c) {
    const int64_t column = panel * kPanel + c;
    out[c] = static_cast<int8_t>(column >= n ? 0 : zero ? zero[column] : default_weight_zero(bits));
  }
}

}  // namespace ptq4arvg::cpu
