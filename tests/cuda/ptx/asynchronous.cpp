// Copies that run beside the program: cp.async, and bulk copies of a tensor's boxes. Each happens at once or at the
// last moment that the program allows, at random.
#include "barriers.h"
#include "machine.h"
#include "operations.h"
#include "tensor_map.h"
#include "traffic.h"

namespace ptx {

void Copies::commit() {
  groups.push_back(std::move(open));
  open.clear();
}

void Copies::finish(size_t but) {
  for (; groups.size() > but; groups.pop_front()) {
    for (const auto& copy : groups.front()) copy();
  }
}

namespace {

void now_or_later(Warp& w, Copies& copies, std::function<void()> copy) {
  if (w.block->grid->coin()) copy();
  else copies.open.push_back(std::move(copy));
}

// cp.async.cg.shared.global [to], [from], bytes{, bytes that are read}: zeros behind those.
Handler copy_to_shared() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    note_banks(w, i.arguments[0], lanes, 16);
    for_each_lane(lanes, [&](int l) {
      const uint32_t bytes = w.get<uint32_t>(i.slot(2), l);
      const uint32_t read = i.arguments.size() > 3 ? w.get<uint32_t>(i.slot(3), l) : bytes;
      const auto* from = reinterpret_cast<const uint8_t*>(w.get<uint64_t>(i.slot(1), l) + i.arguments[1].offset);
      const uint32_t at = address_of(w, i.arguments[0], l);
      uint8_t* to = shared_at(*w.block, at, bytes, bytes);
      if (read > bytes) throw std::runtime_error("cp.async of more bytes than it has room for");
      if (read) check_global(*w.block, from, read, "cp.async");
      if (reinterpret_cast<uint64_t>(from) % bytes) throw std::runtime_error("cp.async off its alignment");
      now_or_later(w, w.copies[l], [=, &w] {
        touch(w, at, bytes, true);
        memcpy(to, from, read);
        memset(to + read, 0, bytes - read);
      });
    });
    return Step::done;
  };
}

template <class Which>
Handler commit(Which which) {
  return [which](Warp& w, const Instruction&, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) { which(w)[l].commit(); });
    return Step::done;
  };
}

template <class Which>
Handler wait(Which which, bool all) {
  return [which, all](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      Copies& copies = which(w)[l];
      if (all) copies.commit();
      copies.finish(all ? 0 : w.get<uint32_t>(i.slot(0), l));
    });
    return Step::done;
  };
}

const TensorMap& map_of(const Warp& w, const Argument& at, int lane) {
  const auto* map = reinterpret_cast<const TensorMap*>(w.get<uint64_t>(at.slots[0], lane) + at.offset);
  if (reinterpret_cast<uint64_t>(map) % 64 || map->mark != TensorMap::kMark) {
    throw std::runtime_error("a bulk copy without a tensor map");
  }
  return *map;
}

std::array<int32_t, 5> coordinates(const Warp& w, const Argument& at, int lane) {
  std::array<int32_t, 5> first{};
  for (size_t d = 1; d < at.slots.size(); ++d) first.at(d - 1) = w.get<int32_t>(at.slots[d], lane);
  return first;
}

// cp.async.bulk.tensor [to], [map, {first}], [barrier]{, {offsets}}{, blocks}: a box of a tensor to the same place in each
// of the blocks, and its bytes to the barrier at the same place there.
Handler load_box(bool multicast, bool im2col) {
  return [multicast, im2col](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      Block& block = *w.block;
      const TensorMap& map = map_of(w, i.arguments[1], l);
      if (map.rank + 1u != i.arguments[1].slots.size())
        throw std::runtime_error("a bulk copy of another rank than its map");
      if (map.im2col != im2col) throw std::runtime_error("a bulk copy of another mode than its map");
      const auto first = coordinates(w, i.arguments[1], l);
      std::array<uint16_t, 3> offsets{};
      for (size_t d = 0; im2col && d < i.arguments[3].slots.size(); ++d) {
        offsets.at(d) = w.get<uint16_t>(i.arguments[3].slots[d], l);
      }
      const uint32_t to = address_of(w, i.arguments[0], l), barrier = address_of(w, i.arguments[2], l);
      if (to % 128) throw std::runtime_error("a bulk copy off its alignment");
      const uint32_t own = to / kSharedWindow - 1;
      const uint32_t blocks = multicast ? w.get<uint32_t>(i.slot(im2col ? 4 : 3), l) & 0xffff : 1u << own;
      for_each_lane(blocks, [&](int rank) {
        const uint32_t there = shared_base(rank) + to % kSharedWindow,
                       bell = shared_base(rank) + barrier % kSharedWindow;
        auto copy = [&block, &map, first, offsets, there, bell] {
          map.for_each_piece(first.data(), offsets.data(), there, [&](uint8_t* from, uint32_t at, int bytes) {
            uint8_t* piece = shared_at(block, at, 16, 16);
            if (bytes) check_global(block, from, bytes, "a bulk load");
            memset(piece, 0, 16);
            if (bytes) memcpy(piece, from, bytes);
          });
          bytes_arrived(block, bell, map.box_bytes());
          --block.cluster->pending;
        };
        ++block.cluster->pending;
        block.grid->pending.push_back(copy);
      });
    });
    return Step::done;
  };
}

// cp.async.bulk.tensor [map, {first}], [from]
Handler store_box() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      Block& block = *w.block;
      const TensorMap& map = map_of(w, i.arguments[0], l);
      const auto first = coordinates(w, i.arguments[0], l);
      const uint32_t from = address_of(w, i.arguments[1], l);
      if (map.rank + 1u != i.arguments[0].slots.size())
        throw std::runtime_error("a bulk copy of another rank than its map");
      if (from % 128) throw std::runtime_error("a bulk copy off its alignment");
      now_or_later(w, w.bulk_copies[l], [&block, &map, first, from] {
        map.for_each_piece(first.data(), nullptr, from, [&](uint8_t* to, uint32_t at, int bytes) {
          if (!bytes) return;
          check_global(block, to, bytes, "a bulk store");
          memcpy(to, shared_at(block, at, 16, 16), bytes);
        });
      });
    });
    return Step::done;
  };
}

}  // namespace

Handler asynchronous(const Instruction& i) {
  const auto& name = i.name;
  if (name[0] != "cp" || !i.has("async")) return nullptr;
  const auto plain = [](Warp& w) -> auto& { return w.copies; };
  const auto bulk = [](Warp& w) -> auto& { return w.bulk_copies; };
  if (!i.has("bulk")) {
    if (i.has("commit_group")) return commit(plain);
    if (i.has("wait_group") || i.has("wait_all")) return wait(plain, i.has("wait_all"));
    return i.has("shared") && i.has("global") ? copy_to_shared() : nullptr;
  }
  if (i.has("commit_group")) return commit(bulk);
  if (i.has("wait_group")) return wait(bulk, false);
  if (!i.has("tensor")) return nullptr;
  if (i.has("bulk_group")) return store_box();
  return i.has("shared::cluster") ? load_box(i.has("multicast::cluster"), i.has("im2col")) : nullptr;
}

}  // namespace ptx
