// Activation functions: polynomials in float32 with a fixed order of operations, one text for scalars and vectors.
//
// F is float or a vector type with the overloads of real.h. Errors against float64 (tests/ops/test_reference.py):
// silu, gelu_tanh and gelu stay within 4e-7 * max(1, |x|).
#pragma once

#include "kernels/real.h"

namespace ptq4arvg {

enum class Activation : int { none, gelu, gelu_tanh, silu };

// exp(x), x clamped to [-87, 88] so that no result is subnormal or infinite; NaN gives exp(-87).
// x = n ln2 + r with ln2 split in two, so that n * (355 / 512) is exact; polynomial of Cephes' expf.
template <class F>
PTQ4ARVG_FN F exponential(F x) {
  x = smaller(larger(x, F(-87.0f)), F(88.0f));
  const F n = round_even(mul(x, F(1.44269504088896341f)));
  const F r = sub(sub(x, mul(n, F(0.693359375f))), mul(n, F(-2.12194440e-4f)));
  F p = F(1.9875691500e-4f);
  p = add(mul(p, r), F(1.3981999507e-3f));
  p = add(mul(p, r), F(8.3334519073e-3f));
  p = add(mul(p, r), F(4.1665795894e-2f));
  p = add(mul(p, r), F(1.6666665459e-1f));
  p = add(mul(p, r), F(5.0000001201e-1f));
  p = add(add(mul(p, mul(r, r)), r), F(1.0f));
  return mul(p, power_of_two(n));
}

// x / (1 + exp(-x))
template <class F>
PTQ4ARVG_FN F silu(F x) {
  return div(x, add(F(1.0f), exponential(mul(x, F(-1.0f)))));
}

// x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3); equal to 0.5 x (1 + tanh u)
template <class F>
PTQ4ARVG_FN F gelu_tanh(F x) {
  const F slope = add(mul(mul(x, x), F(-0.0713548162726f)), F(-1.59576912161f));
  return div(x, add(F(1.0f), exponential(mul(x, slope))));
}

// x Phi(x). Phi(-|x|) = exp(-x^2 / 2) t q(t), t = 1 / (1 + p |x|), the form of Abramowitz and Stegun 26.2.17 with eight
// coefficients, fitted for relative error (1e-7 for |x| <= 12). Beyond |x| = 12.2 the exponential stays at exp(-75):
// its products would be subnormal, and processors are many times slower on those.
template <class F>
PTQ4ARVG_FN F gelu(F x) {
  const F t = div(F(1.0f), add(F(1.0f), mul(magnitude(x), F(0.2316419f))));
  F q = F(-0.07115190476179123f);
  q = add(mul(q, t), F(0.25082361698150635f));
  q = add(mul(q, t), F(-0.20728987455368042f));
  q = add(mul(q, t), F(0.23069390654563904f));
  q = add(mul(q, t), F(0.010500079952180386f));
  q = add(mul(q, t), F(0.10364207625389099f));
  q = add(mul(q, t), F(0.0902474969625473f));
  q = add(mul(q, t), F(0.09253464639186859f));
  const F tail = mul(mul(q, t), exponential(larger(mul(mul(x, x), F(-0.5f)), F(-75.0f))));
  return mul(x, if_negative(x, tail, sub(F(1.0f), tail)));
}

template <class F>
PTQ4ARVG_FN F activate(Activation kind, F x) {
  switch (kind) {
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::silu:
      return silu(x);
    case Activation::none:
      break;
  }
  return x;
}

}  // namespace ptq4arvg
