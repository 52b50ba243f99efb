// The choice among the GEMM kernels of this build.
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

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
const char* full_name(const GemmProblem& p, const char* kernel) {
  static std::mutex mutex;
  static auto& names = *new std::map<std::tuple<bool, int, const char*>, std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  const bool patched = p.patches.height != 0;
  std::string& name = names[{patched, p.bits, kernel}];
  if (name.empty()) name = (patched ? "conv2d.w" : "gemm.w") + std::to_string(p.bits) + "." + kernel;
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

std::string known_names(bool patches) {
  std::string known;
  for (const KernelName& each : kernel_names()) {
    if (patches ? each.patches : each.rows) known += (known.empty() ? "" : ", ") + std::string(each.name);
  }
  return known;
}

// What the variable names, which is not the decode kernel.
GemmChoice forced(const char* variable, const std::string& name, const GemmProblem& p, const CodesGemm& g) {
  const std::string said = std::string(variable) + " is '" + name + "', ";
  const TileConfig* tile = find_tile(name);
  if (!tile) {
    throw std::invalid_argument(said + "wanted one of " + known_names(p.patches.height > 0) +
                                ", or nothing for the best");
  }
  const bool takes = p.patches.height ? tile->patches || tile == &tiled_config() : !tile->patches;
  if (!takes || !tile->can_run(g)) {
    throw std::invalid_argument(said + "which cannot take M " + std::to_string(p.m) + ", N " + std::to_string(p.n) +
                                ", K " + std::to_string(p.k) + " with these alignments on sm_" +
                                std::to_string(g.sm) + "; wanted another kernel, or nothing for the best");
  }
  return {tile, full_name(p, tile->name), variable};
}

// The kernel whose tiles have the fewest empty columns; of equals, the one with the widest.
GemmChoice choose_patches(const GemmProblem& p, const CodesGemm& g) {
  constexpr const char* kVariable = "PTQ4ARVG_CUDA_CONV_KERNEL";
  const char* name = std::getenv(kVariable);
  if (name && *name) return forced(kVariable, name, p, g);
  const auto columns = [&](const TileConfig* tile) { return (p.n + tile->tile_n - 1) / tile->tile_n * tile->tile_n; };
  const TileConfig* best = nullptr;
  for (const TileConfig* each : tiles()) {
    if (!each->patches || !each->can_run(g)) continue;
    if (!best || columns(each) < columns(best) || (columns(each) == columns(best) && each->tile_n > best->tile_n)) {
      best = each;
    }
  }
  if (best) return {best, full_name(p, best->name), "patches by TMA, fewest empty columns"};
  return {&tiled_config(), full_name(p, tiled_config().name), "gathers patches of any alignment"};
}

}  // namespace

const std::vector<KernelName>& kernel_names() {
  static const std::vector<KernelName> names = [] {
    std::vector<KernelName> list{{kDecodeName, 80, true, false}};
    for (const TileConfig* each : tiles()) {
      const bool any = each == &tiled_config();
      list.push_back({each->name, each->sm_min, any || !each->patches, any || each->patches});
    }
    return list;
  }();
  return names;
}

GemmChoice choose_gemm(const GemmProblem& p, const Device& device) {
  const CodesGemm g = as_codes(p, device);
  if (p.patches.height) return choose_patches(p, g);
  constexpr const char* kVariable = "PTQ4ARVG_CUDA_KERNEL";
  const char* name = std::getenv(kVariable);
  if (name && std::strcmp(name, kDecodeName) == 0) {
    if (p.m <= kDecodeRows) return {nullptr, full_name(p, kDecodeName), kVariable};
    throw std::invalid_argument(std::string(kVariable) + " is '" + name + "', which takes " +
                                std::to_string(kDecodeRows) + " rows at most, but a has " + std::to_string(p.m) +
                                "; wanted another kernel, or nothing for the best");
  }
  if (name && *name) return forced(kVariable, name, p, g);
  const ProductSize size{device.sm, p.m, p.n, p.k, p.bits, output_bytes(p.epilogue)};
  int count = 0;
  const TileChoice* table = tile_table(&count);
  for (int i = 0; i < count; ++i) {
    if (!fits(table[i], size)) continue;
    if (std::strcmp(table[i].kernel, kDecodeName) == 0) {
      if (p.m <= kDecodeRows) return {nullptr, full_name(p, kDecodeName), table[i].reason};
      continue;
    }
    const TileConfig* tile = find_tile(table[i].kernel);
    if (tile && tile->can_run(g)) return {tile, full_name(p, tile->name), table[i].reason};
  }
  return {&tiled_config(), full_name(p, tiled_config().name), "no row of the table fits"};
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
