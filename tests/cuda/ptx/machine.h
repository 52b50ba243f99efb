// The state of a running grid: blocks, warps, lanes, their memory and what they wait for.
//
// Addresses: global memory and kernel parameters are the host's own; shared memory is a window of 16 MiB for each
// block of a cluster, so that an address tells whose it is.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAll = 0xffffffffu;
constexpr uint32_t kSharedWindow = 1u << 24;

struct Dim {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t size() const { return uint64_t{x} * y * z; }
};

struct LaunchOf {  // what a grid is started with
  const Program* program = nullptr;
  Dim grid, block, cluster;
  uint32_t dynamic_shared = 0;
  bool early = false;  // it may start before earlier grids have ended
  const uint8_t* parameters = nullptr;
};

struct Grid;
struct Block;

// Copies that a lane has started with cp.async or cp.async.bulk and that may happen until it waits for them.
struct Copies {
  std::vector<std::function<void()>> open;
  std::deque<std::vector<std::function<void()>>> groups;
  void commit();
  void finish(size_t but);  // all groups but the latest ones
};

// wgmma of a warp: what it has issued and its warp group has not made yet, and how many it had issued at each commit.
struct GroupProducts {
  struct Product {
    const Instruction* instruction;
    uint64_t left, right;  // descriptors
    bool keep;
  };
  std::deque<Product> waiting;
  std::vector<uint64_t> commits;
  uint64_t issued = 0;
  uint64_t made() const { return issued - waiting.size(); }
};

struct Warp {
  Block* block = nullptr;
  uint32_t alive = kAll;
  std::array<int, kLanes> counter{};  // which instruction each lane is at
  std::vector<uint64_t> file;         // [slot][lane]
  std::array<Copies, kLanes> copies, bulk_copies;
  GroupProducts products;
  std::unordered_map<const Instruction*, uint64_t> arrived;  // barriers it waits at, and their round
  uint32_t barriers_passed = 0;                              // of all threads of the block
  uint64_t cluster_round = 0;                                // of its last arrival at the cluster's barrier

  // A value's low bytes. Narrow values are kept extended by their own sign.
  template <class T>
  T get(int slot, int lane) const {
    T value;
    if constexpr (std::is_same_v<T, bool>) return file[slot * kLanes + lane] & 1;
    memcpy(&value, &file[slot * kLanes + lane], sizeof value);
    return value;
  }
  template <class T>
  void set(int slot, int lane, T value) {
    uint64_t bits = 0;
    if constexpr (std::is_signed_v<T> && std::is_integral_v<T>) bits = static_cast<uint64_t>(int64_t{value});
    else memcpy(&bits, &value, sizeof value);
    file[slot * kLanes + lane] = bits;
  }
};

struct Barrier {
  uint32_t arrived = 0;  // threads
  uint64_t round = 0;
};

struct Cluster {
  std::vector<Block*> blocks;
  Barrier barrier;
  bool ended = false;
  int pending = 0;  // of the grid's copies, those for its blocks
};

// Who has touched a byte of shared memory last, and how many barriers that warp had passed.
struct Touched {
  static constexpr int kNobody = -1, kSeveral = -2;
  int written_by = kNobody, read_by = kNobody;
  uint32_t written_at = 0, read_at = 0;
};

struct Block {
  Grid* grid = nullptr;
  Dim index;
  uint32_t rank = 0;  // in its cluster
  std::shared_ptr<Cluster> cluster;
  std::vector<uint8_t> shared;
  std::vector<Touched> touched;  // of shared memory, where barriers are plain
  bool waited = false;  // for earlier grids
  std::vector<Warp> warps;
  std::array<Barrier, 16> barriers;
  uint32_t living() const;  // threads
};

struct Grid {
  LaunchOf launch;
  std::vector<std::function<void()>> pending;  // what the memory engine may do at any time, in any order
  std::mt19937 random;
  bool coin() { return random() & 1; }
};

// ---- memory ----

// Global memory may be read and written where it was allocated (runtime.h), and once earlier grids have ended.
void check_global(const Block& block, const void* address, size_t bytes, const char* what);
void check_allocated(const void* address, size_t bytes, const char* what);

// The bytes behind an address of shared memory. Throws outside of the block's memory or off a value's alignment.
uint8_t* shared_at(Block& block, uint32_t address, size_t bytes, size_t align);
uint32_t shared_base(uint32_t rank);

// Notes an access to the block's own shared memory. Throws where another warp's access has no barrier in between and
// one of the two writes: a race, whatever came out of it.
void touch(Warp& w, uint32_t address, size_t bytes, bool writes);

// An address of shared memory: a register and an offset.
inline uint32_t address_of(const Warp& w, const Argument& at, int lane) {
  return w.get<uint32_t>(at.slots[0], lane) + static_cast<uint32_t>(at.offset);
}

template <class F>
void for_each_lane(uint32_t lanes, F f) {
  for (; lanes; lanes &= lanes - 1) f(__builtin_ctz(lanes));
}

}  // namespace ptx
