// What the introspection module asks of this library: plain C functions, found by name. Strings are JSON or plain
// text and stay valid until the same thread's next call.
#include <torch/headeronly/version.h>

#include <exception>
#include <string>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/peak.h"
#include "kernels/last_kernel.h"
#if defined(PTQ4ARVG_WITH_CUDA)
#include "kernels/cuda/gemm.h"
#endif

#define PTQ4ARVG_EXPORT extern "C" __attribute__((visibility("default")))

#if !defined(PTQ4ARVG_VERSION)
#define PTQ4ARVG_VERSION "unknown"
#endif
#if !defined(PTQ4ARVG_TORCH_VERSION)
#define PTQ4ARVG_TORCH_VERSION TORCH_VERSION
#endif
#if defined(__OPTIMIZE__)
constexpr const char* kOptimized = "true";
#else
constexpr const char* kOptimized = "false";
#endif

namespace {

using namespace ptq4arvg;

thread_local std::string answer;

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

std::string isa_list(bool only_available) {
  int count;
  const cpu::IsaChoice* choices = cpu::isa_choices(&count);
  std::string out;
  for (int i = 0; i < count; ++i) {
    if (only_available && !choices[i].available()) continue;
    out += (out.empty() ? "" : ", ") + quoted(choices[i].name);
  }
  return "[" + out + "]";
}

struct Place {
  const char* device;
  std::string isa;
  bool available;
};

std::string kernel(const std::string& op, int bits, const std::string& variant, const Place& place) {
  const std::string name = op + (bits ? ".w" + std::to_string(bits) : "") + "." + variant;
  return "{\"name\": " + quoted(name) + ", \"op\": " + quoted(op) + ", \"device\": " + quoted(place.device) +
         ", \"isa\": " + quoted(place.isa) + ", \"weight_bits\": " + (bits ? std::to_string(bits) : "null") +
         ", \"available\": " + (place.available ? "true" : "false") + "}";
}

#if defined(PTQ4ARVG_WITH_CUDA)
// Every CUDA kernel, each after a comma.
std::string cuda_kernels() {
  int count = 0;
  cuda::Device device;
  // Where there is no driver or no device this fails, and nothing is available.
  const bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0 &&
                     cuda::device_of(0, &device) == cudaSuccess;
  cudaGetLastError();
  const auto place = [&](int sm_min) {
    const bool right = sm_min == 90 ? device.sm == 90 : device.sm >= sm_min;
    return Place{"cuda", sm_min == 90 ? "sm_90a" : "sm_" + std::to_string(sm_min), found && right};
  };
  std::string out;
  for (const cuda::KernelName& each : cuda::kernel_names()) {
    for (int bits : {8, 6, 4}) {
      if (each.rows) out += ", " + kernel("gemm", bits, each.name, place(each.sm_min));
      if (each.patches) out += ", " + kernel("conv2d", bits, each.name, place(each.sm_min));
    }
  }
  for (int bits : {8, 6, 4}) out += ", " + kernel("gemm_float", bits, "cuda", place(80));
  for (const char* op : {"quantize", "gate_quantize", "norm_quantize", "attention", "store_kv", "quantize_map"}) {
    out += ", " + kernel(op, 0, "cuda", place(80));
  }
  return out;
}
#endif

}  // namespace

// Version, compilers and switches of this binary; what of it this machine can use.
PTQ4ARVG_EXPORT const char* ptq4arvg_build_info() {
  answer = "{\"version\": " + quoted(PTQ4ARVG_VERSION) + ", \"compiler\": " + quoted(__VERSION__) +
           ", \"cplusplus\": " + std::to_string(__cplusplus) + ", \"optimized\": " + kOptimized +
           ", \"torch_headers\": " + quoted(PTQ4ARVG_TORCH_VERSION) +
           ", \"torch_target\": \"2.10\", \"compiled_isas\": " + isa_list(false) +
           ", \"available_isas\": " + isa_list(true);
#if defined(PTQ4ARVG_WITH_CUDA)
  answer += ", \"cuda\": true, \"cuda_archs\": " + quoted(PTQ4ARVG_CUDA_ARCHS) + "}";
#else
  answer += ", \"cuda\": false, \"cuda_archs\": \"\"}";
#endif
  return answer.c_str();
}

PTQ4ARVG_EXPORT const char* ptq4arvg_list_kernels() {
  int count;
  const cpu::IsaChoice* choices = cpu::isa_choices(&count);
  std::string out;
  for (int i = 0; i < count; ++i) {
    const Place place{"cpu", choices[i].name, choices[i].available()};
    for (const char* op : {"gemm", "conv2d", "gemm_float"}) {
      for (int bits : {8, 6, 4}) out += (out.empty() ? "" : ", ") + kernel(op, bits, choices[i].name, place);
    }
    for (const char* op : {"quantize", "gate_quantize", "norm_quantize", "attention", "store_kv", "quantize_map"}) {
      out += ", " + kernel(op, 0, choices[i].name, place);
    }
  }
#if defined(PTQ4ARVG_WITH_CUDA)
  out += cuda_kernels();
#endif
  answer = "[" + out + "]";
  return answer.c_str();
}

PTQ4ARVG_EXPORT const char* ptq4arvg_last_kernel() { return last_kernel(); }

// Sets the instruction set ("" for the default, null to leave it) and gives its name in *name. Null, or an error text.
PTQ4ARVG_EXPORT const char* ptq4arvg_isa(const char* wanted, const char** name) {
  try {
    if (wanted) cpu::set_isa(wanted);
    *name = cpu::kernels().isa;
    return nullptr;
  } catch (const std::exception& error) {
    answer = error.what();
    return answer.c_str();
  }
}

// Operations a second of a kind of register-only loop, or (null) bytes read a second of a buffer, in *result. Null, or
// an error text.
PTQ4ARVG_EXPORT const char* ptq4arvg_measure(const char* kind, int64_t bytes, int threads, double seconds,
                                             double* result) {
  try {
    *result = kind ? cpu::measure_peak(kind, threads, seconds) : cpu::measure_bandwidth(bytes, threads, seconds);
    return nullptr;
  } catch (const std::exception& error) {
    answer = error.what();
    return answer.c_str();
  }
}

// Which kernel a CUDA product of these sizes would take on compute capability `sm` (90 for sm_90a), and why. Needs no
// device. Null, or an error text.
PTQ4ARVG_EXPORT const char* ptq4arvg_cuda_kernel(long long m, long long n, long long k, int bits, int sm,
                                                 const char** name, const char** reason) {
#if defined(PTQ4ARVG_WITH_CUDA)
  try {
    const cuda::GemmChoice choice = cuda::choose_gemm(m, n, k, bits, sm);
    *name = choice.name;
    *reason = choice.reason;
    return nullptr;
  } catch (const std::exception& error) {
    answer = error.what();
    return answer.c_str();
  }
#else
  static_cast<void>(m), static_cast<void>(n), static_cast<void>(k), static_cast<void>(bits), static_cast<void>(sm);
  static_cast<void>(name), static_cast<void>(reason);
  return "this build of ptq4arvg has no CUDA kernels";
#endif
}
