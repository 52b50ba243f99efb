// The stages of a rotation as each product's layout spreads its columns over a warp, against the CPU's rotation.
#include "kernels/cuda/rotate.cuh"

#include "device.h"
#include "rotate.h"

using namespace ptq4arvg;

namespace {

struct MatrixPlace {
  int row, column;
};

// Lane l's value i is that of Place()(l, i).
struct OfDecode {
  __host__ __device__ MatrixPlace operator()(int lane, int) const { return {lane / 16, lane % 16}; }
};
struct OfFours {
  __host__ __device__ MatrixPlace operator()(int lane, int i) const { return {lane / 4, lane % 4 * 4 + i}; }
};
// mma's sums: of one row the pairs eight columns apart; of two tokens the channels eight apart.
struct OfPairs {
  __host__ __device__ MatrixPlace operator()(int lane, int i) const {
    return {lane / 4, lane % 4 * 2 + i % 2 + i / 2 * 8};
  }
};
struct OfTransposed {
  __host__ __device__ MatrixPlace operator()(int lane, int i) const {
    return {lane % 4 * 2 + i % 2, lane / 4 + i / 2 * 8};
  }
};

template <class Stages, class Place, int N>
__global__ void rotate_kernel(float* rows, int block) {
  const Place place;
  const int lane = threadIdx.x;
  float v[N];
  for (int i = 0; i < N; ++i) v[i] = rows[place(lane, i).row * kMaxEpilogueRotation + place(lane, i).column];
  Stages::template rotate<N>(v, block, [&](int i) { return place(lane, i).column; });
  for (int i = 0; i < N; ++i) rows[place(lane, i).row * kMaxEpilogueRotation + place(lane, i).column] = v[i];
}

template <class Stages, class Place, int N>
void check(const char* what) {
  constexpr int kColumns = kMaxEpilogueRotation, kRows = 32 * N / kColumns;
  for (int block = 2; block <= kColumns; block *= 2) {
    const DeviceArray<float> expected = floats(kRows * kColumns, -2, 2), actual(kRows * kColumns);
    memcpy(actual.data, expected.data, expected.bytes());
    for (int row = 0; row < kRows; ++row) {
      rotate_on_cpu(actual.data + row * kColumns, expected.data + row * kColumns, kColumns, block);
    }
    rotate_kernel<Stages, Place, N><<<1, 32>>>(actual.data, block);
    if (memcmp(expected.data, actual.data, expected.bytes())) fail(what, block);
  }
}

}  // namespace

int main() {
  check<cuda::LaneAfterLane, OfDecode, 1>("decode");
  check<cuda::FoursOfColumns, OfFours, 4>("fours");
  check<cuda::PairsOfColumns<2>, OfPairs, 4>("pairs");
  check<cuda::EveryFourthLane<2>, OfTransposed, 4>("transposed");
  std::printf("rotate: 4 layouts agree\nok\n");
  return 0;
}
