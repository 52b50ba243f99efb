// Host-device arithmetic of the CUDA kernels, without CUDA: fragment order, unpacking, plans, the tile table.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/decode_plan.h"
#include "kernels/cuda/early_start.h"
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/tile_table.h"

using namespace ptq4arvg;
using namespace ptq4arvg::cuda;

namespace {

void require(bool good, const char* what, int64_t a = 0, int64_t b = 0, int64_t c = 0) {
  if (good) return;
  std::printf("FAILED: %s (%d, %d, %d)\n", what, int(a), int(b), int(c));
  std::exit(1);
}

// The PTX manual's formulas for mma.m16n8k32 with 8-bit operands, written down once more.
void check_places() {
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, thread = lane & 3;
    for (int i = 0; i < 16; ++i) {
      const Place place = a_place(lane, i / 4, i % 4);
      require(place.row == (i < 4 || (i >= 8 && i < 12) ? group : group + 8), "a row", lane, i);
      require(place.k == (i < 8 ? thread * 4 + (i & 3) : thread * 4 + (i & 3) + 16), "a column", lane, i);
      const Slot slot = a_slot(place.row, place.k);
      require(slot.lane == lane && slot.j == i / 4 && slot.b == i % 4 && slot.h == 0, "a slot", lane, i);
      require(a_slot(place.row, place.k + 32).h == 1, "a slot of the upper half", lane, i);
    }
    for (int i = 0; i < 8; ++i) {
      const Place place = b_place(lane, i / 4, i % 4);
      require(place.row == group, "b column", lane, i);
      require(place.k == (i < 4 ? thread * 4 + (i & 3) : thread * 4 + (i & 3) + 16), "b row", lane, i);
    }
    for (int i = 0; i < 4; ++i) {
      const Place place = c_place(lane, i);
      require(place.row == (i < 2 ? group : group + 8) && place.k == thread * 2 + (i & 1), "c", lane, i);
    }
  }
}

// Every level with every zero point, beside extreme neighbours.
void check_codes() {
  for (uint32_t level = 0; level < 64; ++level) {
    for (uint32_t zero = 0; zero < 64; ++zero) {
      for (const uint32_t neighbour : {0u, 63u}) {
        for (int b = 0; b < 4; ++b) {
          const uint32_t others = neighbour * 0x01010101u & ~(0xffu << (8 * b));
          const uint32_t codes = codes_of_levels(others | level << (8 * b), four_times(static_cast<int32_t>(zero)));
          require(static_cast<int8_t>(codes >> (8 * b)) == int(level) - int(zero), "code", level, zero, b);
        }
      }
    }
  }
}

template <int Bits>
void check_fragments(int64_t n, int64_t k) {
  std::vector<int32_t> zero(n);
  std::vector<int8_t> codes(n * k);
  uint32_t state = 1;
  const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 16; };
  for (int32_t& each : zero) each = static_cast<int32_t>(next() % (1u << Bits));
  for (int64_t i = 0; i < n * k; ++i) {
    codes[i] = static_cast<int8_t>(static_cast<int>(next() % (1u << Bits)) - zero[i / k]);
  }
  const Layout layout = layout_of(n, k, Bits);
  std::vector<uint8_t> packed(packed_bytes(n, k, Bits), 0xcd);
  pack_weight({n, k, Bits, zero.data()}, codes.data(), packed.data());
  const auto at = [&](int64_t row, int64_t column) {
    return row < n && column < k ? codes[row * k + column] : int8_t{0};
  };
  for (int64_t tile = 0; tile < layout.tiles; ++tile) {
    for (int64_t depth = 0; depth < layout.depth_blocks; ++depth) {
      const int64_t block = tile * layout.depth_blocks + depth;
      for (int lane = 0; lane < 32; ++lane) {
        uint32_t nibbles[4], crumbs[2] = {};
        memcpy(nibbles, &packed[nibble_offset(block, lane)], sizeof nibbles);
        if (Bits == 6) memcpy(crumbs, &packed[layout.crumbs + crumb_offset(block, lane)], sizeof crumbs);
        const LaneZeros zeros = lane_zeros(zero.data(), Bits, n, tile * kBlockColumns, lane);
        for (int h = 0; h < 2; ++h) {
          uint32_t registers[4];
          fragment<Bits>(nibbles, crumbs[h], h, zeros, registers);
          for (int i = 0; i < 16; ++i) {
            const Place place = a_place(lane, i / 4, i % 4);
            const int8_t wanted = at(tile * kBlockColumns + place.row, depth * kBlockDepth + 32 * h + place.k);
            require(static_cast<int8_t>(registers[i / 4] >> (8 * (i % 4))) == wanted, "fragment", block, lane, i);
          }
        }
      }
    }
  }
  for (int64_t column = 0; column < n; ++column) {
    int32_t sum, wanted = 0;
    memcpy(&sum, &packed[layout.sums + column * 4], sizeof sum);
    for (int64_t i = 0; i < k; ++i) wanted += codes[column * k + i];
    require(sum == wanted, "column sum", column);
  }
}

template <int Chunks>
void check_swizzle() {
  std::set<uint32_t> all;
  for (int row = 0; row < 64; ++row) {
    for (int chunk = 0; chunk < Chunks; ++chunk) {
      require(swizzled<Chunks>(row, chunk) < 64 * Chunks * 16 && all.insert(swizzled<Chunks>(row, chunk)).second,
              "swizzle", row, chunk);
      std::set<uint32_t> banks;  // of the eight rows that one phase of a matrix load reads
      for (int r = row / 8 * 8; r < row / 8 * 8 + 8; ++r) banks.insert(swizzled<Chunks>(r, chunk) / 16 % 8);
      require(banks.size() == 8, "bank conflict", row, chunk);
    }
  }
}

constexpr int64_t kWidths[] = {16, 100, 768, 1024, 1280, 1408, 1536, 1920, 3072, 4096, 5120, 7680, 8704, 11520, 16384};

void check_plans() {
  for (int64_t m = 1; m <= kDecodeRows; ++m) {
    for (int64_t n : kWidths) {
      for (int64_t k : kWidths) {
        for (int sms : {1, 68, 82, 108, 132, 144}) {
          const DecodePlan plan = plan_decode(m, n, k, sms);
          require(plan.token_tiles * 8 >= m && plan.blocks * plan.column_tiles * 16 >= n, "plan covers", m, n, k);
          require(plan.steps * kDecodeDepth >= k && plan.splits >= 1 && plan.splits <= plan.steps, "steps", m, n, k);
          for (int bits : {8, 6, 4}) {
            const int bytes = plan.warps * plan.stages * decode_stage_bytes(bits, plan.column_tiles, plan.token_tiles);
            require(bytes <= kDecodeSharedBytes, "shared memory", m, n, bytes);
          }
        }
      }
    }
  }
}

// Whether a row fits changes at its ends only, so sizes at all rows' ends stand for all sizes.
template <class Member>
std::vector<int64_t> edges(const TileChoice* table, int count, Member member, std::set<int64_t> values) {
  for (int i = 0; i < count; ++i) {
    values.insert({table[i].from.*member, table[i].to.*member});
    if (table[i].to.*member < INT32_MAX) values.insert(table[i].to.*member + 1);
  }
  return {values.begin(), values.end()};
}

void check_table() {
  int count = 0;
  const TileChoice* table = tile_table(&count);
  require(count > 1 && fits(table[count - 1], {120, 1, 1, 1, 4, 1}), "the last row takes everything");
  for (int i = 0; i < count; ++i) {
    const ProductSize &from = table[i].from, &to = table[i].to;
    require(table[i].kernel && table[i].reason && *table[i].reason, "row", i);
    require(from.sm <= to.sm && from.m <= to.m && from.n <= to.n && from.k <= to.k && from.bits <= to.bits &&
                from.out_bytes <= to.out_bytes,
            "ends", i);
  }
  const std::vector<int64_t> m = edges(table, count, &ProductSize::m, {1, 60000});
  const std::vector<int64_t> n = edges(table, count, &ProductSize::n, {1, 100, 16384});
  const std::vector<int64_t> k = edges(table, count, &ProductSize::k, {1, 64, 8704});
  for (int sm : {80, 86, 87, 89, 90}) {
    for (int64_t each_m : m) {
      for (int64_t each_n : n) {
        for (int64_t each_k : k) {
          for (int bits : {4, 6, 8}) {
            for (int out_bytes : {1, 2, 4}) {
              int row = 0;
              while (row < count && !fits(table[row], {sm, each_m, each_n, each_k, bits, out_bytes})) ++row;
              require(row < count - 1, "no row but the fallback", each_m, each_n, sm);
            }
          }
        }
      }
    }
  }
}

void check_early_start() {
  unsetenv("PTQ4ARVG_CUDA_PDL");
  require(!early_start_wanted(), "off where it is not set");
  for (const char* off : {"", "0"}) {
    setenv("PTQ4ARVG_CUDA_PDL", off, 1);
    require(!early_start_wanted(), "off");
  }
  setenv("PTQ4ARVG_CUDA_PDL", "1", 1);
  require(early_start_wanted(), "on");
  setenv("PTQ4ARVG_CUDA_PDL", "yes", 1);
  std::string said;
  try {
    early_start_wanted();
  } catch (const std::invalid_argument& error) {
    said = error.what();
  }
  require(said.find("PTQ4ARVG_CUDA_PDL is 'yes'; wanted 1") == 0, "the message");
}

}  // namespace

int main() {
  check_places();
  check_codes();
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 64}, {1, 1}, {17, 65}, {40, 200}, {33, 96}}) {
    check_fragments<4>(n, k);
    check_fragments<6>(n, k);
  }
  check_swizzle<4>();
  check_swizzle<8>();
  check_plans();
  check_table();
  check_early_start();
  std::printf("ok\n");
  return 0;
}
