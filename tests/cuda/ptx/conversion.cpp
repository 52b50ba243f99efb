// mov, cvt and cvta.
#include <cmath>
#include <limits>

#include "kernels/real.h"
#include "machine.h"
#include "operations.h"

namespace ptx {
namespace {

template <class T>
Handler move() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) { w.set<T>(i.slot(0), l, w.get<T>(i.slot(1), l)); });
    return Step::done;
  };
}

// One value in parts, or parts to one value: the first part is the lowest.
Handler split(int bits) {
  return [bits](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const Argument &to = i.arguments[0], &from = i.arguments[1];
      const bool apart = to.kind == Argument::Kind::vector;
      const int part = bits / static_cast<int>((apart ? to : from).slots.size());
      const uint64_t mask = (uint64_t{1} << part) - 1;
      if (apart) {
        const uint64_t all = w.get<uint64_t>(from.slots[0], l);
        for (size_t n = 0; n < to.slots.size(); ++n) w.set<uint64_t>(to.slots[n], l, all >> (part * n) & mask);
      } else {
        uint64_t all = 0;
        for (size_t n = 0; n < from.slots.size(); ++n) all |= (w.get<uint64_t>(from.slots[n], l) & mask) << (part * n);
        w.set<uint64_t>(to.slots[0], l, all);
      }
    });
    return Step::done;
  };
}

// Float to integer: the nearest one that the type has; not a number gives 0, or the top bit where either has 64 bits.
template <class To, class From>
To rounded(From x, const Instruction& i) {
  if (std::isnan(x)) return sizeof(From) == 8 || sizeof(To) == 8 ? To(uint64_t{1} << (8 * sizeof(To) - 1)) : To(0);
  const From y = i.has("rzi")   ? std::trunc(x)
                 : i.has("rmi") ? std::floor(x)
                 : i.has("rpi") ? std::ceil(x)
                                : std::rint(x);
  constexpr From low = static_cast<From>(std::numeric_limits<To>::min());
  constexpr From past = 2 * static_cast<From>(uint64_t{1} << (std::numeric_limits<To>::digits - 1));
  return y < low ? std::numeric_limits<To>::min() : y >= past ? std::numeric_limits<To>::max() : static_cast<To>(y);
}

template <class To, class From>
Handler convert(const Instruction& i) {
  constexpr bool from_float = std::is_floating_point_v<From>, to_float = std::is_floating_point_v<To>;
  const bool to_nearest = i.has("rn"), to_integer = i.has("rzi") || i.has("rni") || i.has("rmi") || i.has("rpi");
  constexpr bool widens = from_float && to_float && sizeof(To) > sizeof(From);
  if (to_float ? !(to_nearest || widens) : from_float != to_integer) return nullptr;
  if (i.has("sat")) return nullptr;
  return [](Warp& w, const Instruction& each, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const From x = w.get<From>(each.slot(1), l);
      if constexpr (from_float && !to_float) w.set<To>(each.slot(0), l, rounded<To>(x, each));
      else w.set<To>(each.slot(0), l, static_cast<To>(x));
    });
    return Step::done;
  };
}

Handler widen_half() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      w.set<float>(i.slot(0), l, ptq4arvg::f16_to_float(w.get<uint16_t>(i.slot(1), l)));
    });
    return Step::done;
  };
}

// The hardware has one bit pattern for what is not a number.
uint32_t half_of(float x, ptq4arvg::DType to) {
  if (std::isnan(x)) return 0x7fff;
  return to == ptq4arvg::DType::f16 ? ptq4arvg::float_to_f16(x) : ptq4arvg::float_to_bf16(x);
}

// cvt.rn.f16x2.f32 d, high, low, or to bfloat16.
Handler narrow_pair(ptq4arvg::DType to) {
  return [to](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const uint32_t high = half_of(w.get<float>(i.slot(1), l), to), low = half_of(w.get<float>(i.slot(2), l), to);
      w.set<uint32_t>(i.slot(0), l, high << 16 | low);
    });
    return Step::done;
  };
}

// Generic addresses of shared memory are the host's addresses of its bytes.
Handler address(const Instruction& i) {
  if (!i.has("shared")) return move<uint64_t>();
  return [to_shared = i.has("to")](Warp& w, const Instruction& each, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      Block& block = *w.block;
      const uint64_t x = w.get<uint64_t>(each.slot(1), l), own = shared_base(block.rank);
      const uint64_t host = reinterpret_cast<uint64_t>(block.shared.data());
      w.set<uint64_t>(each.slot(0), l, to_shared ? x - host + own : x - own + host);
    });
    return Step::done;
  };
}

}  // namespace

Handler conversion(const Instruction& i) {
  const std::string &op = i.name[0], &type = i.name.back();
  if (op == "cvta") return address(i);
  if (op == "mov") {
    const auto is_vector = [&](int n) { return i.arguments[n].kind == Argument::Kind::vector; };
    if (is_vector(0) || is_vector(1)) return split(type == "b32" ? 32 : 64);
    return by_type(type, []<class T>() -> Handler { return move<T>(); });
  }
  if (op != "cvt") return nullptr;
  const std::string& to = i.name[i.name.size() - 2];
  if (type == "f16" && to == "f32") return widen_half();
  if (i.full_name() == "cvt.rn.f16x2.f32") return narrow_pair(ptq4arvg::DType::f16);
  if (i.full_name() == "cvt.rn.bf16x2.f32") return narrow_pair(ptq4arvg::DType::bf16);
  return by_type(to, [&]<class To>() -> Handler {
    return by_type(type, [&]<class From>() -> Handler {
      if constexpr (std::is_same_v<To, bool> || std::is_same_v<From, bool>) return nullptr;
      else return convert<To, From>(i);
    });
  });
}

}  // namespace ptx
