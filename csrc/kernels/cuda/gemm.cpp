#include "kernels/cuda/gemm.h"

#include "kernels/cuda/decode.h"
#include "kernels/cuda/gemm_float.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/unpack.h"
#include "kernels/last_kernel.h"

namespace ptq4arvg::cuda {
namespace {

// Row-major codes of a packed weight: itself at 8 bits, otherwise unpacked to scratch.
struct Codes {
  const int8_t* data;
  int64_t ldc;
};

cudaError_t codes_of(const PackProblem& p, const uint8_t* packed, const Launch& launch, const Scratch& scratch,
                     Codes* codes) {
  if (p.bits == 8) {
    *codes = {reinterpret_cast<const int8_t*>(packed), layout_of(p.n, p.k, 8).row_bytes};
    return cudaSuccess;
  }
  const int64_t ldc = round_up(p.k, kRowAlign);
  int8_t* data = static_cast<int8_t*>(scratch.allocate(scratch.context, p.n * ldc));
  *codes = {data, ldc};
  return unpack_weight(p, packed, data, ldc, launch);
}

}  // namespace

cudaError_t gemm(const GemmProblem& p, const Launch& launch, const Scratch& scratch) {
  const GemmChoice choice = choose_gemm(p, launch.device);
  set_last_kernel(choice.name);
  if (!choice.tile) {
    const DecodePlan plan = plan_decode(p.m, p.n, p.k, launch.device.sm_count);
    void* workspace = plan.workspace ? scratch.allocate(scratch.context, plan.workspace) : nullptr;
    return decode_gemm(p, plan, workspace, launch);
  }
  Codes codes;
  const PackProblem pack{p.n, p.k, p.bits, p.w_zero};
  if (const cudaError_t error = codes_of(pack, p.w, launch, scratch, &codes)) return error;
  const int32_t* packed_sums = reinterpret_cast<const int32_t*>(p.w + layout_of(p.n, p.k, p.bits).sums);
  CodesGemm g{p, codes.data, codes.ldc, p.epilogue.w_sum ? p.epilogue.w_sum : packed_sums, nullptr, 0,
              launch.device.sm, launch.device.sm_count, launch.stream, starts_early(launch.device.sm)};
  g.workspace_bytes = choice.tile->workspace(g);
  if (g.workspace_bytes) g.workspace = scratch.allocate(scratch.context, g.workspace_bytes);
  return choice.tile->launch(g);
}

cudaError_t gemm_float(const GemmFloatProblem& p, const Launch& launch, const Scratch& scratch) {
  static const char* const kNames[] = {"gemm_float.w4.cuda", "gemm_float.w6.cuda", "gemm_float.w8.cuda"};
  set_last_kernel(kNames[p.bits / 2 - 2]);
  Codes codes;
  const PackProblem pack{p.n, p.k, p.bits, p.w_zero};
  if (const cudaError_t error = codes_of(pack, p.w, launch, scratch, &codes)) return error;
  return gemm_float(p, codes.data, codes.ldc, launch);
}

}  // namespace ptq4arvg::cuda
