// The configurations, one function per file.
#pragma once

#include "kernels/cuda/gemm_cuda.h"

namespace ptq4arvg::cuda {

TileConfig sm80_64x64x128();
TileConfig sm80_64x128x128();
TileConfig sm80_128x128x64();
TileConfig sm80_128x256x64();
TileConfig sm80_256x128x64();

TileConfig sm90_64x64x128();
TileConfig sm90_64x128x128();
TileConfig sm90_128x128x128();
TileConfig sm90_128x256x128();
TileConfig sm90_128x128x128_streamk();
TileConfig sm90_swap_32x128x128();
TileConfig sm90_swap_32x128x128_streamk();
TileConfig sm90_swap_64x128x128();
TileConfig sm90_patches_128x128x64();
TileConfig sm90_patches_128x160x64();

}  // namespace ptq4arvg::cuda
