#include "traffic.h"

#include <algorithm>
#include <array>
#include <set>

#include "runtime.h"

namespace ptx {

BankTurns bank_turns;
uint64_t slots_taken = 0;

int slots_of(const Instruction& i) {
  const std::string& op = i.name[0];
  if (op == "mov" || op == "cvta" || i.has("param")) return 0;
  const bool wide = i.has("s64") || i.has("u64");
  if (op == "div" || op == "rem") return i.has("f32") ? 10 : i.has("f64") ? 30 : wide ? 70 : 12;
  if (op == "sqrt") return i.has("f64") ? 25 : 9;
  if (wide && (op == "add" || op == "sub" || op == "shl" || op == "shr")) return 2;
  if (wide && op == "mul" && i.has("lo")) return 4;
  return 1;
}

void note_banks(const Warp& w, const Argument& at, uint32_t lanes, size_t bytes) {
  // 32 banks of 4 bytes: what fills them more than once goes in parts, of 16 lanes or of 8.
  const int part = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  for (int first = 0; first < kLanes; first += part) {
    std::array<std::set<uint32_t>, 32> words;
    size_t most = 0;
    for (int lane = first; lane < first + part; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      const uint32_t address = address_of(w, at, lane);
      for (uint32_t word = address / 4; word <= (address + bytes - 1) / 4; ++word) {
        words[word % 32].insert(word);
        most = std::max(most, words[word % 32].size());
      }
    }
    bank_turns.taken += most;
    bank_turns.least += most > 0;
  }
}

}  // namespace ptx
