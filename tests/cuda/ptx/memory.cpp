// Loads, stores and atomic additions, and what is drawn into a cache.
#include "machine.h"
#include "operations.h"
#include "runtime.h"
#include "traffic.h"

namespace ptx {

uint32_t shared_base(uint32_t rank) { return (rank + 1) * kSharedWindow; }

uint8_t* shared_at(Block& block, uint32_t address, size_t bytes, size_t align) {
  const uint32_t window = address / kSharedWindow, offset = address % kSharedWindow;
  const std::vector<Block*>& blocks = block.cluster->blocks;
  if (window == 0 || window > blocks.size() || offset + bytes > blocks[window - 1]->shared.size() || offset % align) {
    throw std::runtime_error("shared memory: " + std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                             " of block " + std::to_string(int(window) - 1) + " of the cluster, which has " +
                             std::to_string(block.shared.size()) + " bytes");
  }
  return blocks[window - 1]->shared.data() + offset;
}

void touch(Warp& w, uint32_t address, size_t bytes, bool writes) {
  Block& block = *w.block;
  if (block.touched.empty()) return;
  const int self = static_cast<int>(&w - block.warps.data());
  const uint32_t now = w.barriers_passed, offset = address % kSharedWindow;
  const auto others = [&](int who, uint32_t at) { return who != Touched::kNobody && who != self && at == now; };
  for (size_t i = 0; i < bytes; ++i) {
    Touched& t = block.touched.at(offset + i);
    if (others(t.written_by, t.written_at) || (writes && others(t.read_by, t.read_at))) {
      throw std::runtime_error("a race for byte " + std::to_string(offset + i) + " of shared memory");
    }
    if (writes) t.written_by = self, t.written_at = now;
    else t.read_by = others(t.read_by, t.read_at) ? Touched::kSeveral : self, t.read_at = now;
  }
}

void check_global(const Block& block, const void* address, size_t bytes, const char* what) {
  if (!block.waited) throw std::runtime_error(std::string(what) + " before earlier grids have ended");
  check_allocated(address, bytes, what);
}

namespace {

enum class Space { global, shared, parameters };

bool space_of(const Instruction& i, Space* space) {
  for (const std::string& part : i.name) {
    if (part == "global") return *space = Space::global, true;
    if (part.starts_with("shared")) return *space = Space::shared, true;
    if (part == "param") return *space = Space::parameters, true;
  }
  return false;
}

uint8_t* place(Warp& w, const Argument& at, int lane, Space space, size_t bytes, bool writes, const char* what) {
  if (space == Space::shared) {
    const uint32_t address = address_of(w, at, lane);
    uint8_t* const found = shared_at(*w.block, address, bytes, bytes);
    touch(w, address, bytes, writes);
    return found;
  }
  uint8_t* address = reinterpret_cast<uint8_t*>(w.get<uint64_t>(at.slots[0], lane) + at.offset);
  if (space == Space::global) {
    check_global(*w.block, address, bytes, what);
    if (reinterpret_cast<uint64_t>(address) % bytes) throw std::runtime_error(std::string(what) + " off its alignment");
  }
  return address;
}

int width_of(const Instruction& i) { return i.has("v4") ? 4 : i.has("v2") ? 2 : 1; }

template <class T>
Handler load(Space space) {
  return [space](Warp& w, const Instruction& i, uint32_t lanes) {
    const Argument& to = i.arguments[0];
    if (space == Space::shared) note_banks(w, i.arguments[1], lanes, sizeof(T) * to.slots.size());
    for_each_lane(lanes, [&](int l) {
      const uint8_t* from =
          place(w, i.arguments[1], l, space, sizeof(T) * to.slots.size(), false, "a load of global memory");
      for (size_t n = 0; n < to.slots.size(); ++n) {
        T value;
        memcpy(&value, from + n * sizeof(T), sizeof value);
        w.set<T>(to.slots[n], l, value);
      }
    });
    return Step::done;
  };
}

template <class T>
Handler store(Space space) {
  return [space](Warp& w, const Instruction& i, uint32_t lanes) {
    const Argument& from = i.arguments[1];
    if (space == Space::shared) note_banks(w, i.arguments[0], lanes, sizeof(T) * from.slots.size());
    for_each_lane(lanes, [&](int l) {
      uint8_t* to = place(w, i.arguments[0], l, space, sizeof(T) * from.slots.size(), true, "a store to global memory");
      for (size_t n = 0; n < from.slots.size(); ++n) {
        const T value = w.get<T>(from.slots[n], l);
        memcpy(to + n * sizeof(T), &value, sizeof value);
      }
    });
    return Step::done;
  };
}

// atom gives what was there, red does not.
Handler add_atomically(bool gives) {
  return [gives](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      uint8_t* at = place(w, i.arguments[gives], l, Space::global, 4, true, "an atomic addition");
      uint32_t before;
      memcpy(&before, at, 4);
      const uint32_t after = before + w.get<uint32_t>(i.slot(gives + 1), l);
      memcpy(at, &after, 4);
      if (gives) w.set<uint32_t>(i.slot(0), l, before);
    });
    return Step::done;
  };
}

Handler prefetch() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const Argument& at = i.arguments[0];
      const auto* address = reinterpret_cast<const void*>(w.get<uint64_t>(at.slots[0], l) + at.offset);
      if (i.has("L2")) note_drawn(address);
    });
    return Step::done;
  };
}

}  // namespace

Handler memory(const Instruction& i) {
  const std::string &op = i.name[0], &type = i.name.back();
  if (op == "prefetch") return prefetch();
  Space space;
  if (!space_of(i, &space)) return nullptr;
  if (op == "ld" || op == "st") {
    const Argument& values = i.arguments[op == "ld" ? 0 : 1];
    if (static_cast<int>(values.slots.size()) != width_of(i)) return nullptr;
    return by_type(type, [&]<class T>() -> Handler { return op == "ld" ? load<T>(space) : store<T>(space); });
  }
  const bool word = type == "u32" || type == "s32";
  if ((op == "atom" || op == "red") && i.has("add") && word && space == Space::global)
    return add_atomically(op == "atom");
  return nullptr;
}

}  // namespace ptx
