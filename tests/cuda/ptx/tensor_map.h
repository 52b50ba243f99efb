// The description of a tensor for bulk copies: the driver's 128 bytes, in a form of our own.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <functional>

namespace ptx {

struct TensorMap {
  static constexpr uint32_t kMark = 0x7e5017u;
  uint32_t mark = kMark;
  uint8_t rank, element_bytes, swizzle_bytes;  // 128, 64, 32, or 0
  bool im2col = false;                         // boxes are box[1] pixels of box[0] channels
  uint64_t base;
  uint64_t strides[4];  // bytes, of all dimensions but the first
  uint32_t sizes[5];
  uint16_t box[5];
  int8_t lower[3], upper[3];  // im2col: where pixels begin, and end from the tensor's end, in dimensions 1, 2, ...

  uint32_t box_bytes() const;
  // Calls f(global address or null outside of the tensor, place in shared memory, bytes) for pieces of 16 bytes, or
  // smaller ones where the tensor ends within. offsets: of all pixels, in im2col.
  void for_each_piece(const int32_t* first, const uint16_t* offsets, uint32_t shared,
                      const std::function<void(uint8_t*, uint32_t, int)>& f) const;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

// As the driver's functions of these names: CUDA_ERROR_INVALID_VALUE, with a line on stderr, for what it refuses.
CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* sizes,
                      const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* element_strides,
                      CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill fill);
CUresult encode_im2col(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* sizes,
                       const cuuint64_t* strides, const int* lower, const int* upper, cuuint32_t channels,
                       cuuint32_t pixels, const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill);

}  // namespace ptx
