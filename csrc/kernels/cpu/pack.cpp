#include "kernels/pack.h"

#include <cstring>

#include "kernels/cpu/layout.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {

int32_t zero_of(const PackProblem& p, int64_t column) {
  if (p.bits == 8) return 0;
  return p.zero ? p.zero[column] : default_weight_zero(p.bits);
}

}  // namespace

int64_t packed_bytes(int64_t n, int64_t k, int bits) {
  const Layout layout = layout_of(n, k, bits);
  return layout.panels * layout.panel_bytes;
}

void pack_weight(const PackProblem& p, const int8_t* codes, uint8_t* packed) {
  const Layout layout = layout_of(p.n, p.k, p.bits);
  parallel_for(layout.panels, 1 + 4096 / p.k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint8_t* panel = packed + i * layout.panel_bytes;
      memset(panel, 0, layout.panel_bytes);
      int32_t sums[kPanel] = {};
      for (int c = 0; c < kPanel && i * kPanel + c < p.n; ++c) {
        const int64_t column = i * kPanel + c;
        const int32_t zero = zero_of(p, column);
        for (int64_t k = 0; k < layout.groups * kGroup; ++k) {
          const int32_t code = k < p.k ? codes[column * p.k + k] : 0;
          sums[c] += code;
          store_level(panel, layout, p.bits, k / kGroup, c * kGroup + static_cast<int>(k % kGroup), code + zero);
        }
      }
      memcpy(panel + layout.sums, sums, sizeof sums);
    }
  });
}

void unpack_weight(const PackProblem& p, const uint8_t* packed, int8_t* codes) {
  const Layout layout = layout_of(p.n, p.k, p.bits);
  parallel_for(p.n, 1 + 65536 / p.k, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; ++column) {
      const uint8_t* panel = packed + column / kPanel * layout.panel_bytes;
      const int c = static_cast<int>(column % kPanel);
      for (int64_t k = 0; k < p.k; ++k) {
        const int level = stored_level(panel, layout, p.bits, k / kGroup, c * kGroup + static_cast<int>(k % kGroup));
        codes[column * p.k + k] = static_cast<int8_t>(level - zero_of(p, column));
      }
    }
  });
}

}  // namespace ptq4arvg::cpu
