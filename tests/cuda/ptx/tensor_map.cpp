#include "tensor_map.h"

#include <cstdio>
#include <cstring>

namespace ptx {
namespace {

int bytes_of(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: return 4;
    default: return 0;
  }
}

int bytes_of(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE: return 0;
    case CU_TENSOR_MAP_SWIZZLE_32B: return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B: return 64;
    case CU_TENSOR_MAP_SWIZZLE_128B: return 128;
    default: return -1;
  }
}

CUresult refuse(const char* why, uint64_t value) {
  std::fprintf(stderr, "tensor map: %s (%llu)\n", why, static_cast<unsigned long long>(value));
  return CUDA_ERROR_INVALID_VALUE;
}

// What both kinds of maps have; the box's sizes are there already.
CUresult fill_in(TensorMap* made, CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                 const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* element_strides,
                 CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapFloatOOBfill fill) {
  const uint64_t address = reinterpret_cast<uint64_t>(base), at = reinterpret_cast<uint64_t>(map);
  if (at % 64) return refuse("its own address is no multiple of 64", at);
  if (!bytes_of(type)) return refuse("a type that is not known here", type);
  if (address == 0 || address % 16) return refuse("the tensor's address is no multiple of 16", address);
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) return refuse("an interleave that is not known here", interleave);
  if (bytes_of(swizzle) < 0) return refuse("a swizzle that is not known here", swizzle);
  if (fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) return refuse("a fill that is not known here", fill);
  made->rank = static_cast<uint8_t>(rank), made->element_bytes = static_cast<uint8_t>(bytes_of(type));
  made->swizzle_bytes = static_cast<uint8_t>(bytes_of(swizzle)), made->base = address;
  uint64_t reach = made->element_bytes;  // of all dimensions before, as the driver's manual has strides
  for (cuuint32_t d = 0; d < rank; ++d) {
    if (sizes[d] == 0 || sizes[d] > uint64_t{1} << 32) return refuse("a size", sizes[d]);
    if (element_strides[d] != 1) return refuse("an element stride that is not known here", element_strides[d]);
    made->sizes[d] = static_cast<uint32_t>(sizes[d]);
    if (d > 0) {
      if (strides[d - 1] % 16 || strides[d - 1] >= uint64_t{1} << 40) return refuse("a stride", strides[d - 1]);
      if (sizes[d] > 1 && strides[d - 1] < reach) return refuse("a stride within a dimension before", strides[d - 1]);
      made->strides[d - 1] = strides[d - 1];
    }
    reach = (d ? strides[d - 1] : reach) * sizes[d];
  }
  const uint64_t row = uint64_t{made->box[0]} * made->element_bytes;
  if (row % 16) return refuse("the box's rows are no multiple of 16 bytes", row);
  if (made->swizzle_bytes && row > made->swizzle_bytes) return refuse("the box's rows are longer than the swizzle", row);
  static_assert(sizeof *made <= sizeof *map);
  memcpy(map, made, sizeof *made);
  return CUDA_SUCCESS;
}

}  // namespace

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* sizes,
                      const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* element_strides,
                      CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill fill) {
  TensorMap made{};
  if (rank < 1 || rank > 5) return refuse("rank", rank);
  for (cuuint32_t d = 0; d < rank; ++d) {
    if (box[d] == 0 || box[d] > 256) return refuse("a size of the box", box[d]);
    made.box[d] = static_cast<uint16_t>(box[d]);
  }
  return fill_in(&made, map, type, rank, base, sizes, strides, element_strides, interleave, swizzle, fill);
}

CUresult encode_im2col(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* sizes,
                       const cuuint64_t* strides, const int* lower, const int* upper, cuuint32_t channels,
                       cuuint32_t pixels, const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  TensorMap made{};
  if (rank != 4) return refuse("a rank that is not known here", rank);
  if (channels == 0 || channels > 256) return refuse("channels", channels);
  if (pixels == 0 || pixels > 1024) return refuse("pixels", pixels);
  made.im2col = true;
  made.box[0] = static_cast<uint16_t>(channels), made.box[1] = static_cast<uint16_t>(pixels);
  for (int d = 0; d < 2; ++d) {
    const int from = lower[d], to = upper[d];
    if (from < -128 || from > 127 || to < -128 || to > 127) return refuse("a corner", from);
    if (static_cast<int64_t>(sizes[d + 1]) + to <= from) return refuse("an empty box of pixels", sizes[d + 1]);
    made.lower[d] = static_cast<int8_t>(from), made.upper[d] = static_cast<int8_t>(to);
  }
  return fill_in(&made, map, type, rank, base, sizes, strides, element_strides, interleave, swizzle, fill);
}

uint32_t TensorMap::box_bytes() const {
  uint32_t bytes = element_bytes;
  for (int d = 0; d < (im2col ? 2 : rank); ++d) bytes *= box[d];
  return bytes;
}

void TensorMap::for_each_piece(const int32_t* first, const uint16_t* offsets, uint32_t shared,
                               const std::function<void(uint8_t*, uint32_t, int)>& f) const {
  const uint32_t row_bytes = uint32_t{box[0]} * element_bytes, rows = box_bytes() / row_bytes;
  int64_t pixel[5] = {};  // in im2col the next one: they go through the box of pixels as through a tensor
  for (int d = 1; d < rank; ++d) pixel[d] = first[d];
  for (uint32_t row = 0; row < rows; ++row) {
    uint64_t global = base;
    bool inside = true;
    uint32_t rest = row;
    for (int d = 1; d < rank; ++d) {
      int64_t index = pixel[d];
      if (!im2col) index += rest % box[d], rest /= box[d];
      else if (d + 1 < rank) index += offsets[d - 1];
      inside = inside && index >= 0 && index < int64_t{sizes[d]};
      global += static_cast<uint64_t>(index) * strides[d - 1];
    }
    for (int d = 1; im2col && d < rank; ++d) {
      if (++pixel[d] < int64_t{sizes[d]} + upper[d - 1] || d + 1 == rank) break;
      pixel[d] = lower[d - 1];
    }
    for (uint32_t byte = 0; byte < row_bytes; byte += 16) {
      // Swizzling exchanges the 16-byte pieces of a line by bits of the address, wherever the box begins.
      const uint32_t line = shared + row * row_bytes + byte;
      const uint32_t to = swizzle_bytes ? line ^ (line >> 3 & (swizzle_bytes - 16u)) : line;
      int whole = 0;
      const int64_t begin = int64_t{first[0]} * element_bytes + byte, end = int64_t{sizes[0]} * element_bytes;
      if (inside && begin >= 0 && begin < end) whole = static_cast<int>(end - begin < 16 ? end - begin : 16);
      f(whole ? reinterpret_cast<uint8_t*>(global + static_cast<uint64_t>(begin)) : nullptr, to, whole);
    }
  }
}

}  // namespace ptx
