// One table of functions per instruction set, and the choice among them.
#pragma once

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/gemm_float.h"
#include "kernels/norm_quantize.h"
#include "kernels/quantize.h"
#include "kernels/quantize_map.h"
#include "kernels/store_kv.h"

namespace ptq4arvg::cpu {

struct KernelTable {
  const char* isa;
  void (*gemm)(const GemmProblem&);
  void (*gemm_float)(const GemmFloatProblem&);
  void (*quantize)(const QuantizeProblem&);
  void (*norm_quantize)(const NormQuantizeProblem&);
  void (*attention)(const AttentionProblem&);
  void (*store_kv)(const StoreKvProblem&);
  void (*quantize_map)(const QuantizeMapProblem&);
  const KernelTable& (*gemm_table)(const GemmProblem&) = nullptr;  // whose gemm is best; null: always its own
};

const KernelTable& scalar_table();
#if defined(__x86_64__) || defined(_M_X64)
#define PTQ4ARVG_X86 1
const KernelTable& avx2_table();
const KernelTable& avx_vnni_table();
const KernelTable& avx512_vnni_table();
const KernelTable& amx_int8_table();
#elif defined(__aarch64__)
#define PTQ4ARVG_ARM64 1
const KernelTable& neon_dotprod_table();
#endif

struct IsaChoice {
  const char* name;
  bool (*available)();  // does this processor (and operating system) have it?
  const KernelTable& (*table)();
};

// Every compiled instruction set, best first.
const IsaChoice* isa_choices(int* count);

// The table in use: PTQ4ARVG_CPU_ISA, else the best that is available. Throws std::invalid_argument where the
// variable names an unknown set or one that the processor lacks.
const KernelTable& kernels();

// Choose by name from now on; "" goes back to the default. Throws as above and then changes nothing.
void set_isa(const char* name);

}  // namespace ptq4arvg::cpu
