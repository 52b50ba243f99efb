// The list of CUTLASS configurations in this build.
#include "kernels/cuda/cutlass/table.h"

#include <vector>

namespace ptq4arvg::cuda {

const TileConfig* cutlass_configs(int* count) {
  static const std::vector<TileConfig> configs{
#if defined(PTQ4ARVG_HAS_SM80)
      sm80_128x128x64(),
#if !defined(PTQ4ARVG_CUDA_REDUCED)
      sm80_64x64x128(),
      sm80_64x128x128(),
      sm80_128x256x64(),
      sm80_256x128x64(),
#endif
#endif
#if defined(PTQ4ARVG_HAS_SM90A)
      sm90_128x128x128(),
      sm90_patches_128x128x64(),
#if !defined(PTQ4ARVG_CUDA_REDUCED)
      sm90_64x64x128(),
      sm90_64x128x128(),
      sm90_128x256x128(),
      sm90_128x128x128_streamk(),
      sm90_swap_32x128x128(),
      sm90_swap_32x128x128_streamk(),
      sm90_swap_64x128x128(),
      sm90_patches_128x160x64(),
#endif
#endif
  };
  *count = static_cast<int>(configs.size());
  return configs.data();
}

}  // namespace ptq4arvg::cuda
