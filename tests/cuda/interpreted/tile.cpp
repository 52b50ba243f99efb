// One tiled GEMM, the function PTQ4ARVG_TILE of a configuration: all outputs, sizes around its tile, every part of the
// epilogue.
#include "kernels/cuda/cutlass/table.h"
#include "kernels/cuda/tiled.h"
#include "product.h"

using namespace ptq4arvg;

namespace {

constexpr int kMultiprocessors = 4;

int count = 0;

void check(const cuda::TileConfig& config, int64_t m, int64_t n, int64_t k) {
  // The plain kernel takes what the others cannot.
  const bool aligned = &config != &cuda::tiled_config() || uniform(0, 2);
  if (!aligned) n += uniform(1, 7);
  const Product p(m, n, k, 8, Options(aligned));
  const PlainCodes w(p.weight);
  cuda::CodesGemm g{p.problem, w.codes.data,  w.ldc,            w.sums.data, nullptr,
                    0,         config.sm_min, kMultiprocessors, nullptr,     uniform(0, 1) == 1};
  if (!config.can_run(g)) fail("cannot run", m, n, k);
  g.workspace_bytes = config.workspace(g);
  const DeviceArray<uint8_t> workspace(g.workspace_bytes);
  g.workspace = workspace.data;
  const uint64_t before = ptx::launches;
  if (config.launch(g) != cudaSuccess) fail(config.name, m, n, k);
  if (ptx::launches == before) fail("nothing was launched", m, n, k);
  p.compare(config.name);
  ++count;
}

}  // namespace

int main() {
  const cuda::TileConfig& config = cuda::PTQ4ARVG_TILE();
  ptx::device.sm = config.sm_min, ptx::device.sm_count = kMultiprocessors;
  const int64_t tile_m = config.tile_m, tile_n = config.tile_n, tile_k = config.tile_k;
  for (int round = 0; round < 3; ++round) {
    for (const int64_t m : {int64_t{1}, int64_t{7}, tile_m - 1, tile_m, tile_m + 1, 2 * tile_m + 17}) {
      for (const int64_t n : {int64_t{16}, tile_n - 16, tile_n, 2 * tile_n + 48}) {
        check(config, m, n, 16 * uniform(1, 40));
      }
    }
  }
  // Depths: less than one step, whole ones, more than there are stages, odd ones, whose rows end in zeros.
  for (const int64_t k : {int64_t{1}, int64_t{16}, tile_k, tile_k + 1, 4 * tile_k, 16 * tile_k + 7}) {
    check(config, tile_m + 5, tile_n, k);
    check(config, 3, 80, k);
  }
  // More tiles than multiprocessors, so that persistent blocks go round.
  check(config, 5 * tile_m, 3 * tile_n, 96);
  // One row of codes for all: no row for TMA.
  Product same(3, tile_n, 64, 8, Options(true));
  same.problem.a_stride = 0;
  const PlainCodes w(same.weight);
  const cuda::CodesGemm g{same.problem, w.codes.data,  w.ldc,            w.sums.data, nullptr,
                          0,            config.sm_min, kMultiprocessors, nullptr};
  if (config.can_run(g) != (config.sm_min < 90)) fail("rows within one another", config.sm_min);
  std::printf("%s: %d products agree, %.3f bank conflicts\nok\n", config.name, count, bank_conflicts());
  return 0;
}
