#include "kernels/cuda/early_start.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace ptq4arvg::cuda {

bool early_start_wanted() {
  const char* text = std::getenv("PTQ4ARVG_CUDA_PDL");
  const std::string value = text ? text : "";
  if (value.empty() || value == "0") return false;
  if (value == "1") return true;
  throw std::invalid_argument("PTQ4ARVG_CUDA_PDL is '" + value +
                              "'; wanted 1 to let kernels start before earlier ones have ended, or 0");
}

}  // namespace ptq4arvg::cuda
