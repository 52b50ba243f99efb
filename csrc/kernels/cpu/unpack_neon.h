// Packed panels (layout.h) to codes in registers on Arm: a group of 64 at a time.
#pragma once

#include <arm_neon.h>

#include "kernels/cpu/panel_bytes.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

struct Group128 {
  int8x16_t quarters[4];  // columns 4 i ... 4 i + 3
};

// Levels of a group at 6 or 4 bits; at 8 bits the codes themselves.
template <int Bits>
PTQ4ARVG_FN Group128 load_group_128(const PanelBytes& panel, int64_t group) {
  if constexpr (Bits == 8) {
    const int8_t* codes = reinterpret_cast<const int8_t*>(panel.codes) + group * kGroupCodes;
    return {{vld1q_s8(codes), vld1q_s8(codes + 16), vld1q_s8(codes + 32), vld1q_s8(codes + 48)}};
  }
  const uint8x16_t first = vld1q_u8(panel.codes + group * 32), second = vld1q_u8(panel.codes + group * 32 + 16);
  const uint8x16_t nibble = vdupq_n_u8(15);
  uint8x16_t levels[4] = {vandq_u8(first, nibble), vandq_u8(second, nibble), vshrq_n_u8(first, 4),
                          vshrq_n_u8(second, 4)};
  if constexpr (Bits == 6) {
    // Bit pair i of each byte belongs to quarter i; moved to bits 4 and 5.
    const uint8x16_t pairs = vld1q_u8(panel.pairs + group * 16), mask = vdupq_n_u8(0x30);
    levels[0] = vorrq_u8(levels[0], vandq_u8(vshlq_n_u8(pairs, 4), mask));
    levels[1] = vorrq_u8(levels[1], vandq_u8(vshlq_n_u8(pairs, 2), mask));
    levels[2] = vorrq_u8(levels[2], vandq_u8(pairs, mask));
    levels[3] = vorrq_u8(levels[3], vandq_u8(vshrq_n_u8(pairs, 2), mask));
  }
  return {{vreinterpretq_s8_u8(levels[0]), vreinterpretq_s8_u8(levels[1]), vreinterpretq_s8_u8(levels[2]),
           vreinterpretq_s8_u8(levels[3])}};
}

}  // namespace
}  // namespace ptq4arvg::cpu
