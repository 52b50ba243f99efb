// The list of CUTLASS configurations in this build.
#include <vector>

#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

const TileConfig* cutlass_configs(int* count) {
  static const std::vector<TileConfig> configs{
#if defined(PTQ4ARVG_HAS_SM80)
      sm80_128x128x64(),
#endif
  };
  *count = static_cast<int>(configs.size());
  return configs.data();
}

}  // namespace ptq4arvg::cuda
