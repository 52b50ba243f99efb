// The fused epilogue as a node of CUTLASS 3.x's epilogue tree: static tables, arithmetic, gate, residual, output codes.
//
// Its children bring the vectors over the weights' channels: scale, sum and bias. The accumulators stay in the layout
// of wgmma, where a thread holds pairs of neighbours of two rows in each 64 rows, so the entries of the tables are
// loaded once per thread and tile, before the first group of columns.
//
// In a swapped problem CUTLASS multiplies the weights by the transposed codes, so that its rows are channels and its
// columns are tokens, and a thread's pairs are one channel of two tokens.
#pragma once

#include <cute/tensor.hpp>
#include <cutlass/epilogue/fusion/sm90_visitor_tma_warpspecialized.hpp>
#include <cutlass/numeric_types.h>

#include "kernels/cuda/cutlass/memory.h"
#include "kernels/cuda/rotate.cuh"

namespace ptq4arvg::cuda {

template <Output output>
struct CutlassElement;
template <>
struct CutlassElement<Output::codes> { using Type = int8_t; };
template <>
struct CutlassElement<Output::f32> { using Type = float; };
template <>
struct CutlassElement<Output::f16> { using Type = cutlass::half_t; };
template <>
struct CutlassElement<Output::bf16> { using Type = cutlass::bfloat16_t; };

template <Output output, bool swapped>
struct Sm90Finish {
  static constexpr int kRowMode = swapped ? 1 : 0;  // which of CUTLASS's coordinates counts tokens
  using Element = typename CutlassElement<output>::Type;
  // Whether it can have a residual as CUTLASS's source operand. Of swapped problems, where threads read its elements one
  // by one from shared memory, CUTLASS 4.2 makes integers of them, the type of the sums.
  static constexpr bool kFetches = output != Output::codes && !swapped;

  struct SharedStorage {};
  struct Arguments {
    Epilogue epilogue;
    RowPositions rows;
    bool fetched = false;  // the residual is CUTLASS's source operand, which TMA brings while tiles are multiplied
  };
  using Params = Arguments;

  template <class Shape>
  static constexpr Params to_underlying_arguments(const Shape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class Shape>
  static bool can_implement(const Shape&, const Arguments&) {
    return true;
  }
  template <class Shape>
  static size_t get_workspace_size(const Shape&, const Arguments&) {
    return 0;
  }
  template <class Shape>
  static cutlass::Status initialize_workspace(const Shape&, const Arguments&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }

  CUTLASS_HOST_DEVICE Sm90Finish() {}
  CUTLASS_HOST_DEVICE Sm90Finish(const Params& params, const SharedStorage&) : params_(&params) {}

  CUTLASS_DEVICE bool is_producer_load_needed() const { return is_C_load_needed(); }
  CUTLASS_DEVICE bool is_C_load_needed() const { return kFetches && params_->fetched; }

  template <class... Args>
  CUTLASS_DEVICE auto get_producer_load_callbacks(const cutlass::epilogue::fusion::detail::ProducerLoadArgs<Args...>&) {
    return cutlass::epilogue::fusion::detail::EmptyProducerLoadCallbacks{};
  }

  // Offsets and Rows: (piece, piece in m, piece in n, subtile in m, subtile in n) -> coordinates relative to the
  // thread's first element, and the entries of the element's row. Source: a subtile's elements of the source operand.
  template <class Offsets, class RowStrides, class Rows, class Source>
  struct Callbacks : cutlass::epilogue::fusion::detail::EmptyConsumerStoreCallbacks {
    const Params* params;
    Offsets offsets;
    Rows rows;
    const Source& source;
    int32_t first_row, first_column, m, n;
    TokenIndex tokens;

    CUTLASS_DEVICE Callbacks(const Params* params, Offsets offsets, Rows rows, const Source& source, int32_t first_row,
                             int32_t first_column, int32_t m, int32_t n)
        : params(params), offsets(offsets), rows(rows), source(source), first_row(first_row),
          first_column(first_column), m(m), n(n) {}

    CUTLASS_DEVICE void begin() {
      tokens = token_index(params->rows);
      auto distinct = cute::filter_zeros(rows);
      auto where = cute::filter_zeros(offsets, RowStrides{});
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < cute::size(distinct); ++i) {
        const int32_t row = first_row + cute::get<kRowMode>(where(i));
        const RowEntries of = row_entries(params->epilogue, tokens.table(row), output == Output::codes);
        distinct(i) = output_row(params->epilogue, of);
      }
    }

    template <int size>
    CUTLASS_DEVICE cutlass::Array<Element, size> visit(const cutlass::Array<int32_t, size>& sums, int piece,
                                                       int subtile_m, int subtile_n,
                                                       const cutlass::Array<float, size>& w_scale,
                                                       const cutlass::Array<int32_t, size>& w_sum,
                                                       const cutlass::Array<float, size>& bias) {
      // Lanes that share a branch: enough parallelism, few registers. Codes need their tables beside the sums, and floats
      // twice the registers of a source.
      constexpr int kWidth = output == Output::codes || output == Output::f32 ? 4 : 8;
      static_assert(size % 8 == 0);
      const Epilogue& e = params->epilogue;
      auto row_of = rows(cute::_, cute::_, cute::_, subtile_m, subtile_n);
      const int first = piece * size;
      cutlass::Array<Element, size> out;
      CUTLASS_PRAGMA_UNROLL
      for (int begin = 0; begin < size; begin += kWidth) {
        Lanes<kWidth> y, gate, residual;
        if (e.gate.data) load_operand(e.gate, true, first, begin, subtile_m, subtile_n, gate);
        if (kFetches && params->fetched) {
          take_source<size>(piece, begin, residual);
        } else if (e.residual.data) {
          load_operand(e.residual, false, first, begin, subtile_m, subtile_n, residual);
        }
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kWidth; ++i) {
          const int j = place(begin + i);
          const OutputRow& row = row_of(first + j);
          y.v[i] = begin_element(sums[j], row.a_zero, w_sum[j], w_scale[j], row.a_scale, bias[j]);
        }
        activate_all<kWidth>(e.activation, y.v);
        if (e.gate.data) {
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < kWidth; ++i) y.v[i] = apply_gate(y.v[i], gate.v[i]);
        }
        if (e.residual.data) {
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < kWidth; ++i) y.v[i] = add_residual(y.v[i], residual.v[i]);
        }
        if constexpr (output == Output::codes) {
          if (e.rotation) rotate(y, first, begin, subtile_m, subtile_n);
        }
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kWidth; i += 4) {
          const auto table_of = [&](int k) { return row_of(first + place(begin + i + k)).requantize; };
          const QuantizeRow to[] = {table_of(0), table_of(1), table_of(2), table_of(3)};
          put(out, begin + i, y.v + i, to);
        }
      }
      return out;
    }

   private:
    // Elements come in pairs of neighbours, as in wgmma's layout.
    static constexpr bool in_pairs() {
      constexpr typename Offsets::layout_type layout{};
      for (int i = 0; i < cute::size(layout); i += 2) {
        if (cute::get<0>(layout(i + 1)) != cute::get<0>(layout(i))) return false;
        if (cute::get<1>(layout(i + 1)) != cute::get<1>(layout(i)) + 1) return false;
      }
      return true;
    }

    // Eight values in a row are pairs of two rows of CUTLASS's and of columns 8 apart.
    static constexpr bool in_eights() {
      constexpr typename Offsets::layout_type layout{};
      for (int i = 0; i < cute::size(layout); ++i) {
        if (cute::get<0>(layout(i)) - cute::get<0>(layout(i / 8 * 8)) != (i & 2 ? 8 : 0)) return false;
        if (cute::get<1>(layout(i)) - cute::get<1>(layout(i / 8 * 8)) != (i & 1) + (i & 4 ? 8 : 0)) return false;
      }
      return true;
    }

    // The i-th value in the order in which they are computed. Four codes are of one block of 16 channels, which may be
    // rotated: the pairs of one row, then those of the other; or, swapped, both channels of two tokens, as they are.
    static constexpr int place(int i) {
      if (output != Output::codes || swapped) return i;
      return i / 8 * 8 + i / 4 % 2 * 2 + i / 2 % 2 * 4 + i % 2;
    }

    CUTLASS_DEVICE void rotate(Lanes<4>& y, int first, int begin, int subtile_m, int subtile_n) {
      static_assert(in_eights());
      using Stages = cute::conditional_t<swapped, EveryFourthLane<2>, PairsOfColumns<2>>;
      auto offset_of = offsets(cute::_, cute::_, cute::_, subtile_m, subtile_n);
      Stages::template rotate<4>(y.v, params->epilogue.rotation, [&](int i) {
        return first_column + cute::get<1 - kRowMode>(offset_of(first + place(begin + i)));
      });
    }

    template <int size, int width>
    CUTLASS_DEVICE void take_source(int piece, int begin, Lanes<width>& to) const {
      if constexpr (kFetches) {
        static_assert(cute::is_same_v<typename Source::value_type, Element>);
        const auto& fetched = cute::recast<cutlass::Array<Element, size>>(source)(piece);
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < width; ++i) to.v[i] = static_cast<float>(fetched[begin + i]);
      }
    }

    // A gate has a row for each image. Its type is asked for once, so that all loads are on their way before any is
    // waited for.
    template <int width>
    CUTLASS_DEVICE void load_operand(const FloatMatrix& x, bool by_image, int first, int begin, int subtile_m,
                                     int subtile_n, Lanes<width>& to) {
      constexpr int kStep = swapped ? 1 : 2;
      static_assert(swapped || in_pairs());
      auto offset_of = offsets(cute::_, cute::_, cute::_, subtile_m, subtile_n);
      const auto all = [&](DType dtype) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < width; i += kStep) {
          const auto offset = offset_of(first + place(begin + i));
          const int32_t row = first_row + cute::get<kRowMode>(offset);
          const int32_t column = first_column + cute::get<1 - kRowMode>(offset);
          Lanes<kStep> values(0.0f);
          if (row < m && column < n) {
            values = load_lanes<kStep>(x.data, dtype, (by_image ? tokens.image(row) : row) * x.row_stride + column);
          }
          CUTLASS_PRAGMA_UNROLL
          for (int j = 0; j < kStep; ++j) to.v[i + j] = values.v[j];
        }
      };
      if (x.dtype == DType::f32) all(DType::f32);
      else if (x.dtype == DType::bf16) all(DType::bf16);
      else all(DType::f16);
    }

    template <int size>
    CUTLASS_DEVICE static void put(cutlass::Array<Element, size>& out, int at, const float* y, const QuantizeRow* to) {
      if constexpr (output == Output::codes) {
        const uint32_t word = low_bytes(code_bits(y[0], to[0]), code_bits(y[1], to[1]), code_bits(y[2], to[2]),
                                        code_bits(y[3], to[3]));
        auto& halves = reinterpret_cast<cutlass::Array<uint16_t, size / 2>&>(out);
        halves[place(at) / 2] = static_cast<uint16_t>(word);
        halves[place(at + 2) / 2] = static_cast<uint16_t>(word >> 16);
      } else if constexpr (output == Output::f32) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 4; ++i) out[at + i] = y[i];
      } else {
        auto& words = reinterpret_cast<cutlass::Array<uint32_t, size / 2>&>(out);
        words[at / 2] = pack_half2(y[0], y[1], output);
        words[at / 2 + 1] = pack_half2(y[2], y[3], output);
      }
    }
  };

  // Is lane l's first element in row l / 4 and column 2 (l % 4) of CUTLASS's, as in mma's layout? Rotations rely on it.
  template <bool reference_source, class TiledCopy>
  static constexpr bool lanes_as_in_mma(const TiledCopy&) {
    constexpr auto layout = [] {
      if constexpr (reference_source) return TiledCopy::get_layoutS_TV();
      else return TiledCopy::get_layoutD_TV();
    }();
    // It counts the elements of a tile, whose own layouts tell where they are.
    constexpr typename TiledCopy::Tiler_MN tile{};
    constexpr int rows = cute::size(cute::get<0>(tile));
    for (int lane = 0; lane < 32; ++lane) {
      const int at = layout(lane, 0);
      if (cute::get<0>(tile)(at % rows) != lane / 4 || cute::get<1>(tile)(at / rows) != lane % 4 * 2) return false;
    }
    return true;
  }

  template <bool reference_source, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      const cutlass::epilogue::fusion::detail::ConsumerStoreArgs<Args...>& args) {
    static_assert(output != Output::codes || lanes_as_in_mma<reference_source>(decltype(args.tiled_copy){}));
    const auto shape = cute::take<0, 2>(args.problem_shape_mnkl);
    // A tensor that does not move along a row: elements of one row share their place in what is made like it.
    using Strides = cute::conditional_t<swapped, cute::Stride<cute::_0, cute::_1, cute::_0>,
                                        cute::Stride<cute::_1, cute::_0, cute::_0>>;
    auto by_row = cute::make_tensor(
        cute::make_gmem_ptr(static_cast<const int8_t*>(nullptr)),
        cute::make_layout(cute::make_shape(cute::get<0>(shape), cute::get<1>(shape), cute::_1{}), Strides{}));
    auto mine = cutlass::epilogue::fusion::detail::sm90_partition_for_epilogue<reference_source>(
        by_row, args.tile_shape_mnk, args.tile_coord_mnkl, args.epi_tile, args.tiled_copy, args.thread_idx);
    auto rows = cute::make_tensor_like<OutputRow>(mine);
    const int32_t m = cute::get<kRowMode>(shape), n = cute::get<1 - kRowMode>(shape);
    const int32_t first_row = m - cute::get<kRowMode>(args.residue_tCcD);
    const int32_t first_column = n - cute::get<1 - kRowMode>(args.residue_tCcD);
    using Source = cute::remove_cvref_t<decltype(args.tCrC)>;
    return Callbacks<decltype(args.tCcD), decltype(mine.stride()), decltype(rows), Source>(
        params_, args.tCcD, rows, args.tCrC, first_row, first_column, m, n);
  }

 private:
  const Params* params_ = nullptr;
};

}  // namespace ptq4arvg::cuda
