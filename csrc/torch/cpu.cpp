// CPU kernels of the operators, and torch's threads for them.
#include "kernels/parallel.h"
#include "torch/operators.h"

namespace ptq4arvg::cpu_ops {
namespace {

void run(const GemmProblem& problem) { cpu::gemm(problem); }
void run(const GemmFloatProblem& problem) { cpu::gemm_float(problem); }
void run(const QuantizeProblem& problem) { cpu::quantize(problem); }
void run(const NormQuantizeProblem& problem) { cpu::norm_quantize(problem); }
void run(const StoreKvProblem& problem) { cpu::store_kv(problem); }
void run(const AttentionProblem& problem) { cpu::attention(problem); }
void run(const QuantizeMapProblem& problem) { cpu::quantize_map(problem); }

struct Device {
  template <class Problem>
  static Run<Problem> runner(const char*, const Tensor&) {
    return [](const Problem& problem) { run(problem); };
  }
  static Tensor pack_weight(const Tensor& codes, const OptionalTensor& zero, int64_t bits) {
    return call_pack_weight(codes, zero, bits, cpu::packed_bytes, cpu::pack_weight);
  }

  static Tensor unpack_weight(const Tensor& packed, const OptionalTensor& zero, int64_t bits, int64_t n, int64_t k) {
    return call_unpack_weight(packed, zero, bits, n, k, cpu::unpack_weight);
  }
};

void torch_parallel(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, function, context));
}

int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace
}  // namespace ptq4arvg::cpu_ops

STABLE_TORCH_LIBRARY_IMPL(ptq4arvg, CPU, m) {
  ptq4arvg::set_parallel({ptq4arvg::cpu_ops::torch_parallel, ptq4arvg::cpu_ops::torch_threads});
  ptq4arvg::Operators<ptq4arvg::cpu_ops::Device>::implement(m);
}
