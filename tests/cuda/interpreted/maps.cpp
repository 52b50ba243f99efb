// quantize_map: sizes, types and alignments, every step on and off.
#include <vector>

#include "device.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda/rowwise.h"

using namespace ptq4arvg;

namespace {

// Device memory for one call.
struct Room {
  std::vector<DeviceArray<uint8_t>> arrays;

  cuda::Scratch scratch() {
    const auto allocate = [](void* context, size_t bytes) -> void* {
      auto& arrays = static_cast<Room*>(context)->arrays;
      arrays.emplace_back(bytes);
      return arrays.back().data;
    };
    return {allocate, this};
  }
};

void check_map(int64_t images, int64_t height, int64_t width, int64_t channels, int64_t groups) {
  QuantizeMapProblem p;
  p.images = images, p.height = height, p.width = width, p.channels = channels, p.groups = groups;
  const int64_t stride = channels + (uniform(0, 2) ? 0 : 1), count = images * p.pixels();
  const Floats x(count * stride, 300), vector(channels);
  const DeviceArray<float> inv = floats(1, 1, 40);
  p.table.bits = 4 + 2 * uniform(0, 2);
  const DeviceArray<int32_t> zero(1, [&] { return uniform(0, levels(p.table.bits) - 1); });
  p.table = {inv.data, zero.data, p.table.bits};
  p.x = x.all(stride);
  if (groups && uniform(0, 2)) p.weight = vector.all(0);
  if (groups && uniform(0, 2)) p.bias = vector.all(0);
  p.activation = Activation(uniform(0, 3));
  p.scale = uniform(1, 3);
  p.border = uniform(0, 2);
  const size_t bytes = images * p.out_height() * p.out_width() * channels;
  const DeviceArray<int8_t> expected(bytes), actual(bytes);
  actual.fill(0x33);
  p.out = expected.data;
  cpu::scalar_table().quantize_map(p);
  p.out = actual.data;
  Room room;
  if (cuda::quantize_map(p, {ptx_device()}, room.scratch()) != cudaSuccess) fail("start", images, height, width);
  for (size_t i = 0; i < bytes; ++i) {
    if (expected[i] != actual[i]) fail("quantize_map", images, height, width, channels, groups, i);
  }
}

}  // namespace

int main() {
  int maps = 0;
  for (int round = 0; round < 3; ++round) {
    for (const int64_t channels : {1, 8, 20, 32, 96, 160}) {
      for (const int64_t groups : {int64_t{0}, int64_t{1}, channels % 4 ? channels : channels / 4}) {
        check_map(uniform(1, 3), uniform(1, 9), uniform(1, 12), channels, groups), ++maps;
      }
    }
    check_map(1, 40, 37, 24, 8), ++maps;  // more runs than lanes
    check_map(2, 5, 13, 64, 2), ++maps;   // larger groups than a block totals at a time
  }
  std::printf("%d maps agree, %.3f bank conflicts\nok\n", maps, bank_conflicts());
  return 0;
}
