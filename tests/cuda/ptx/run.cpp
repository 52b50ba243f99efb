#include "run.h"

#include <algorithm>

#include "runtime.h"

namespace ptx {

uint32_t Block::living() const {
  uint32_t threads = 0;
  for (const Warp& each : warps) threads += each.alive ? kLanes : 0;
  return threads;
}

namespace {

uint64_t special(const std::string& name, const Block& block, const LaunchOf& launch, Dim thread) {
  const auto axis = [&](const Dim& d) { return name.back() == 'x' ? d.x : name.back() == 'y' ? d.y : d.z; };
  const auto over = [](const Dim& a, const Dim& b, bool rest) {
    return rest ? Dim{a.x % b.x, a.y % b.y, a.z % b.z} : Dim{a.x / b.x, a.y / b.y, a.z / b.z};
  };
  if (name.starts_with("%tid.")) return axis(thread);
  if (name.starts_with("%ntid.")) return axis(launch.block);
  if (name.starts_with("%ctaid.")) return axis(block.index);
  if (name.starts_with("%nctaid.")) return axis(launch.grid);
  if (name.starts_with("%cluster_ctaid.")) return axis(over(block.index, launch.cluster, true));
  if (name.starts_with("%cluster_nctaid.")) return axis(launch.cluster);
  if (name.starts_with("%clusterid.")) return axis(over(block.index, launch.cluster, false));
  if (name.starts_with("%nclusterid.")) return axis(over(launch.grid, launch.cluster, false));
  if (name == "%cluster_ctarank") return block.rank;
  if (name == "%laneid") return thread.x % kLanes;
  throw std::runtime_error("a special register that is not known: " + name);
}

void start(Warp& w, Block& block, const LaunchOf& launch, uint32_t first_thread) {
  const Program& program = *launch.program;
  w.block = &block;
  w.file.assign(static_cast<size_t>(program.slots) * kLanes, 0xbad0bad0bad0bad0u);
  for (const Constant& each : program.constants) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t t = first_thread + lane;
      const Dim thread{t % launch.block.x, t / launch.block.x % launch.block.y, t / (launch.block.x * launch.block.y)};
      uint64_t value = each.number;
      if (each.kind == Constant::Kind::shared) value += shared_base(block.rank);
      if (each.kind == Constant::Kind::parameters) value += reinterpret_cast<uint64_t>(launch.parameters);
      if (each.kind == Constant::Kind::special) value = special(each.special, block, launch, thread);
      w.set<uint64_t>(each.slot, lane, value);
    }
  }
}

std::unique_ptr<Block> make_block(Grid& grid, Dim index, std::shared_ptr<Cluster> cluster) {
  const LaunchOf& launch = grid.launch;
  auto block = std::make_unique<Block>();
  block->grid = &grid, block->index = index, block->waited = !launch.early;
  block->rank = static_cast<uint32_t>(cluster->blocks.size());
  cluster->blocks.push_back(block.get());
  block->cluster = std::move(cluster);
  const Program& program = *launch.program;
  block->shared.assign(std::max(program.static_shared, program.dynamic_begin) + launch.dynamic_shared, 0xcd);
  if (launch.program->plain_barriers) block->touched.resize(block->shared.size());
  block->warps.resize(launch.block.size() / kLanes);
  for (size_t i = 0; i < block->warps.size(); ++i)
    start(block->warps[i], *block, launch, static_cast<uint32_t>(i) * kLanes);
  return block;
}

[[noreturn]] void failed(const Warp& w, const Instruction& i, const std::string& why) {
  const Block& b = *w.block;
  throw std::runtime_error(b.grid->launch.program->name.substr(0, 160) + ": " + why + "\n  at: " + i.text +
                           "\n  block " + std::to_string(b.index.x) + ", " + std::to_string(b.index.y) + ", " +
                           std::to_string(b.index.z) + ", warp " + std::to_string(&w - b.warps.data()));
}

// The lanes that take part in a collective instruction: all that run, or those that it names.
uint32_t members(const Warp& w, const Instruction& i, uint32_t lanes) {
  if (i.name[0] != "shfl" && i.name[0] != "elect" && !i.has("warp")) return w.alive;
  const uint32_t named = w.get<uint32_t>(i.slot(static_cast<int>(i.arguments.size()) - 1), __builtin_ctz(lanes));
  if (named & ~w.alive) failed(w, i, "it waits for lanes that have ended");
  return named;
}

// One instruction of the warp: of its lanes that are furthest behind and may go on. False where none may.
Step step(Warp& w) {
  const std::vector<Instruction>& code = w.block->grid->launch.program->code;
  uint32_t left = w.alive;
  while (left) {
    int at = INT32_MAX;
    for_each_lane(left, [&](int l) { at = std::min(at, w.counter[l]); });
    uint32_t lanes = 0;
    for_each_lane(left, [&](int l) { lanes |= (w.counter[l] == at ? 1u : 0u) << l; });
    left &= ~lanes;
    const Instruction& i = code.at(at);
    uint32_t chosen = lanes;
    if (i.guard >= 0) {
      for_each_lane(lanes, [&](int l) {
        if (w.get<bool>(i.guard, l) == i.guard_negated) chosen &= ~(1u << l);
      });
    }
    if (i.collective && chosen && chosen != members(w, i, chosen)) continue;  // until the others come
    const std::array<int, kLanes> before = w.counter;
    for_each_lane(lanes, [&](int l) { w.counter[l] = at + 1; });
    if (!chosen) return Step::done;
    Step result;
    slots_taken += i.slots_taken;
    try {
      result = i.run(w, i, chosen);
    } catch (const std::exception& error) {
      failed(w, i, error.what());
    }
    if (result != Step::wait) return result;
    w.counter = before;
  }
  return Step::wait;
}

// One of the waiting copies.
void complete_one(Grid& grid) {
  const size_t n = grid.random() % grid.pending.size();
  std::swap(grid.pending[n], grid.pending.back());
  const auto copy = std::move(grid.pending.back());
  grid.pending.pop_back();
  copy();
}

using Blocks = std::vector<std::unique_ptr<Block>>;

void start_cluster(Grid& grid, Blocks& blocks, uint64_t n) {
  const Dim &all = grid.launch.grid, &size = grid.launch.cluster;
  const uint32_t across = all.x / size.x, down = all.y / size.y;
  const Dim first{uint32_t(n % across) * size.x, uint32_t(n / across % down) * size.y,
                  uint32_t(n / across / down) * size.z};
  auto cluster = std::make_shared<Cluster>();
  for (uint32_t i = 0; i < size.size(); ++i) {
    const Dim in{i % size.x, i / size.x % size.y, i / size.x / size.y};
    blocks.push_back(make_block(grid, {first.x + in.x, first.y + in.y, first.z + in.z}, cluster));
  }
}

// A cluster's blocks stay until all of them have ended: they may be written to.
void drop_ended(Blocks& blocks) {
  const auto ended = [](const Block* b) { return b->living() == 0; };
  for (const auto& block : blocks) {
    Cluster& cluster = *block->cluster;
    cluster.ended = std::ranges::all_of(cluster.blocks, ended);
    if (cluster.ended && cluster.pending) throw std::runtime_error("a block that ends before its copies have come");
  }
  std::erase_if(blocks, [](const auto& block) { return block->cluster->ended; });
}

// A turn of every living warp, in a random order, and now and then a copy. The number of instructions.
uint64_t turn(Grid& grid, const Blocks& blocks) {
  std::vector<Warp*> warps;
  for (const auto& block : blocks) {
    for (Warp& each : block->warps) {
      if (each.alive) warps.push_back(&each);
    }
  }
  std::shuffle(warps.begin(), warps.end(), grid.random);
  uint64_t steps = 0;
  for (Warp* each : warps) {
    for (uint32_t left = 1 + grid.random() % 256; left && each->alive; --left) {
      const Step result = step(*each);
      if (result != Step::wait) ++steps;
      if (result != Step::done) break;
    }
    if (!grid.pending.empty() && grid.random() % 4 == 0) complete_one(grid), ++steps;
  }
  if (!steps && !grid.pending.empty()) complete_one(grid), ++steps;
  if (!steps) {
    const Warp& w = *warps.front();
    failed(w, grid.launch.program->code.at(w.counter[__builtin_ctz(w.alive)]), "all warps wait for one another");
  }
  return steps;
}

}  // namespace

void run(const LaunchOf& launch, uint32_t resident, uint32_t seed, uint64_t most_steps) {
  Grid grid;
  grid.launch = launch, grid.random.seed(seed);
  const uint64_t size = launch.cluster.size(), clusters = launch.grid.size() / size;
  Blocks blocks;
  for (uint64_t started = 0, steps = 0; started < clusters || !blocks.empty();) {
    while (started < clusters && (blocks.empty() || blocks.size() + size <= resident)) {
      start_cluster(grid, blocks, started++);
    }
    steps += turn(grid, blocks);
    if (steps > most_steps) failed(blocks[0]->warps[0], launch.program->code.front(), "no end");
    drop_ended(blocks);
  }
}

}  // namespace ptx
