// Which tiled kernel takes a product of more than kDecodeRows rows: a table, first row that fits. No CUDA in here.
#pragma once

#include <cstdint>

namespace ptq4arvg::cuda {

struct TileChoice {
  int sm_from, sm_to;        // compute capability, both ends included, as are all bounds
  int64_t m_from, m_to, n_from, n_to, k_from, k_to;
  const char* kernel;
  const char* reason;
};

const TileChoice* tile_table(int* count);

inline bool fits(const TileChoice& row, int64_t m, int64_t n, int64_t k, int sm) {
  return row.sm_from <= sm && sm <= row.sm_to && row.m_from <= m && m <= row.m_to && row.n_from <= n &&
         n <= row.n_to && row.k_from <= k && k <= row.k_to;
}

}  // namespace ptq4arvg::cuda
