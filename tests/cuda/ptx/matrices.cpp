// Matrix instructions: ldmatrix, stmatrix and mma of a warp, and wgmma of four.
#include "machine.h"
#include "operations.h"
#include "traffic.h"

namespace ptx {
namespace {

// Matrices of 8 x 8 halves: lane l holds elements 2 (l % 4) and the next of row l / 4, transposed those of the column.
struct Place {
  int row, column;
};
Place half_of(int lane, int half, bool transposed) {
  const int line = lane / 4, within = lane % 4 * 2 + half;
  return transposed ? Place{within, line} : Place{line, within};
}

Handler matrix_memory(bool loads, bool transposed, int count) {
  return [=](Warp& w, const Instruction& i, uint32_t) {
    const Argument &at = i.arguments[loads ? 1 : 0], &values = i.arguments[loads ? 0 : 1];
    note_banks(w, at, kAll >> (kLanes - 8 * count), 16);
    for (int matrix = 0; matrix < count; ++matrix) {
      uint8_t* rows[8];
      for (int row = 0; row < 8; ++row) {
        const uint32_t address = address_of(w, at, 8 * matrix + row);
        rows[row] = shared_at(*w.block, address, 16, 16);
        touch(w, address, 16, !loads);
      }
      const int slot = values.slots.at(matrix);
      for (int lane = 0; lane < kLanes; ++lane) {
        uint16_t halves[2];
        const uint32_t word = w.get<uint32_t>(slot, lane);
        memcpy(halves, &word, 4);
        for (int half = 0; half < 2; ++half) {
          const Place place = half_of(lane, half, transposed);
          uint8_t* element = rows[place.row] + 2 * place.column;
          if (loads) memcpy(&halves[half], element, 2);
          else memcpy(element, &halves[half], 2);
        }
        uint32_t loaded;
        memcpy(&loaded, halves, 4);
        if (loads) w.set<uint32_t>(slot, lane, loaded);
      }
    }
    return Step::done;
  };
}

template <class Byte>
int byte_of(const Warp& w, int slot, int lane, int n) {
  return static_cast<Byte>(w.get<uint32_t>(slot, lane) >> 8 * n);
}

int32_t added(int32_t sum, int64_t products, bool saturates) {
  const int64_t all = sum + products;
  if (!saturates) return static_cast<int32_t>(static_cast<uint32_t>(all));
  return static_cast<int32_t>(all < INT32_MIN ? INT32_MIN : all > INT32_MAX ? INT32_MAX : all);
}

// d = a b + c, a 16 x 32 and b 32 x 8, b of int8.
template <class Left>
Handler multiply_m16n8k32(bool saturates) {
  return [saturates](Warp& w, const Instruction& i, uint32_t) {
    int a[16][32], b[8][32];
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int n = 0; n < 16; ++n) {
        const int quad = n / 4;
        a[lane / 4 + quad % 2 * 8][lane % 4 * 4 + quad / 2 * 16 + n % 4] =
            byte_of<Left>(w, i.arguments[1].slots[quad], lane, n % 4);
      }
      for (int n = 0; n < 8; ++n)
        b[lane / 4][lane % 4 * 4 + n / 4 * 16 + n % 4] = byte_of<int8_t>(w, i.arguments[2].slots[n / 4], lane, n % 4);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int n = 0; n < 4; ++n) {
        const int row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
        int64_t sum = 0;
        for (int k = 0; k < 32; ++k) sum += a[row][k] * b[column][k];
        w.set<int32_t>(i.arguments[0].slots[n], lane,
                       added(w.get<int32_t>(i.arguments[3].slots[n], lane), sum, saturates));
      }
    }
    return Step::done;
  };
}

// An operand of wgmma in shared memory, 32 bytes of rows of `width`, in pieces of 16 that are exchanged as bulk copies do.
struct MatrixDescriptor {
  Block& block;
  uint32_t start, stride;  // bytes; from eight rows to the next eight
  uint32_t width;

  MatrixDescriptor(Block& block, uint64_t bits) : block(block) {
    start = static_cast<uint32_t>(bits & 0x3fff) << 4, stride = static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4;
    width = bits >> 62 == 1 ? 128 : 64;
    if (bits >> 62 != 1 && bits >> 62 != 2) throw std::runtime_error("wgmma with a swizzle that is not known here");
    if (bits >> 49 & 7) throw std::runtime_error("wgmma with a base offset");
    if (stride % (8 * width)) throw std::runtime_error("wgmma off its alignment");
  }
  void row(int n, int8_t* to) const {
    for (uint32_t byte = 0; byte < 32; byte += 16) {
      const uint32_t line = start + static_cast<uint32_t>(n / 8) * stride + static_cast<uint32_t>(n % 8) * width + byte;
      const uint32_t at = line ^ (line >> 3 & (width - 16));
      memcpy(to + byte, shared_at(block, shared_base(block.rank) + at, 16, 16), 16);
    }
  }
};

// A warp's 16 rows of d = a b + d, or of a b where d is not kept; a is 64 x 32, b 32 x n.
void multiply_rows(Warp& w, int warp, const GroupProducts::Product& p) {
  const MatrixDescriptor a(*w.block, p.left), b(*w.block, p.right);
  int8_t left[16][32];
  for (int row = 0; row < 16; ++row) a.row(16 * warp + row, left[row]);
  const std::vector<int>& d = p.instruction->arguments[0].slots;
  for (int column = 0; column < static_cast<int>(d.size()) * 2; ++column) {
    int8_t right[32];
    b.row(column, right);
    for (int row = 0; row < 16; ++row) {
      int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += left[row][k] * right[k];
      const int lane = row % 8 * 4 + column % 8 / 2, slot = d[column / 8 * 4 + row / 8 * 2 + column % 2];
      w.set<int32_t>(slot, lane, added(p.keep ? w.get<int32_t>(slot, lane) : 0, sum, false));
    }
  }
}

Warp* group_of(Warp& w) { return &w - (&w - w.block->warps.data()) % 4; }

// The oldest product of a group, if all four of its warps have come to it: only then may one warp tell for all that a
// piece of shared memory has been read.
bool make_product(Warp* group) {
  for (int n = 0; n < 4; ++n) {
    if (group[n].products.waiting.empty()) return false;
  }
  const GroupProducts::Product first = group[0].products.waiting.front();
  for (int n = 0; n < 4; ++n) {
    const GroupProducts::Product p = group[n].products.waiting.front();
    if (p.instruction != first.instruction || p.left != first.left || p.right != first.right || p.keep != first.keep) {
      throw std::runtime_error("wgmma that differs between the warps of a group");
    }
    multiply_rows(group[n], n, p);
    group[n].products.waiting.pop_front();
  }
  return true;
}

// wgmma.mma_async d, a, b, keep: made now, or when it is waited for.
Step issue(Warp& w, const Instruction& i, uint32_t) {
  if (w.block->warps.size() % 4) throw std::runtime_error("wgmma in a block without whole groups of four warps");
  const uint64_t left = w.get<uint64_t>(i.slot(1), 0), right = w.get<uint64_t>(i.slot(2), 0);
  w.products.waiting.push_back({&i, left, right, w.get<bool>(i.slot(3), 0)});
  ++w.products.issued;
  if (w.block->grid->coin()) {
    while (make_product(group_of(w))) {
    }
  }
  return Step::done;
}

Step commit(Warp& w, const Instruction&, uint32_t) {
  w.products.commits.push_back(w.products.issued);
  return Step::done;
}

// Until all committed products but those of the latest n commits are made.
Step wait(Warp& w, const Instruction& i, uint32_t) {
  const std::vector<uint64_t>& commits = w.products.commits;
  const size_t but = w.get<uint32_t>(i.slot(0), 0);
  if (commits.size() <= but) return Step::done;
  const uint64_t wanted = commits[commits.size() - 1 - but];
  while (w.products.made() < wanted) {
    if (!make_product(group_of(w))) return Step::wait;
  }
  return Step::done;
}

}  // namespace

Handler matrices(const Instruction& i) {
  const auto& name = i.name;
  if (name[0] == "ldmatrix" || name[0] == "stmatrix") {
    if (!i.has("m8n8") || !i.has("shared") || !i.has("b16")) return nullptr;
    return matrix_memory(name[0] == "ldmatrix", i.has("trans"), i.has("x4") ? 4 : i.has("x2") ? 2 : 1);
  }
  const auto types = [&](const char* wanted) { return i.full_name().find(wanted) != std::string::npos; };
  const bool bytes = types("s32.s8.s8");
  if (name[0] == "mma" && i.has("m16n8k32")) {
    if (bytes) return multiply_m16n8k32<int8_t>(i.has("satfinite"));
    if (types("s32.u8.s8")) return multiply_m16n8k32<uint8_t>(i.has("satfinite"));
  }
  if (name[0] != "wgmma") return nullptr;
  if (name[1] == "fence") return [](Warp&, const Instruction&, uint32_t) { return Step::done; };
  if (name[1] == "commit_group") return commit;
  if (name[1] == "wait_group") return wait;
  const std::string& shape = name[4];  // m64n128k32
  const std::string wanted = "m64n" + std::to_string(2 * i.arguments.at(0).slots.size()) + "k32";
  if (!bytes || i.arguments.size() != 4 || shape != wanted || i.has("satfinite")) return nullptr;
  return issue;
}

}  // namespace ptx
