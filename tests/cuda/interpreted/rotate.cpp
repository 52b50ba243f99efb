#include "rotate.h"

#include "kernels/cpu/rotate.h"

namespace ptq4arvg {

void rotate_on_cpu(const float* row, float* rotated, int columns, int block) {
  cpu::rotate_row<cpu::ScalarLanes, cpu::ScalarLanes>(
      0, columns, block, [&](auto, int64_t k) { return row[k]; }, [&](auto, int64_t k, float y) { rotated[k] = y; });
}

}  // namespace ptq4arvg
