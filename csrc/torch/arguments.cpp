#include "torch/arguments.h"

#include <initializer_list>
#include <limits>

#include "kernels/cuda/layout.h"
#include "kernels/pack.h"

namespace ptq4arvg {
namespace {

std::string device_text(const torch::stable::Device& device) {
  using torch::headeronly::DeviceType;
  if (device.type() == DeviceType::CPU) return "cpu";
  const std::string kind = device.type() == DeviceType::CUDA   ? "cuda"
                           : device.type() == DeviceType::Meta ? "meta"
                                                               : "another kind of device";
  return device.index() >= 0 ? kind + ":" + std::to_string(device.index()) : kind;
}

bool one_of(ScalarType dtype, std::initializer_list<ScalarType> wanted) {
  for (ScalarType each : wanted) {
    if (dtype == each) return true;
  }
  return false;
}

bool is_float(ScalarType dtype) {
  return one_of(dtype, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
}

// The common stride of the joined leading dimensions, if they have one and the last dimension is contiguous.
bool joined_stride(const Tensor& tensor, int64_t* stride) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const int64_t last = tensor.dim() - 1;
  if (sizes[last] != 1 && strides[last] != 1) return false;
  int64_t expected = -1;
  *stride = sizes[last];
  for (int64_t d = last - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (expected < 0) *stride = strides[d];
    else if (strides[d] != expected) return false;
    expected = strides[d] * sizes[d];
  }
  return true;
}

// Index of the first element that is not good, or -1. The first pass has no exit, so that it is vectorized.
template <class T, class Good>
int64_t first_bad(const T* data, int64_t count, const Good& good) {
  int bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= !good(data[i]);
  for (int64_t i = 0; bad && i < count; ++i) {
    if (!good(data[i])) return i;
  }
  return -1;
}

// A dispatched call costs microseconds, so only where there is something to copy.
Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

Rows rows_of(const Tensor& tensor, int64_t stride) {
  const int64_t columns = tensor.size(tensor.dim() - 1);
  const int64_t count = columns ? tensor.numel() / columns : 0;
  return {tensor.const_data_ptr(), tensor.scalar_type(), count, columns, stride};
}

}  // namespace

std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Double: return "float64";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    default: return torch::headeronly::toString(dtype);
  }
}

std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d ? ", " : "") + std::to_string(tensor.size(d));
  return text + "]";
}

DType kernel_dtype(ScalarType dtype) {
  if (dtype == ScalarType::Half) return DType::f16;
  return dtype == ScalarType::BFloat16 ? DType::bf16 : DType::f32;
}

FloatMatrix as_matrix(const Rows& rows) { return {rows.data, kernel_dtype(rows.dtype), rows.stride}; }

Arguments::Arguments(const char* op, const char* lead_name, const Tensor& lead)
    : op_(op), lead_name_(lead_name), device_(lead.device()), cpu_(lead.is_cpu()) {}

int Arguments::bits(const char* name, int64_t value) const {
  require(value == 4 || value == 6 || value == 8, name, " is ", value, ", wanted 4, 6 or 8");
  return static_cast<int>(value);
}

int Arguments::rotation(const char* name, int64_t block, const char* columns_name, int64_t columns, int most) const {
  require(rotation_fits(block, columns, most), name, " is ", block, " and ", columns_name, " ", columns,
          "; wanted 0, or a power of two from 2 to ", most, " that divides ", columns_name);
  return static_cast<int>(block);
}

Activation Arguments::activation(const std::string& value) const {
  if (value == "none") return Activation::none;
  if (value == "gelu") return Activation::gelu;
  if (value == "gelu_tanh") return Activation::gelu_tanh;
  if (value == "silu") return Activation::silu;
  fail("activation is '", value, "', wanted one of none, gelu, gelu_tanh, silu");
}

DType Arguments::out_dtype(ScalarType value) const {
  require(is_float(value), "out_dtype is ", dtype_name(value), ", wanted float32, float16 or bfloat16");
  return kernel_dtype(value);
}

Tensor Arguments::keep(Tensor tensor) {
  kept_.push_back(tensor);
  return tensor;
}

void Arguments::same_device(const char* name, const Tensor& tensor) const {
  const auto device = tensor.device();
  require(device == device_, name, " is on ", device_text(device), ", but ", lead_name_, " is on ",
          device_text(device_), "; wanted all on one device");
}

Rows Arguments::rows(const char* name, const Tensor& tensor) {
  same_device(name, tensor);
  require(tensor.dim() >= 1 && tensor.size(tensor.dim() - 1) >= 1, name, " has shape ", shape_text(tensor),
          ", wanted [..., K] with K of 1 or more");
  int64_t stride;
  if (joined_stride(tensor, &stride)) return rows_of(tensor, stride);
  return rows_of(keep(dense(tensor)), tensor.size(tensor.dim() - 1));
}

Rows Arguments::codes(const char* name, const Tensor& tensor) {
  require(tensor.scalar_type() == ScalarType::Char, name, " has dtype ", dtype_name(tensor.scalar_type()),
          ", wanted int8");
  return rows(name, tensor);
}

Rows Arguments::floats(const char* name, const Tensor& tensor) {
  require(is_float(tensor.scalar_type()), name, " has dtype ", dtype_name(tensor.scalar_type()),
          ", wanted float32, float16 or bfloat16");
  return rows(name, tensor);
}

FloatMatrix Arguments::matrix(const char* name, const OptionalTensor& tensor, int64_t rows, int64_t columns,
                              const char* meaning) {
  if (!tensor) return {};
  const Rows found = floats(name, *tensor);
  require(found.count == rows && found.columns == columns, name, " has shape ", shape_text(*tensor), ", wanted ", rows,
          " rows of ", columns, " (", meaning, ")");
  return as_matrix(found);
}

void Arguments::one_dimension(const char* name, const Tensor& tensor, int64_t length, const char* length_name) const {
  same_device(name, tensor);
  require(tensor.dim() == 1, name, " has shape ", shape_text(tensor), ", wanted one dimension");
  if (length < 0) {
    require(tensor.numel() > 0, name, " is empty, wanted one entry or more");
  } else {
    require(tensor.numel() == length, name, " has ", tensor.numel(), " entries, wanted ", length, " (", length_name,
            ")");
  }
}

const float* Arguments::scales(const char* name, const Tensor& tensor, int64_t length) {
  require(tensor.scalar_type() == ScalarType::Float, name, " has dtype ", dtype_name(tensor.scalar_type()),
          ", wanted float32");
  one_dimension(name, tensor, length, "N");
  const Tensor values = keep(dense(tensor));
  const float* data = values.const_data_ptr<float>();
  if (cpu_) {
    const auto good = [](float x) { return x > 0.0f && x <= std::numeric_limits<float>::max(); };  // not NaN
    const int64_t i = first_bad(data, values.numel(), good);
    if (i >= 0) fail(name, "[", i, "] is ", data[i], ", wanted finite numbers above 0");
  }
  return data;
}

const float* Arguments::vector(const char* name, const OptionalTensor& tensor, int64_t length) {
  if (!tensor) return nullptr;
  const FloatMatrix given = any_vector(name, tensor, length);
  if (given.dtype == DType::f32) return static_cast<const float*>(given.data);
  return keep(torch::stable::to(dense(*tensor), ScalarType::Float)).const_data_ptr<float>();
}

FloatMatrix Arguments::any_vector(const char* name, const OptionalTensor& tensor, int64_t length,
                                  const char* length_name) {
  if (!tensor) return {};
  require(is_float(tensor->scalar_type()), name, " has dtype ", dtype_name(tensor->scalar_type()),
          ", wanted float32, float16 or bfloat16");
  one_dimension(name, *tensor, length, length_name);
  const Tensor values = keep(dense(*tensor));
  return {values.const_data_ptr(), kernel_dtype(values.scalar_type()), 0};
}

const int32_t* Arguments::integers(const char* name, const OptionalTensor& tensor, int64_t length, int64_t low,
                                   int64_t high, const char* length_name) {
  if (!tensor) return nullptr;
  require(tensor->scalar_type() == ScalarType::Int, name, " has dtype ", dtype_name(tensor->scalar_type()),
          ", wanted int32");
  one_dimension(name, *tensor, length, length_name);
  const Tensor values = keep(dense(*tensor));
  const int32_t* data = values.const_data_ptr<int32_t>();
  if (cpu_) {
    const int32_t least = static_cast<int32_t>(low), most = static_cast<int32_t>(high);
    const int64_t i = first_bad(data, values.numel(), [=](int32_t x) { return x >= least && x <= most; });
    if (i >= 0) fail(name, "[", i, "] is ", data[i], ", wanted ", low, " to ", high);
  }
  return data;
}

QuantizeTable Arguments::table(const char* scale_name, const char* zero_name, const Tensor& inv_scale,
                               const Tensor& zero, int bits) {
  QuantizeTable table;
  table.bits = bits;
  table.inv_scale = scales(scale_name, inv_scale);
  table.zero = integers(zero_name, zero, inv_scale.numel(), 0, levels(bits) - 1, "one for each scale");
  return table;
}

const int32_t* Arguments::weight_zeros(const char* name, const OptionalTensor& tensor, int64_t n, int bits) {
  require(!tensor || bits != 8, name, " is given, wanted None: 8-bit weights are symmetric");
  return integers(name, tensor, n, 0, levels(bits) - 1, "N");
}

const uint8_t* Arguments::packed(const char* name, const Tensor& tensor, int64_t n, int64_t k, int bits) {
  require(tensor.scalar_type() == ScalarType::Byte, name, " has dtype ", dtype_name(tensor.scalar_type()),
          ", wanted uint8 as pack_weight returns it");
  same_device(name, tensor);
  const int64_t wanted = cpu_ ? cpu::packed_bytes(n, k, bits) : cuda::layout_of(n, k, bits).bytes;
  require(tensor.dim() == 1 && tensor.numel() == wanted, name, " has shape ", shape_text(tensor), ", wanted [", wanted,
          "]: N ", n, ", K ", k, ", ", bits, " bits as pack_weight lays them out");
  const uint8_t* data = keep(dense(tensor)).const_data_ptr<uint8_t>();
  require(cpu_ || reinterpret_cast<uintptr_t>(data) % 16 == 0, name,
          " starts at an address that is not a multiple of 16 bytes, wanted one that is (a copy has one)");
  return data;
}

Tensor Arguments::channels(const char* name, const Tensor& tensor) {
  require(is_float(tensor.scalar_type()), name, " has dtype ", dtype_name(tensor.scalar_type()),
          ", wanted float32, float16 or bfloat16");
  same_device(name, tensor);
  const int64_t last = tensor.dim() - 1;
  return keep(tensor.size(last) == 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor));
}

const float* Arguments::of_heads(const char* name, const Tensor& tensor, int64_t heads, int64_t size, bool positive) {
  require(tensor.scalar_type() == ScalarType::Float, name, " has dtype ", dtype_name(tensor.scalar_type()),
          ", wanted float32");
  same_device(name, tensor);
  require(tensor.dim() == 2 && tensor.size(0) == heads && tensor.size(1) == size, name, " has shape ",
          shape_text(tensor), ", wanted [", heads, ", ", size, "] (heads, channels)");
  const Tensor values = keep(dense(tensor));
  const float* data = values.const_data_ptr<float>();
  if (cpu_) {
    const float least = positive ? std::numeric_limits<float>::denorm_min() : std::numeric_limits<float>::lowest();
    const auto good = [=](float x) { return x >= least && x <= std::numeric_limits<float>::max(); };  // not NaN
    const int64_t i = first_bad(data, values.numel(), good);
    if (i >= 0) {
      fail(name, "[", i / size, ", ", i % size, "] is ", data[i], ", wanted finite numbers",
           positive ? " above 0" : "");
    }
  }
  return data;
}

const float* Arguments::rotations(const char* name, const OptionalTensor& tensor, int64_t tokens, int64_t size) {
  if (!tensor) return nullptr;
  require(tensor->scalar_type() == ScalarType::Float, name, " has dtype ", dtype_name(tensor->scalar_type()),
          ", wanted float32");
  same_device(name, *tensor);
  require(tensor->dim() == 3 && tensor->size(0) == tokens && tensor->size(1) == size / 2 && tensor->size(2) == 2, name,
          " has shape ", shape_text(*tensor), ", wanted [", tokens, ", ", size / 2,
          ", 2]: cosine and sine for every token and pair of channels");
  return keep(dense(*tensor)).const_data_ptr<float>();
}

void* Arguments::cache(const char* name, const Tensor& tensor) {
  require(tensor.scalar_type() == ScalarType::Char, name, " has dtype ", dtype_name(tensor.scalar_type()),
          ", wanted int8");
  same_device(name, tensor);
  int64_t expected = 1;
  for (int64_t i = tensor.dim() - 1; i > 0; --i) {
    require(tensor.size(i) == 1 || tensor.stride(i) == expected, name,
            " has gaps within an image, wanted them between images at most");
    expected *= tensor.size(i);
  }
  void* data = tensor.mutable_data_ptr();
  require(cpu_ || (reinterpret_cast<uintptr_t>(data) % 16 == 0 && tensor.stride(0) % 16 == 0), name,
          " has images at addresses that are not multiples of 16 bytes, wanted ones that are");
  return data;
}

RowPositions Arguments::positions(const OptionalTensor& position, int64_t tokens, const char* table, int64_t length,
                                  const char* name) {
  require(tokens >= 0, "tokens is ", tokens, ", wanted 0 (the whole table) or more");
  RowPositions rows;
  rows.tokens = tokens == 0 ? length : tokens;
  if (position) {
    require(position->scalar_type() == ScalarType::Int, name, " has dtype ", dtype_name(position->scalar_type()),
            ", wanted int32");
    same_device(name, *position);
    require(position->numel() == 1, name, " has shape ", shape_text(*position), ", wanted one element");
    rows.position = keep(*position).const_data_ptr<int32_t>();
    if (cpu_) require(*rows.position >= 0, name, " is ", *rows.position, ", wanted 0 or more");
  }
  covers(table, length, rows, name);
  return rows;
}

void Arguments::covers(const char* table, int64_t length, const RowPositions& rows, const char* name) const {
  const int64_t first = cpu_ && rows.position ? *rows.position : 0;
  require(first + rows.tokens <= length, table, " has ", length, " positions, but ", name, " ", first, " + tokens ",
          rows.tokens, " = ", first + rows.tokens, " are needed");
}

Tensor Arguments::empty(const Tensor& lead, int64_t columns, ScalarType dtype) const {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < lead.dim(); ++d) sizes.push_back(lead.size(d));
  sizes.push_back(columns);
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), dtype,
                              torch::headeronly::Layout::Strided, device_);
}

}  // namespace ptq4arvg
