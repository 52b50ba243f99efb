// Convolutions: one configuration, the function PTQ4ARVG_TILE, on patches of maps.
#include "kernels/cuda/cutlass/table.h"
#include "kernels/cuda/tiled.h"
#include "product.h"

using namespace ptq4arvg;

namespace {

constexpr int kMultiprocessors = 4;

int count = 0;

void check(const cuda::TileConfig& config, int64_t images, int64_t height, int64_t width, int64_t channels,
           int64_t kernel, int64_t n) {
  // The plain kernel takes what the others cannot.
  const bool plain = &config == &cuda::tiled_config();
  Options options(!plain || (channels % 16 == 0 && n % 16 == 0 && uniform(0, 3)));
  options.patches = {height, width, channels, kernel};
  if (!plain) options.requantize = false;
  const Product p(images * height * width, n, kernel * kernel * channels, 8, options);
  const PlainCodes w(p.weight);
  const cuda::CodesGemm g{p.problem, w.codes.data,  w.ldc,            w.sums.data, nullptr,
                          0,         config.sm_min, kMultiprocessors, nullptr,     uniform(0, 1) == 1};
  if (!config.can_run(g)) fail("cannot run", images, height, width, channels, kernel, n);
  if (config.workspace(g)) fail("wants a workspace");
  const uint64_t before = ptx::launches;
  if (config.launch(g) != cudaSuccess) fail(config.name, images, height, width, channels, kernel, n);
  if (ptx::launches == before) fail("nothing was launched");
  p.compare(config.name);
  ++count;
}

}  // namespace

int main() {
  const cuda::TileConfig& config = cuda::PTQ4ARVG_TILE();
  ptx::device.sm = config.sm_min, ptx::device.sm_count = kMultiprocessors;
  const bool plain = &config == &cuda::tiled_config();
  const auto columns = [&] { return plain ? uniform(1, 150) : 8 * uniform(1, 45); };
  for (int round = 0; round < 3; ++round) {
    for (const int64_t channels : {16, 32, 80, 160}) {
      for (const int64_t kernel : {1, 2, 3, 5}) {
        check(config, uniform(1, 4), uniform(1, 9), uniform(1, 12), channels, kernel, columns());
      }
    }
    if (plain) {
      for (const int64_t channels : {1, 3, 20, 40}) check(config, 2, uniform(1, 9), 7, channels, 3, columns());
    }
  }
  // Tiles of rows that begin and end in lines and images; more tiles than multiprocessors; more steps than stages.
  check(config, 3, 7, 23, 48, 3, config.tile_n + 8);
  check(config, 1, 2, 3 * config.tile_m, 64, 3, 2 * config.tile_n);
  check(config, 1, 32, 32, 16, 3, 3 * config.tile_n);
  check(config, 1, 4, 5, 320, 3, config.tile_n);
  std::printf("%s: %d products agree, %.3f bank conflicts\nok\n", config.name, count, bank_conflicts());
  return 0;
}
