#include "kernels/cuda/pack.h"

#include <cstring>

#include "kernels/cuda/layout.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cuda {
namespace {

void pack_rows8(const PackProblem& p, const Layout& layout, const int8_t* codes, uint8_t* packed) {
  parallel_for(p.n, 1 + 65536 / p.k, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      uint8_t* row = packed + n * layout.row_bytes;
      memcpy(row, codes + n * p.k, p.k);
      memset(row + p.k, 0, layout.row_bytes - p.k);
    }
  });
}

// The block's bytes must be zero before the first store.
void store_level(uint8_t* nibbles, uint8_t* crumbs, int row, int k, int level) {
  const Slot s = a_slot(row, k);
  nibbles[nibble_offset(0, s.lane) + 4 * s.j + s.b] |= static_cast<uint8_t>((level & 15) << (4 * s.h));
  if (crumbs) crumbs[crumb_offset(0, s.lane) + 4 * s.h + s.b] |= static_cast<uint8_t>((level >> 4) << (2 * s.j));
}

void pack_blocks(const PackProblem& p, const Layout& layout, const int8_t* codes, uint8_t* packed) {
  parallel_for(layout.tiles, 1 + 4096 / p.k, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin * layout.depth_blocks; block < end * layout.depth_blocks; ++block) {
      uint8_t* nibbles = packed + block * kNibbleBytes;
      uint8_t* crumbs = p.bits == 6 ? packed + layout.crumbs + block * kCrumbBytes : nullptr;
      memset(nibbles, 0, kNibbleBytes);
      if (crumbs) memset(crumbs, 0, kCrumbBytes);
      const int64_t first = block / layout.depth_blocks * kBlockColumns;
      const int64_t start = block % layout.depth_blocks * kBlockDepth;
      for (int row = 0; row < kBlockColumns && first + row < p.n; ++row) {
        const int32_t zero = zero_of_column(p.zero, p.bits, p.n, first + row);
        for (int k = 0; k < kBlockDepth; ++k) {
          const int32_t code = start + k < p.k ? codes[(first + row) * p.k + start + k] : 0;
          store_level(nibbles, crumbs, row, k, code + zero);
        }
      }
    }
  });
}

}  // namespace

int64_t packed_bytes(int64_t n, int64_t k, int bits) { return layout_of(n, k, bits).bytes; }

void pack_weight(const PackProblem& p, const int8_t* codes, uint8_t* packed) {
  const Layout layout = layout_of(p.n, p.k, p.bits);
  if (p.bits == 8) {
    pack_rows8(p, layout, codes, packed);
  } else {
    pack_blocks(p, layout, codes, packed);
  }
  memset(packed + layout.sums, 0, layout.bytes - layout.sums);
  for (int64_t n = 0; n < p.n; ++n) {
    int32_t sum = 0;
    for (int64_t k = 0; k < p.k; ++k) sum += codes[n * p.k + k];
    memcpy(packed + layout.sums + n * static_cast<int64_t>(sizeof sum), &sum, sizeof sum);
  }
}

}  // namespace ptq4arvg::cuda
