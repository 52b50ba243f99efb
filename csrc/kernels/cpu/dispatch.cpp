#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels/cpu/isa.h"
#include "kernels/last_kernel.h"

#if defined(PTQ4ARVG_X86)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(PTQ4ARVG_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace ptq4arvg::cpu {
namespace {

bool always() { return true; }

#if defined(PTQ4ARVG_X86)
// Which register files the operating system saves (XCR0): without that the instructions fault.
bool system_saves(uint64_t wanted) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((static_cast<uint64_t>(high) << 32 | low) & wanted) == wanted;
}

bool has_avx2() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_FMA) || !(c & bit_F16C)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return false;
  return system_saves(0x6);  // xmm, ymm
}

bool has_avx_vnni() {
  unsigned a, b, c, d;
  if (!has_avx2() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || a < 1) return false;  // a: the last subleaf
  constexpr unsigned kAvxVnni = 1u << 4;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvxVnni);
}

bool has_avx512_vnni() {
  unsigned a, b, c, d;
  if (!has_avx2() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  return (b & wanted) == wanted && (c & bit_AVX512VNNI) && system_saves(0xe6);  // and opmask, zmm
}

// The tile registers are large: Linux gives them to processes that ask (arch_prctl, ARCH_REQ_XCOMP_PERM).
bool system_lends_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool lent = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return lent;
#else
  return false;
#endif
}

bool has_amx_int8() {
  unsigned a, b, c, d;
  if (!has_avx512_vnni() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  return (d & kTile) && (d & kInt8) && system_saves(0x600e6) && system_lends_tiles();
}
#endif

#if defined(PTQ4ARVG_ARM64)
bool has_neon_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kDotprod = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotprod;
#else
  return false;
#endif
}
#endif

const IsaChoice kChoices[] = {
#if defined(PTQ4ARVG_X86)
    {"amx_int8", has_amx_int8, amx_int8_table},
    {"avx512_vnni", has_avx512_vnni, avx512_vnni_table},
    {"avx_vnni", has_avx_vnni, avx_vnni_table},
    {"avx2", has_avx2, avx2_table},
#elif defined(PTQ4ARVG_ARM64)
    {"neon_dotprod", has_neon_dotprod, neon_dotprod_table},
#endif
    {"scalar", always, scalar_table},
};

const KernelTable* find(const std::string& name, const char* source) {
  std::string known;
  for (const IsaChoice& choice : kChoices) {
    if (name == choice.name) {
      if (choice.available()) return &choice.table();
      throw std::invalid_argument(std::string(source) + ": this processor or operating system has no " + name +
                                  "; leave it empty for the best that there is");
    }
    known += (known.empty() ? "" : ", ") + std::string(choice.name);
  }
  throw std::invalid_argument(std::string(source) + ": '" + name + "' is not known; wanted one of " + known +
                              ", or nothing for the best that there is");
}

const KernelTable* choose_default() {
  const char* forced = std::getenv("PTQ4ARVG_CPU_ISA");
  if (forced && *forced) return find(forced, "PTQ4ARVG_CPU_ISA");
  for (const IsaChoice& choice : kChoices) {
    if (choice.available()) return &choice.table();
  }
  return &scalar_table();
}

std::atomic<const KernelTable*> current{nullptr};

// Names are literals, so that reporting costs a store.
struct Names {
  const char *isa, *gemm[3], *conv2d[3], *gemm_float[3], *quantize, *gate_quantize, *norm_quantize, *attention, *store_kv,
      *quantize_map;
};

#define PTQ4ARVG_NAMES(isa)                                                                    \
  {#isa,                                                                                       \
   {"gemm.w4." #isa, "gemm.w6." #isa, "gemm.w8." #isa},                                        \
   {"conv2d.w4." #isa, "conv2d.w6." #isa, "conv2d.w8." #isa},                                  \
   {"gemm_float.w4." #isa, "gemm_float.w6." #isa, "gemm_float.w8." #isa},                      \
   "quantize." #isa,                                                                           \
   "gate_quantize." #isa,                                                                      \
   "norm_quantize." #isa,                                                                      \
   "attention." #isa,                                                                          \
   "store_kv." #isa,                                                                           \
   "quantize_map." #isa}

const Names kNames[] = {PTQ4ARVG_NAMES(scalar), PTQ4ARVG_NAMES(avx2), PTQ4ARVG_NAMES(avx_vnni),
                        PTQ4ARVG_NAMES(avx512_vnni), PTQ4ARVG_NAMES(amx_int8), PTQ4ARVG_NAMES(neon_dotprod)};

const Names& names_of(const KernelTable& table) {
  for (const Names& names : kNames) {
    if (std::string(names.isa) == table.isa) return names;
  }
  return kNames[0];
}

}  // namespace

const IsaChoice* isa_choices(int* count) {
  *count = static_cast<int>(sizeof kChoices / sizeof kChoices[0]);
  return kChoices;
}

const KernelTable& kernels() {
  const KernelTable* table = current.load(std::memory_order_acquire);
  if (!table) {
    table = choose_default();
    current.store(table, std::memory_order_release);
  }
  return *table;
}

void set_isa(const char* name) {
  current.store(name && *name ? find(name, "set_isa") : choose_default(), std::memory_order_release);
}

void gemm(const GemmProblem& problem) {
  const KernelTable& chosen = kernels();
  const KernelTable& table = chosen.gemm_table ? chosen.gemm_table(problem) : chosen;
  const Names& names = names_of(table);
  set_last_kernel((problem.patches.height ? names.conv2d : names.gemm)[problem.bits / 2 - 2]);
  table.gemm(problem);
}

void gemm_float(const GemmFloatProblem& problem) {
  const KernelTable& table = kernels();
  set_last_kernel(names_of(table).gemm_float[problem.bits / 2 - 2]);
  table.gemm_float(problem);
}

void quantize(const QuantizeProblem& problem) {
  const KernelTable& table = kernels();
  set_last_kernel(problem.gated ? names_of(table).gate_quantize : names_of(table).quantize);
  table.quantize(problem);
}

void norm_quantize(const NormQuantizeProblem& problem) {
  const KernelTable& table = kernels();
  set_last_kernel(names_of(table).norm_quantize);
  table.norm_quantize(problem);
}

void attention(const AttentionProblem& problem) {
  const KernelTable& table = kernels();
  set_last_kernel(names_of(table).attention);
  table.attention(problem);
}

void store_kv(const StoreKvProblem& problem) {
  const KernelTable& table = kernels();
  set_last_kernel(names_of(table).store_kv);
  table.store_kv(problem);
}

void quantize_map(const QuantizeMapProblem& problem) {
  const KernelTable& table = kernels();
  set_last_kernel(names_of(table).quantize_map);
  table.quantize_map(problem);
}

}  // namespace ptq4arvg::cpu
