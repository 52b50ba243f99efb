// The fused epilogue as a visitor of CUTLASS 2.x's epilogue: one node that reads the tables, computes and stores.
//
// CUTLASS exchanges the accumulators through shared memory so that a thread holds groups of neighbours in a row, and
// calls back per step (a few rows of the tile), row and group. What a step reads from memory is requested in
// begin_step, before the exchange, so that the barriers hide the latency.
#pragma once

#include <cute/tensor.hpp>
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "kernels/cuda/cutlass/memory.h"
#include "kernels/cuda/rotate.cuh"

namespace ptq4arvg::cuda {

template <class ThreadMap, Output output>
struct Sm80Visitor {
  static constexpr int kWidth = 4;  // elements of a group
  static_assert(ThreadMap::kElementsPerAccess == kWidth);

  struct Arguments {
    Epilogue epilogue;
    RowPositions rows;
  };
  using Params = Arguments;
  struct SharedStorage {};

  template <class ProblemShape>
  static Params to_underlying_arguments(const ProblemShape&, const Arguments& arguments, void*) {
    return arguments;
  }

  CUTLASS_HOST_DEVICE Sm80Visitor() {}
  CUTLASS_HOST_DEVICE Sm80Visitor(const Params& params, const SharedStorage&) : params_(&params) {}

  // The vectors over the weights' channels, for one group.
  struct Channels {
    Lanes<kWidth> scale, bias;
    Integers<kWidth> sum;
  };

  // Coordinates: (group's first element, column group, row group, step) -> (row, column, batch)
  template <class Coordinates>
  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    static constexpr int kColumns = ThreadMap::Iterations::kColumn;
    static constexpr int kRows = ThreadMap::Iterations::kRow;
    // A thread's columns are the same in every step. More than eight of them do not fit the registers beside the sums.
    static constexpr bool kHoldChannels = kColumns <= 2;

    const Params* params;
    Coordinates coordinates;
    int32_t m, n;
    TokenIndex tokens;
    Channels channels[kColumns];
    OutputRow rows[kRows];
    Raw<kWidth> gate[kRows * kColumns], residual[kRows * kColumns];

    CUTLASS_DEVICE Callbacks(const Params* params, Coordinates coordinates, int32_t m, int32_t n)
        : params(params), coordinates(coordinates), m(m), n(n) {}

    CUTLASS_DEVICE int32_t row_at(int row, int step) const {
      return cute::get<0>(coordinates(cute::_0{}, cute::_0{}, row, step));
    }
    CUTLASS_DEVICE int32_t column_at(int column) const {
      return cute::get<1>(coordinates(cute::_0{}, column, cute::_0{}, cute::_0{}));
    }

    CUTLASS_DEVICE Channels load_channels(int32_t column) const {
      const Epilogue& e = params->epilogue;
      Channels out{Lanes<kWidth>(0.0f), Lanes<kWidth>(kNoBias), Integers<kWidth>(0)};
      if (column >= n) return out;
      out.scale = load_lanes<kWidth>(e.w_scale, DType::f32, column);
      if (e.bias) out.bias = load_lanes<kWidth>(e.bias, DType::f32, column);
      if (e.a_zero) out.sum = load_integers(e.w_sum + column);
      return out;
    }

    CUTLASS_DEVICE void begin_epilogue() {
      tokens = token_index(params->rows);
      if constexpr (kHoldChannels) {
        CUTLASS_PRAGMA_UNROLL
        for (int c = 0; c < kColumns; ++c) channels[c] = load_channels(column_at(c));
      }
    }

    CUTLASS_DEVICE void begin_step(int step) {
      const Epilogue& e = params->epilogue;
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        rows[r] = output_row(e, row_entries(e, tokens.table(row_at(r, step)), output == Output::codes));
      }
      if (e.gate.data) load_operand(e.gate, true, step, gate);
      if (e.residual.data) load_operand(e.residual, false, step, residual);
    }

    // A gate has a row for each image. Its type is asked for once, so that all loads are on their way together.
    CUTLASS_DEVICE void load_operand(const FloatMatrix& x, bool by_image, int step, Raw<kWidth>* to) const {
      const auto all = [&](DType dtype) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kRows * kColumns; ++i) {
          const int32_t row = row_at(i / kColumns, step), column = column_at(i % kColumns);
          if (row >= m || column >= n) continue;
          to[i] = load_raw<kWidth>(x.data, dtype, (by_image ? tokens.image(row) : row) * x.row_stride + column);
        }
      };
      if (x.dtype == DType::f32) all(DType::f32);
      else all(DType::f16);  // or bfloat16, of the same size
    }

    template <class Accumulator, int size>
    CUTLASS_DEVICE auto visit(int step, int row_group, int c, int, const cutlass::Array<Accumulator, size>& sums) {
      static_assert(size == kWidth);
      const Epilogue& e = params->epilogue;
      const int32_t row = row_at(row_group, step), column = column_at(c);
      const OutputRow& t = rows[row_group];
      const Channels channel = kHoldChannels ? channels[c] : load_channels(column);
      const int group = row_group * kColumns + c;
      Lanes<kWidth> y;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kWidth; ++i) {
        y.v[i] = begin_element(sums[i], t.a_zero, channel.sum.v[i], channel.scale.v[i], t.a_scale, channel.bias.v[i]);
      }
      activate_all<kWidth>(e.activation, y.v);
      if (e.gate.data) {
        const Lanes<kWidth> factor = lanes_of(gate[group], e.gate.dtype);
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kWidth; ++i) y.v[i] = apply_gate(y.v[i], factor.v[i]);
      }
      if (e.residual.data) {
        const Lanes<kWidth> before = lanes_of(residual[group], e.residual.dtype);
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kWidth; ++i) y.v[i] = add_residual(y.v[i], before.v[i]);
      }
      if constexpr (output == Output::codes) {
        if (e.rotation) FoursOfColumns::rotate<kWidth>(y.v, e.rotation, [&](int i) { return column + i; });
      }
      if (row < m && column < n) {
        store_lanes<output>(e.out, static_cast<int64_t>(row) * n + column, y, t.requantize);
      }
      return sums;
    }
  };

  template <class ProblemShape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, ProblemShape shape) {
    auto all = cute::make_identity_tensor(shape);
    auto mine = cute::group_modes<3, 6>(ThreadMap::partition(all, thread, tile));
    return Callbacks<decltype(mine)>(params_, mine, cute::get<0>(shape), cute::get<1>(shape));
  }

 private:
  const Params* params_ = nullptr;
};

}  // namespace ptq4arvg::cuda
