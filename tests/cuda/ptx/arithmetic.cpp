// Arithmetic, logic, comparison and selection: a lane's registers to its registers.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "machine.h"
#include "operations.h"

namespace ptx {
namespace {

template <class T>
constexpr bool is_float = std::is_floating_point_v<T>;

// Integers as unsigned ones, whose overflow wraps.
template <class T, bool = std::is_integral_v<T> && !std::is_same_v<T, bool>>
struct WrappingOf { using Type = T; };
template <class T>
struct WrappingOf<T, true> { using Type = std::make_unsigned_t<T>; };
template <class T>
using Wrapping = typename WrappingOf<T>::Type;

template <class T, class F>
Handler unary(F f) {
  return [f](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) { w.set<T>(i.slot(0), l, static_cast<T>(f(w.get<T>(i.slot(1), l)))); });
    return Step::done;
  };
}

template <class T, class F>
Handler binary(F f) {
  return [f](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      w.set<T>(i.slot(0), l, static_cast<T>(f(w.get<T>(i.slot(1), l), w.get<T>(i.slot(2), l))));
    });
    return Step::done;
  };
}

template <class T, class F>
Handler ternary(F f) {
  return [f](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const T a = w.get<T>(i.slot(1), l), b = w.get<T>(i.slot(2), l), c = w.get<T>(i.slot(3), l);
      w.set<T>(i.slot(0), l, static_cast<T>(f(a, b, c)));
    });
    return Step::done;
  };
}

// The smaller number, or the larger one: the other where one is not a number; -0 is less than +0.
template <class T, bool least>
T extreme(T a, T b) {
  if constexpr (is_float<T>) {
    if (std::isnan(a)) return b;
    if (std::isnan(b)) return a;
    if (a == b) return std::signbit(a) == least ? a : b;
  }
  return (a < b) == least ? a : b;
}

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

template <class T>
Handler integers(const Instruction& i, const std::string& op) {
  using U = Wrapping<T>;
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  constexpr int kBits = 8 * sizeof(T);
  if (op == "mul" && i.has("wide")) {
    return [](Warp& w, const Instruction& each, uint32_t lanes) {
      for_each_lane(lanes, [&](int l) {
        using To = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
        const To product = To{w.get<T>(each.slot(1), l)} * To{w.get<T>(each.slot(2), l)};
        if (sizeof(T) == 2) w.set<uint32_t>(each.slot(0), l, static_cast<uint32_t>(product));
        else w.set<To>(each.slot(0), l, product);
      });
      return Step::done;
    };
  }
  if (op == "add") return binary<T>([](T a, T b) { return U(U(a) + U(b)); });
  if (op == "sub") return binary<T>([](T a, T b) { return U(U(a) - U(b)); });
  if (op == "neg") return unary<T>([](T a) { return U(U(0) - U(a)); });
  if (op == "abs") return unary<T>([](T a) { return a < 0 ? U(U(0) - U(a)) : U(a); });
  if (op == "mul" && i.has("lo")) return binary<T>([](T a, T b) { return U(uint64_t(a) * uint64_t(b)); });
  if (op == "mul" && i.has("hi")) return binary<T>([](T a, T b) { return T((Wide(a) * Wide(b)) >> kBits); });
  if (op == "mad" && i.has("lo"))
    return ternary<T>([](T a, T b, T c) { return U(uint64_t(a) * uint64_t(b) + uint64_t(c)); });
  if (op == "div") return binary<T>([](T a, T b) { return b == 0 ? T(-1) : T(Wide(a) / Wide(b)); });
  if (op == "rem") return binary<T>([](T a, T b) { return b == 0 ? a : T(Wide(a) % Wide(b)); });
  if (op == "min") return binary<T>(extreme<T, true>);
  if (op == "max") return binary<T>(extreme<T, false>);
  return nullptr;
}

template <class T>
Handler floats(const Instruction& i, const std::string& op) {
  if (op == "add" && i.has("rn")) return binary<T>([](T a, T b) { return a + b; });
  if (op == "sub" && i.has("rn")) return binary<T>([](T a, T b) { return a - b; });
  if (op == "mul" && i.has("rn")) return binary<T>([](T a, T b) { return a * b; });
  if (op == "div" && i.has("rn")) return binary<T>([](T a, T b) { return a / b; });
  if (op == "fma" && i.has("rn")) return ternary<T>([](T a, T b, T c) { return std::fma(a, b, c); });
  if (op == "sqrt" && i.has("rn")) return unary<T>([](T a) { return std::sqrt(a); });
  if (op == "rcp" && i.has("rn")) return unary<T>([](T a) { return T(1) / a; });
  if (op == "neg") return unary<T>([](T a) { return -a; });
  if (op == "abs") return unary<T>([](T a) { return std::fabs(a); });
  if (op == "min") return binary<T>(extreme<T, true>);
  if (op == "max") return binary<T>(extreme<T, false>);
  return nullptr;
}

// The device's approximate reciprocal is off by one unit at most: so is this one at random, that is, the nearest float or
// the one on the other side of the true value. But where all bits of a mantissa are ones, division relies on the nearest.
Handler approximate_reciprocal() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const float x = flushed(w.get<float>(i.slot(1), l));
      float y = flushed(1.0f / x);
      const bool all_ones = (std::bit_cast<uint32_t>(x) & 0x7fffffu) == 0x7fffffu;
      const double beyond = 1.0 / x - y;
      if (std::isfinite(y) && y != 0 && beyond != 0 && !all_ones && w.block->grid->coin()) {
        y = std::nextafter(y, beyond * std::numeric_limits<float>::infinity());
      }
      w.set<float>(i.slot(0), l, y);
    });
    return Step::done;
  };
}

template <class T>
Handler logic(const std::string& op) {
  if (op == "and") return binary<T>([](T a, T b) { return a & b; });
  if (op == "or") return binary<T>([](T a, T b) { return a | b; });
  if (op == "xor") return binary<T>([](T a, T b) { return a ^ b; });
  if (op == "not") {
    if constexpr (std::is_same_v<T, bool>) return unary<T>([](T a) { return !a; });
    else return unary<T>([](T a) { return ~a; });
  }
  return nullptr;
}

// Distances past the width give 0, or the sign.
template <class T>
Handler shift(const std::string& op) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  return [left = op == "shl"](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const T a = w.get<T>(i.slot(1), l);
      const uint32_t by = w.get<uint32_t>(i.slot(2), l);
      if (left) w.set<T>(i.slot(0), l, by >= kBits ? T(0) : static_cast<T>(std::make_unsigned_t<T>(a) << by));
      else w.set<T>(i.slot(0), l, by >= kBits ? T(a < 0 ? -1 : 0) : static_cast<T>(a >> by));
    });
    return Step::done;
  };
}

template <class T, class F>
Handler comparison(F f) {
  return [f](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) { w.set<bool>(i.slot(0), l, f(w.get<T>(i.slot(1), l), w.get<T>(i.slot(2), l))); });
    return Step::done;
  };
}

template <class T>
Handler compare(const std::string& how) {
  if (how == "eq") return comparison<T>([](T a, T b) { return a == b; });
  if (how == "ne") return comparison<T>([](T a, T b) { return a < b || a > b; });
  if (how == "lt" || how == "lo") return comparison<T>([](T a, T b) { return a < b; });
  if (how == "le" || how == "ls") return comparison<T>([](T a, T b) { return a <= b; });
  if (how == "gt" || how == "hi") return comparison<T>([](T a, T b) { return a > b; });
  if (how == "ge" || how == "hs") return comparison<T>([](T a, T b) { return a >= b; });
  if constexpr (is_float<T>) {  // with a u: true also where one is not a number
    if (how == "equ") return comparison<T>([](T a, T b) { return !(a < b || a > b); });
    if (how == "neu") return comparison<T>([](T a, T b) { return !(a == b); });
    if (how == "ltu") return comparison<T>([](T a, T b) { return !(a >= b); });
    if (how == "leu") return comparison<T>([](T a, T b) { return !(a > b); });
    if (how == "gtu") return comparison<T>([](T a, T b) { return !(a <= b); });
    if (how == "geu") return comparison<T>([](T a, T b) { return !(a < b); });
    if (how == "nan") return comparison<T>([](T a, T b) { return std::isnan(a) || std::isnan(b); });
    if (how == "num") return comparison<T>([](T a, T b) { return !std::isnan(a) && !std::isnan(b); });
  }
  return nullptr;
}

template <class T>
Handler select() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      w.set<T>(i.slot(0), l, w.get<T>(w.get<bool>(i.slot(3), l) ? i.slot(1) : i.slot(2), l));
    });
    return Step::done;
  };
}

// Byte n of the result is byte (selector nibble n) of the eight bytes of a and b, or eight times that byte's sign.
uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = a | uint64_t{b} << 32;
  uint32_t out = 0;
  for (int n = 0; n < 4; ++n) {
    const uint32_t choice = selector >> 4 * n & 15, byte = static_cast<uint32_t>(bytes >> 8 * (choice & 7)) & 255;
    out |= (choice & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * n;
  }
  return out;
}

// bfi: the low `length` bits of a into b from bit `begin` on.
Handler insert_bits() {
  return [](Warp& w, const Instruction& i, uint32_t lanes) {
    for_each_lane(lanes, [&](int l) {
      const uint32_t begin = w.get<uint32_t>(i.slot(3), l) & 255, length = w.get<uint32_t>(i.slot(4), l) & 255;
      const uint64_t ones = length >= 32 ? 0xffffffffu : (uint64_t{1} << length) - 1;
      const uint32_t mask = begin >= 32 ? 0 : static_cast<uint32_t>(ones << begin);
      const uint64_t a = w.get<uint32_t>(i.slot(1), l);
      const uint32_t b = w.get<uint32_t>(i.slot(2), l);
      w.set<uint32_t>(i.slot(0), l, (b & ~mask) | (static_cast<uint32_t>(begin >= 32 ? 0 : a << begin) & mask));
    });
    return Step::done;
  };
}

}  // namespace

Handler arithmetic(const Instruction& i) {
  const std::string &op = i.name[0], &type = i.name.back();
  if (op == "rcp" && i.has("approx")) return i.full_name() == "rcp.approx.ftz.f32" ? approximate_reciprocal() : nullptr;
  if (i.full_name() == "fma.rn.sat.f32") {
    return ternary<float>([](float a, float b, float c) {
      const float y = std::fma(a, b, c);
      return y > 0.0f ? std::min(y, 1.0f) : 0.0f;  // not a number: 0
    });
  }
  for (const char* other : {"sat", "ftz", "NaN", "xorsign", "cc", "approx"}) {
    if (i.has(other)) return nullptr;
  }
  if (op == "setp" && i.arguments[0].slots.size() != 1) return nullptr;
  if (op == "prmt" && i.name.size() == 2) return ternary<uint32_t>(permuted);
  if (op == "bfi" && type == "b32") return insert_bits();
  return by_type(type, [&]<class T>() -> Handler {
    if (op == "selp") return select<T>();
    if (op == "setp" && i.name.size() == 3) return compare<T>(i.name[1]);
    if constexpr (is_float<T>) {
      return floats<T>(i, op);
    } else {
      if (op == "and" || op == "or" || op == "xor" || op == "not") return logic<T>(op);
      if constexpr (!std::is_same_v<T, bool>) {
        if (op == "shl" || op == "shr") return shift<T>(op);
        return integers<T>(i, op);
      }
      return nullptr;
    }
  });
}

}  // namespace ptx
