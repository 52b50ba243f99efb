// The description of a tensor for bulk copies: the driver's 128 bytes, in a form of our own.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <functional>

namespace ptx {

struct TensorMap {
  static constexpr uint32_t kMark = 0x7e5017u;
  uint32_t mark = kMark;
  uint8_t rank, element_bytes, swizzle_bytes, unused = 0;  // 128, 64, 32, or 0
  uint64_t base;
  uint64_t strides[4];  // bytes, of all dimensions but the first
  uint32_t sizes[5];
  uint16_t box[5];

  uint32_t box_bytes() const;
  // Calls f(global address or null outside of the tensor, place in shared memory, bytes) for pieces of 16 bytes, or
  // smaller ones where the tensor ends within.
  void for_each_piece(const int32_t* first, uint32_t shared,
                      const std::function<void(uint8_t*, uint32_t, int)>& f) const;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

// As the driver's function of this name: CUDA_ERROR_INVALID_VALUE, with a line on stderr, for what it refuses.
CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* sizes,
                      const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* element_strides,
                      CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill fill);

}  // namespace ptx
