// The plain kernels: no blocking, no intrinsics. What every other instruction set has to agree with.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/layout.h"
#include "kernels/cpu/quantize_map.h"
#include "kernels/cpu/rowwise.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/store_kv.h"

namespace ptq4arvg::cpu {
namespace {

using Lanes = ScalarLanes;

// One panel as int8 [k][16].
void columns_of_panel(const uint8_t* panel, const Layout& layout, int bits, const int8_t* zeros, int64_t depth,
                      int8_t* out) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int c = 0; c < kPanel; ++c) {
      const int e = c * kGroup + static_cast<int>(k % kGroup);
      out[k * kPanel + c] = static_cast<int8_t>(stored_level(panel, layout, bits, k / kGroup, e) - zeros[c]);
    }
  }
}

// body(panel, codes [k][16], first column, end column)
template <class Problem, class Body>
void for_each_panel(const Problem& p, const Body& body) {
  const Layout layout = layout_of(p.n, p.k, p.bits);
  parallel_for(layout.panels, 1 + 16384 / (p.m * p.k + 1), [&](int64_t begin, int64_t end) {
    int8_t* codes = static_cast<int8_t*>(thread_scratch(p.k * kPanel));
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t* panel = p.w + i * layout.panel_bytes;
      int8_t zeros[kPanel];
      panel_zeros(p.w_zero, p.bits, p.n, i, zeros);
      columns_of_panel(panel, layout, p.bits, zeros, p.k, codes);
      const int64_t first = i * kPanel;
      body(panel + layout.sums, codes, first, first + kPanel < p.n ? first + kPanel : p.n);
    }
  });
}

void gemm_scalar(const GemmProblem& p) {
  // A row in pieces: of a patch its lines.
  const int64_t pieces = p.patches.height ? p.patches.kernel : 1, piece = p.k / pieces, line = p.patches.line();
  for_each_panel(p, [&](const uint8_t* packed_sums, const int8_t* w, int64_t first, int64_t end) {
    int32_t column_sums[kPanel];
    memcpy(column_sums, packed_sums, sizeof column_sums);
    for (int64_t m = 0; m < p.m; ++m) {
      int32_t sums[kPanel] = {};
      const int8_t* row = p.a + (p.patches.height ? p.patches.start(m) : m * p.a_stride);
      for (int64_t k = 0; k < p.k; ++k) {
        const int32_t a = row[k / piece * line + k % piece];
        for (int c = 0; c < kPanel; ++c) sums[c] += a * w[k * kPanel + c];
      }
      epilogue<Lanes, Lanes>(p, m, first, end, sums, column_sums);
    }
  });
}

void gemm_float_scalar(const GemmFloatProblem& p) {
  for_each_panel(p, [&p](const uint8_t*, const int8_t* w, int64_t first, int64_t end) {
    for (int64_t m = 0; m < p.m; ++m) {
      float sums[kPanel] = {};
      for (int64_t k = 0; k < p.k; ++k) {
        const float x = Lanes{}.load_any(p.x, m * p.x.row_stride + k);
        for (int c = 0; c < kPanel; ++c) sums[c] = add(sums[c], mul(x, static_cast<float>(w[k * kPanel + c])));
      }
      for (int64_t n = first; n < end; ++n) {
        float y = mul(p.w_scale[n], sums[n - first]);
        if (p.bias) y = add(y, p.bias[n]);
        Lanes{}.store_any(p.out, p.out_dtype, m * p.n + n, activate(p.activation, y));
      }
    }
  });
}

}  // namespace

const KernelTable& scalar_table() {
  static const KernelTable table{"scalar", gemm_scalar, gemm_float_scalar, quantize_rows<Lanes, Lanes>,
                                 norm_quantize_rows<Lanes, Lanes>, attention_heads<PlainDots, Lanes, Lanes>,
                                 store_kv_heads<Lanes, Lanes>, quantize_map_lines<Lanes, Lanes>};
  return table;
}

}  // namespace ptq4arvg::cpu
