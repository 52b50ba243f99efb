// The choice among the GEMM kernels of this build.
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/tile_table.h"
#include "kernels/cuda/tiled.h"

namespace ptq4arvg::cuda {
namespace {

const std::vector<const TileConfig*>& tiles() {
  static const std::vector<const TileConfig*> all = [] {
    int count = 0;
    const TileConfig* configs = cutlass_configs(&count);
    std::vector<const TileConfig*> list;
    for (int i = 0; i < count; ++i) list.push_back(configs + i);
    list.push_back(&tiled_config());
    return list;
  }();
  return all;
}

const TileConfig* find_tile(const std::string& name) {
  for (const TileConfig* each : tiles()) {
    if (name == each->name) return each;
  }
  return nullptr;
}

// "gemm.w6.decode", made once and never freed.
const char* full_name(int bits, const char* kernel) {
  static std::mutex mutex;
  static auto& names = *new std::map<std::pair<int, const char*>, std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::string& name = names[{bits, kernel}];
  if (name.empty()) name = "gemm.w" + std::to_string(bits) + "." + kernel;
  return name.c_str();
}

// Sizes and alignments as the tiled kernels will see them. Unpacked codes are aligned as scratch is.
CodesGemm as_codes(const GemmProblem& p, const Device& device) {
  const Layout layout = layout_of(p.n, p.k, p.bits);
  const uint8_t* aligned = reinterpret_cast<const uint8_t*>(uintptr_t{256});
  const uint8_t* codes = p.bits == 8 ? p.w : aligned;
  const int32_t* sums = p.epilogue.w_sum ? p.epilogue.w_sum : reinterpret_cast<const int32_t*>(p.w + layout.sums);
  return {p,         reinterpret_cast<const int8_t*>(codes), round_up(p.k, kRowAlign), sums, nullptr, 0,
          device.sm, device.sm_count,                        nullptr};
}

int output_bytes(const Epilogue& e) { return e.requantize ? 1 : e.out_dtype == DType::f32 ? 4 : 2; }

GemmChoice forced(const std::string& name, const GemmProblem& p, const CodesGemm& g) {
  const std::string said = "PTQ4ARVG_CUDA_KERNEL is '" + name + "', ";
  if (name == kDecodeName) {
    if (p.m > kDecodeRows) {
      throw std::invalid_argument(said + "which takes " + std::to_string(kDecodeRows) + " rows at most, but a has " +
                                  std::to_string(p.m) + "; wanted another kernel, or nothing for the best");
    }
    return {nullptr, full_name(p.bits, kDecodeName), "PTQ4ARVG_CUDA_KERNEL"};
  }
  const TileConfig* tile = find_tile(name);
  if (!tile) {
    std::string known;
    for (const KernelName& each : kernel_names()) known += (known.empty() ? "" : ", ") + std::string(each.name);
    throw std::invalid_argument(said + "wanted one of " + known + ", or nothing for the best");
  }
  if (!tile->can_run(g)) {
    throw std::invalid_argument(said + "which cannot take M " + std::to_string(p.m) + ", N " + std::to_string(p.n) +
                                ", K " + std::to_string(p.k) + " with these alignments on sm_" +
                                std::to_string(g.sm) + "; wanted another kernel, or nothing for the best");
  }
  return {tile, full_name(p.bits, tile->name), "PTQ4ARVG_CUDA_KERNEL"};
}

}  // namespace

const std::vector<KernelName>& kernel_names() {
  static const std::vector<KernelName> names = [] {
    std::vector<KernelName> list{{kDecodeName, 80}};
    for (const TileConfig* each : tiles()) list.push_back({each->name, each->sm_min});
    return list;
  }();
  return names;
}

GemmChoice choose_gemm(const GemmProblem& p, const Device& device) {
  const CodesGemm g = as_codes(p, device);
  const char* name = std::getenv("PTQ4ARVG_CUDA_KERNEL");
  if (name && *name) return forced(name, p, g);
  const ProductSize size{device.sm, p.m, p.n, p.k, p.bits, output_bytes(p.epilogue)};
  int count = 0;
  const TileChoice* table = tile_table(&count);
  for (int i = 0; i < count; ++i) {
    if (!fits(table[i], size)) continue;
    if (std::strcmp(table[i].kernel, kDecodeName) == 0) {
      if (p.m <= kDecodeRows) return {nullptr, full_name(p.bits, kDecodeName), table[i].reason};
      continue;
    }
    const TileConfig* tile = find_tile(table[i].kernel);
    if (tile && tile->can_run(g)) return {tile, full_name(p.bits, tile->name), table[i].reason};
  }
  return {&tiled_config(), full_name(p.bits, tiled_config().name), "no row of the table fits"};
}

GemmChoice choose_gemm(int64_t m, int64_t n, int64_t k, int bits, int sm) {
  GemmProblem p;
  p.m = m, p.n = n, p.k = k, p.bits = bits;
  p.a_stride = round_up(k, kRowAlign);
  p.a = reinterpret_cast<const int8_t*>(uintptr_t{256});
  p.w = reinterpret_cast<const uint8_t*>(uintptr_t{256});
  Epilogue& e = p.epilogue;
  e.a_scale = e.w_scale = reinterpret_cast<const float*>(uintptr_t{256});
  e.out = reinterpret_cast<void*>(uintptr_t{256});
  Device device;
  device.sm = sm;
  device.sm_count = sm == 90 ? 132 : 108;
  return choose_gemm(p, device);
}

}  // namespace ptq4arvg::cuda
