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

}  // namespace

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* sizes,
                      const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* element_strides,
                      CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill fill) {
  TensorMap made{};
  const uint64_t address = reinterpret_cast<uint64_t>(base), at = reinterpret_cast<uint64_t>(map);
  if (at % 64) return refuse("its own address is no multiple of 64", at);
  if (rank < 1 || rank > 5) return refuse("rank", rank);
  if (!bytes_of(type)) return refuse("a type that is not known here", type);
  if (address == 0 || address % 16) return refuse("the tensor's address is no multiple of 16", address);
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) return refuse("an interleave that is not known here", interleave);
  if (bytes_of(swizzle) < 0) return refuse("a swizzle that is not known here", swizzle);
  if (fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) return refuse("a fill that is not known here", fill);
  made.rank = static_cast<uint8_t>(rank), made.element_bytes = static_cast<uint8_t>(bytes_of(type));
  made.swizzle_bytes = static_cast<uint8_t>(bytes_of(swizzle)), made.base = address;
  for (cuuint32_t d = 0; d < rank; ++d) {
    if (sizes[d] == 0 || sizes[d] > uint64_t{1} << 32) return refuse("a size", sizes[d]);
    if (box[d] == 0 || box[d] > 256) return refuse("a size of the box", box[d]);
    if (element_strides[d] != 1) return refuse("an element stride that is not known here", element_strides[d]);
    made.sizes[d] = static_cast<uint32_t>(sizes[d]), made.box[d] = static_cast<uint16_t>(box[d]);
    if (d == 0) continue;
    if (strides[d - 1] % 16 || strides[d - 1] >= uint64_t{1} << 40) return refuse("a stride", strides[d - 1]);
    made.strides[d - 1] = strides[d - 1];
  }
  const uint64_t row = uint64_t{box[0]} * made.element_bytes;
  if (row % 16) return refuse("the box's rows are no multiple of 16 bytes", row);
  if (made.swizzle_bytes && row > made.swizzle_bytes) return refuse("the box's rows are longer than the swizzle", row);
  static_assert(sizeof made <= sizeof *map);
  memcpy(map, &made, sizeof made);
  return CUDA_SUCCESS;
}

uint32_t TensorMap::box_bytes() const {
  uint32_t bytes = element_bytes;
  for (int d = 0; d < rank; ++d) bytes *= box[d];
  return bytes;
}

void TensorMap::for_each_piece(const int32_t* first, uint32_t shared,
                               const std::function<void(uint8_t*, uint32_t, int)>& f) const {
  const uint32_t row_bytes = uint32_t{box[0]} * element_bytes, rows = box_bytes() / row_bytes;
  for (uint32_t row = 0; row < rows; ++row) {
    uint64_t global = base;
    bool inside = true;
    uint32_t rest = row;
    for (int d = 1; d < rank; ++d) {
      const int64_t index = int64_t{first[d]} + rest % box[d];
      rest /= box[d];
      inside = inside && index >= 0 && index < int64_t{sizes[d]};
      global += static_cast<uint64_t>(index) * strides[d - 1];
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
