// Activation functions: polynomials in float32 with a fixed order of operations, one text for scalars and vectors. As
// few operations as may be: a GEMM with few columns K spends more on them than on its products.
//
// F is float or a vector type with the overloads of real.h. Errors against float64 (tests/ops/test_reference.py):
// silu, gelu_tanh and gelu stay within 4e-7 * max(1, |x|).
#pragma once

#include "kernels/real.h"

namespace ptq4arvg {

enum class Activation : int { none, gelu, gelu_tanh, silu };

// exp(x), x clamped to [-87, 87], so that no result is subnormal and reciprocal() takes 1 + any of them; NaN gives
// exp(-87). x = n ln2 + r with ln2 in two parts; polynomial of Cephes' expf.
template <class F>
PTQ4ARVG_FN F exponential(F x) {
  x = smaller(larger(x, F(-87.0f)), F(87.0f));
  const F shifted = fused(x, F(1.44269504088896341f), F(kRoundingShift));
  const F n = sub(shifted, F(kRoundingShift));
  const F r = fused(n, F(2.12194440e-4f), fused(n, F(-0.693359375f), x));
  const F p = polynomial(r, 1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                         5.0000001201e-1f, 1.0f, 1.0f);
  return times_power(p, shifted);
}

// x / (1 + exp(-x))
template <class F>
PTQ4ARVG_FN F silu(F x) {
  return mul(x, reciprocal(add(F(1.0f), exponential(mul(x, F(-1.0f))))));
}

// x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3); equal to 0.5 x (1 + tanh u)
template <class F>
PTQ4ARVG_FN F gelu_tanh(F x) {
  const F slope = fused(mul(x, x), F(-0.0713548162726f), F(-1.59576912161f));
  return mul(x, reciprocal(add(F(1.0f), exponential(mul(x, slope)))));
}

// x Phi(x). Phi(-|x|) = exp(-x^2 / 2) t q(t), t = 1 / (1 + p |x|), the form of Abramowitz and Stegun 26.2.17 with eight
// coefficients, fitted for relative error (1e-7 for |x| <= 12). Beyond |x| = 12.2 the exponential stays at exp(-75):
// its products would be subnormal, and processors are many times slower on those.
template <class F>
PTQ4ARVG_FN F gelu(F x) {
  const F t = reciprocal(fused(smaller(magnitude(x), F(0x1p60f)), F(0.2316419f), F(1.0f)));
  const F q = polynomial(t, -0.07115190476179123f, 0.25082361698150635f, -0.20728987455368042f, 0.23069390654563904f,
                         0.010500079952180386f, 0.10364207625389099f, 0.0902474969625473f, 0.09253464639186859f);
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
