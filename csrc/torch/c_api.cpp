// What the introspection module asks of this library: plain C functions, found by name. Strings are JSON or plain
// text and stay valid until the same thread's next call.
#include <torch/headeronly/version.h>

#include <exception>
#include <string>

#include "kernels/cpu/isa.h"
#include "kernels/last_kernel.h"

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

std::string kernel(const std::string& op, int bits, const cpu::IsaChoice& choice) {
  const std::string name = op + (bits ? ".w" + std::to_string(bits) : "") + "." + choice.name;
  return "{\"name\": " + quoted(name) + ", \"op\": " + quoted(op) + ", \"device\": \"cpu\", \"isa\": " +
         quoted(choice.name) + ", \"weight_bits\": " + (bits ? std::to_string(bits) : "null") + ", \"available\": " +
         (choice.available() ? "true" : "false") + "}";
}

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
    for (const char* op : {"gemm", "gemm_float"}) {
      for (int bits : {8, 6, 4}) out += (out.empty() ? "" : ", ") + kernel(op, bits, choices[i]);
    }
    for (const char* op : {"quantize", "norm_quantize"}) out += ", " + kernel(op, 0, choices[i]);
  }
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
