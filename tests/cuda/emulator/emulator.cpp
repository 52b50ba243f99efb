// Fibers for the threads of a block, taken in turn.
#include <cuda_runtime_api.h>

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace emulator {

dim3 thread, block, grid_block, grid;
bool early = false;
std::vector<const void*> drawn;

namespace {

constexpr size_t kStack = 128 * 1024;

struct Copy {
  uint32_t to;
  const void* from;
  int bytes;
};

struct Barrier {
  int arrived = 0, generation = 0, members = 0;

  void leave() {
    --members;
    open();
  }
  void open() {
    if (arrived == members && members > 0) arrived = 0, ++generation;
  }
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  dim3 thread;
  int index = 0;
  bool done = false, waited = false;
  std::vector<std::vector<Copy>> groups{1};
};

std::vector<std::unique_ptr<Fiber>> fibers;
ucontext_t scheduler;
Fiber* running = nullptr;
Barrier block_barrier, warp_barriers[32];
unsigned char slots[32][32][32];
std::vector<unsigned char> shared;
Body body;
void* body_context;

void yield() { swapcontext(&running->context, &scheduler); }

void wait(Barrier& barrier) {
  const int generation = barrier.generation;
  ++barrier.arrived;
  barrier.open();
  while (barrier.generation == generation) yield();
}

[[noreturn]] void fail(const char* what) {
  std::printf("FAILED: a thread %s before it has waited for earlier kernels\n", what);
  std::exit(1);
}

void fiber_main() {
  body(body_context);
  if (early && !running->waited) fail("has ended");
  running->done = true;
  warp_barriers[running->index / 32].leave();
  block_barrier.leave();
  yield();
}

void run_block() {
  const int threads = static_cast<int>(block.x * block.y * block.z);
  block_barrier = {0, 0, threads};
  for (Barrier& each : warp_barriers) each = {};
  // Unwritten shared memory must not pass for zeros.
  for (unsigned char& byte : shared) byte = 0xa5;
  while (static_cast<int>(fibers.size()) < threads) fibers.push_back(std::make_unique<Fiber>());
  for (int i = 0; i < threads; ++i) {
    Fiber& f = *fibers[i];
    f.index = i;
    f.thread = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
    f.done = f.waited = false;
    f.groups.assign(1, {});
    ++warp_barriers[i / 32].members;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = &scheduler;
    makecontext(&f.context, fiber_main, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    for (int i = 0; i < threads; ++i) {
      if (fibers[i]->done) continue;
      alive = true;
      running = fibers[i].get();
      thread = running->thread;
      swapcontext(&scheduler, &running->context);
    }
  }
}

}  // namespace

void run_grid(dim3 blocks, dim3 threads, int shared_bytes, Body kernel, void* context) {
  grid = blocks, block = threads, body = kernel, body_context = context;
  shared.resize(shared_bytes);
  drawn.clear();
  for (unsigned z = 0; z < blocks.z; ++z) {
    for (unsigned y = 0; y < blocks.y; ++y) {
      for (unsigned x = 0; x < blocks.x; ++x) grid_block = dim3(x, y, z), run_block();
    }
  }
}

void wait_for_warp() {
  wait(warp_barriers[running->index / 32]);
  thread = running->thread;
}
void wait_for_block() {
  wait(block_barrier);
  thread = running->thread;
}
unsigned char* shared_memory() { return shared.data(); }
unsigned char* slot(int lane) { return slots[running->index / 32][lane]; }
int lane() { return running->index % 32; }

void wait_for_earlier() { running->waited = true; }
void let_later_start() {
  if (!running->waited) fail("lets later kernels start");
}

void copy_later(uint32_t to, const void* from, int bytes) {
  if (early && !running->waited) fail("copies");
  if (to % 16 || to + 16 > shared.size() || (bytes && reinterpret_cast<uintptr_t>(from) % 16)) {
    std::printf("FAILED: cp.async to %u of %zu from %p\n", to, shared.size(), from);
    std::exit(1);
  }
  running->groups.back().push_back({to, from, bytes});
}
void close_group() { running->groups.emplace_back(); }
void wait_for_groups(int pending) {
  auto& groups = running->groups;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) {
      memset(shared.data() + copy.to, 0, 16);
      memcpy(shared.data() + copy.to, copy.from, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace emulator
