// Barriers of a block, of a cluster, and those in shared memory that count arrivals and bytes.
#include "barriers.h"

#include "machine.h"
#include "operations.h"

namespace ptx {

// An mbarrier's 64 bits, which the hardware keeps to itself: arrivals that are missing and that a phase begins with (20
// bits each), bytes that are missing (23 bits, signed), and the parity of the phase.
struct Phase {
  int64_t missing, expected, bytes;
  bool parity;

  explicit Phase(uint64_t bits)
      : missing(bits & 0xfffff), expected(bits >> 20 & 0xfffff), bytes(static_cast<int64_t>(bits << 1) >> 41),
        parity(bits >> 63) {}
  uint64_t bits() const {
    return uint64_t(missing) | uint64_t(expected) << 20 | (uint64_t(bytes) & 0x7fffff) << 40 | uint64_t{parity} << 63;
  }
};

namespace {

Phase phase_at(Block& block, uint32_t address) {
  uint64_t bits;
  memcpy(&bits, shared_at(block, address, 8, 8), 8);
  return Phase(bits);
}

void change(Block& block, uint32_t address, int64_t arrivals, int64_t more_bytes) {
  Phase phase = phase_at(block, address);
  phase.missing -= arrivals;
  phase.bytes += more_bytes;
  if (phase.missing < 0) throw std::runtime_error("more arrivals at an mbarrier than it was made for");
  if (phase.missing == 0 && phase.bytes == 0) phase.missing = phase.expected, phase.parity = !phase.parity;
  const uint64_t bits = phase.bits();
  memcpy(shared_at(block, address, 8, 8), &bits, 8);
}

Handler initialize() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const uint64_t count = w.get<uint32_t>(i.slot(1), l), bits = count | count << 20;
      memcpy(shared_at(*w.block, address_of(w, i.arguments[0], l), 8, 8), &bits, 8);
    });
    return Step::done;
  };
}

Handler arrive(bool expects_bytes) {
  return [expects_bytes](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const int64_t bytes = expects_bytes ? w.get<uint32_t>(i.slot(2), l) : 0;
      change(*w.block, address_of(w, i.arguments[1], l), 1, bytes);
    });
    return Step::done;
  };
}

// Bytes that are to come before the phase ends, without an arrival.
Handler expect() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      change(*w.block, address_of(w, i.arguments[0], l), 0, w.get<uint32_t>(i.slot(1), l));
    });
    return Step::done;
  };
}

// Has the phase of this parity ended? A warp that learns no gives way to others.
Handler ask() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    bool all = true;
    for_each_lane(lanes, [&](int l) {
      const uint32_t asked = w.get<uint32_t>(i.slot(2), l) & 1;
      const bool ended = phase_at(*w.block, address_of(w, i.arguments[1], l)).parity != asked;
      w.set<bool>(i.slot(0), l, ended);
      all = all && ended;
    });
    return all ? Step::done : Step::pause;
  };
}

// A warp arrives once, then waits until as many threads as wanted have.
Step arrive_and_wait(Warp& w, const Instruction& i, Barrier& barrier, uint32_t wanted, bool waits) {
  const auto known = w.arrived.find(&i);
  if (known == w.arrived.end()) {
    const uint64_t round = barrier.round;
    barrier.arrived += kLanes;
    if (barrier.arrived > wanted) throw std::runtime_error("more threads at a barrier than it waits for");
    if (barrier.arrived == wanted) barrier.arrived = 0, ++barrier.round;
    if (!waits || barrier.round != round) return Step::done;
    w.arrived[&i] = round;
    return Step::wait;
  }
  if (barrier.round == known->second) return Step::wait;
  w.arrived.erase(known);
  return Step::done;
}

Handler block_barrier(bool waits) {
  return [waits](Warp& w, const Instruction& i, uint32_t lanes) {
    const int lane = __builtin_ctz(lanes);
    const uint32_t id = w.get<uint32_t>(i.slot(0), lane);
    const uint32_t wanted = i.arguments.size() > 1 ? w.get<uint32_t>(i.slot(1), lane) : w.block->living();
    const Step result = arrive_and_wait(w, i, w.block->barriers.at(id), wanted, waits);
    if (result == Step::done) ++w.barriers_passed;
    return result;
  };
}

// Arriving and waiting are two instructions: a warp keeps the round of its arrival in between.
Handler cluster_barrier(bool arrives) {
  return [arrives](Warp& w, const Instruction&, uint32_t) {
    Barrier& barrier = w.block->cluster->barrier;
    if (!arrives) return barrier.round == w.cluster_round ? Step::wait : Step::done;
    w.cluster_round = barrier.round;
    uint32_t threads = 0;
    for (const Block* each : w.block->cluster->blocks) threads += each->living();
    barrier.arrived += kLanes;
    if (barrier.arrived == threads) barrier.arrived = 0, ++barrier.round;
    return Step::done;
  };
}

}  // namespace

void bytes_arrived(Block& block, uint32_t address, int64_t bytes) { change(block, address, 0, -bytes); }

Handler barriers(const Instruction& i) {
  const std::string& op = i.name[0];
  if (op == "bar" && (i.has("sync") || i.has("arrive"))) return block_barrier(i.has("sync"));
  if (op == "barrier" && i.has("cluster")) return cluster_barrier(i.has("arrive"));
  if (op != "mbarrier") return nullptr;
  if (i.has("init")) return initialize();
  if (i.has("arrive")) {
    const bool expects = i.has("expect_tx"), plain = i.arguments[0].kind == Argument::Kind::unused;
    return plain && i.arguments.size() == (expects ? 3 : 2) ? arrive(expects) : nullptr;
  }
  if (i.has("expect_tx") && i.arguments.size() == 2) return expect();
  if (i.has("try_wait") && i.has("parity")) return ask();
  return nullptr;
}

}  // namespace ptx
