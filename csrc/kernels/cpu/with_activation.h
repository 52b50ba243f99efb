// An activation as a constant for the compiler.
#pragma once

#include <type_traits>

#include "kernels/activation.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

// body(constant) where constant.value is `kind`: one copy of the code for each activation, none in its loops.
template <class Body>
PTQ4ARVG_FN void with_activation(Activation kind, const Body& body) {
  switch (kind) {
    case Activation::gelu:
      return body(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::gelu_tanh:
      return body(std::integral_constant<Activation, Activation::gelu_tanh>{});
    case Activation::silu:
      return body(std::integral_constant<Activation, Activation::silu>{});
    case Activation::none:
      return body(std::integral_constant<Activation, Activation::none>{});
  }
}

}  // namespace
}  // namespace ptq4arvg::cpu
