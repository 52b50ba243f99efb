// Between the lanes of a warp, the blocks of a cluster and along the program: shuffles, jumps, and hints.
#include "machine.h"
#include "operations.h"

namespace ptx {
namespace {

// shfl.sync d|p, a, b, c, members: from which lane each lane takes its value.
Handler shuffle(bool by_index) {
  return [by_index](Warp& w, const Instruction& i, uint32_t lanes) {
    const int from = i.slot(1), distance = i.slot(2), clamp = i.slot(3);
    std::array<uint32_t, kLanes> value, taken;
    std::array<bool, kLanes> valid;
    for_each_lane(lanes, [&](int l) { value[l] = w.get<uint32_t>(from, l); });
    for_each_lane(lanes, [&](int l) {
      const int by = w.get<uint32_t>(distance, l) & 31, c = w.get<uint32_t>(clamp, l);
      const int segment = c >> 8 & 31, last = (l & segment) | (c & 31 & ~segment);
      int source = by_index ? (l & segment) | (by & ~segment) : l ^ by;
      valid[l] = source <= last;
      if (!valid[l]) source = l;
      if (!(lanes >> source & 1)) throw std::runtime_error("a shuffle from a lane that does not take part");
      taken[l] = value[source];
    });
    const std::vector<int>& to = i.arguments[0].slots;
    for_each_lane(lanes, [&](int l) {
      w.set<uint32_t>(to[0], l, taken[l]);
      if (to.size() > 1) w.set<bool>(to[1], l, valid[l]);
    });
    return Step::done;
  };
}

// elect.sync d|p, members: p in one lane.
Handler elect() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    const int leader = __builtin_ctz(lanes);
    const std::vector<int>& to = i.arguments[0].slots;
    for_each_lane(lanes, [&](int l) {
      w.set<uint32_t>(to[0], l, static_cast<uint32_t>(leader));
      w.set<bool>(to[1], l, l == leader);
    });
    return Step::done;
  };
}

// The address in another block of the cluster that corresponds to one of our own.
Handler map_to_block() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const uint32_t offset = w.get<uint32_t>(i.slot(1), l) % kSharedWindow;
      w.set<uint32_t>(i.slot(0), l, shared_base(w.get<uint32_t>(i.slot(2), l)) + offset);
    });
    return Step::done;
  };
}

Handler jump() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) { w.counter[l] = i.arguments[0].target; });
    return Step::done;
  };
}

Handler leave() {
  return [](Warp& w, const Instruction&, uint32_t lanes) {
    bool unread = false;
    for_each_lane(lanes, [&](int l) {
      w.copies[l].commit(), w.copies[l].finish(0);
      const Copies& bulk = w.bulk_copies[l];
      for (const auto& group : bulk.groups) unread = unread || !group.empty();
      unread = unread || !bulk.open.empty();
    });
    if (unread) throw std::runtime_error("a thread ends before its bulk stores have read shared memory");
    if (!w.products.waiting.empty()) throw std::runtime_error("a warp ends without a wait for its products");
    w.alive &= ~lanes;
    if (!w.block->living() && !w.block->waited)
      throw std::runtime_error("a block that ends without a wait for earlier grids");
    return Step::done;
  };
}

// Grids run one after another; a block that may start early must behave as if they did not. What waits for a warp that
// has waited, waits too: so one does for its block.
Step wait_for_grids(Warp& w, const Instruction&, uint32_t) {
  w.block->waited = true;
  return Step::done;
}

}  // namespace

Handler across(const Instruction& i) {
  const std::string& op = i.name[0];
  if (op == "shfl" && i.has("b32") && (i.has("bfly") || i.has("idx"))) return shuffle(i.has("idx"));
  if (op == "elect") return elect();
  if (op == "mapa" && i.has("u32")) return map_to_block();
  if (op == "bra") return jump();
  if (op == "ret" || op == "exit") return leave();
  if (op == "griddepcontrol" && i.has("wait")) return wait_for_grids;
  // Memory is ordered already, registers are as many as wanted, and later grids start when this one has ended.
  const bool hint = op == "fence" || op == "setmaxnreg" || op == "griddepcontrol" || (op == "bar" && i.has("warp"));
  if (hint) return [](Warp&, const Instruction&, uint32_t) { return Step::done; };
  return nullptr;
}

Handler handler_of(const Instruction& i) {
  for (const auto group : {across, memory, asynchronous, barriers, matrices, conversion, arithmetic}) {
    if (Handler found = group(i)) return found;
  }
  return nullptr;
}

}  // namespace ptx
