// The CPU's rotation of one row, in a file of its own: nvcc does not take it.
#pragma once

namespace ptq4arvg {

void rotate_on_cpu(const float* row, float* rotated, int columns, int block);

}  // namespace ptq4arvg
