#include "runtime.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>

#include "run.h"
#include "streams.h"
#include "tensor_map.h"

namespace ptx {

namespace {
cudaError_t last_error = cudaSuccess;
}

Device device;
std::string trouble;
std::vector<const void*> drawn;
uint64_t launches = 0;
uint64_t most_steps = 500'000'000;
void note_drawn(const void* address) { drawn.push_back(address); }

cudaError_t told(cudaError_t error, const std::string& why) {
  last_error = error, trouble = why;
  return error;
}

namespace {

std::map<uintptr_t, size_t> allocations;
uint32_t next_seed = 1;  // of each launch another order of warps and copies

struct Text {
  std::string text;
  std::map<std::string, Program> programs;  // empty until a kernel of it is launched
};
struct Module {
  std::vector<Text> texts;  // one for each architecture
};
struct Function {
  Module* module;
  std::string name;
  int dynamic_shared = 48 << 10;
};
// Filled by constructors of other files, whose order is not ours.
std::unordered_map<const void*, Function>& functions() {
  static std::unordered_map<const void*, Function> all;
  return all;
}

// The architecture that a text is for, 0 if the device cannot run it: later ones run earlier code, but for that of one
// architecture alone, like sm_90a.
int target_of(const std::string& text) {
  constexpr char kDirective[] = ".target sm_";
  const size_t at = text.find(kDirective);
  if (at == std::string::npos) return 0;
  char* end = nullptr;
  const int sm = static_cast<int>(std::strtol(text.c_str() + at + sizeof kDirective - 1, &end, 10));
  return (*end == 'a' ? sm == device.sm : sm <= device.sm) ? sm : 0;
}

const Program& program_of(Function& f) {
  const auto older = [](const Text& a, const Text& b) { return target_of(a.text) < target_of(b.text); };
  const auto best = std::max_element(f.module->texts.begin(), f.module->texts.end(), older);
  if (best == f.module->texts.end() || !target_of(best->text)) {
    throw std::runtime_error(f.name + ": there is no PTX of this kernel for the device");
  }
  if (best->programs.empty()) best->programs = parse(best->text);
  return best->programs.at(f.name);
}

cudaError_t run_now(const LaunchOf& l) {
  ++launches;
  try {
    run(l, static_cast<uint32_t>(device.sm_count), next_seed++, most_steps);
  } catch (const std::exception& error) {
    return told(cudaErrorLaunchFailure, error.what());
  }
  return cudaSuccess;
}

cudaError_t launch(const void* function, const cudaLaunchConfig_t& config, void** arguments) {
  const auto found = functions().find(function);
  if (found == functions().end()) return told(cudaErrorInvalidDeviceFunction, "a function that is no kernel");
  const auto dim_of = [](const auto& d) { return Dim{d.x, d.y, d.z}; };
  LaunchOf l;
  l.grid = dim_of(config.gridDim), l.block = dim_of(config.blockDim);
  l.dynamic_shared = static_cast<uint32_t>(config.dynamicSmemBytes);
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& each = config.attrs[i];
    if (each.id == cudaLaunchAttributeClusterDimension) {
      l.cluster = {each.val.clusterDim.x, each.val.clusterDim.y, each.val.clusterDim.z};
    } else if (each.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      l.early = each.val.programmaticStreamSerializationAllowed;
    } else {
      return told(cudaErrorInvalidValue, "a launch attribute that is not known here");
    }
  }
  const Dim &g = l.grid, &b = l.block, &c = l.cluster;
  if (g.size() == 0 || b.size() == 0 || g.x >= 1u << 31 || g.y > 65535 || g.z > 65535 || b.size() > 1024 || b.z > 64 ||
      b.size() % kLanes || g.x % c.x || g.y % c.y || g.z % c.z || c.size() > 8) {
    return told(cudaErrorInvalidConfiguration, "sizes of the grid, the blocks or the clusters");
  }
  try {
    const Program& program = program_of(found->second);
    l.program = &program;
    if (program.threads_per_block && b.size() > static_cast<uint64_t>(program.threads_per_block)) {
      return told(cudaErrorInvalidConfiguration, "more threads than the kernel was compiled for");
    }
    const int shared = program.static_shared + static_cast<int>(l.dynamic_shared);
    if (static_cast<int>(l.dynamic_shared) > found->second.dynamic_shared || shared > device.shared_bytes) {
      return told(cudaErrorInvalidValue, "more shared memory than the kernel may have");
    }
    const size_t bytes = (static_cast<size_t>(program.parameters_end) + 127) / 128 * 128 + 128;
    const std::shared_ptr<void> memory(std::aligned_alloc(128, bytes), std::free);
    auto* parameters = static_cast<uint8_t*>(memory.get());
    for (size_t i = 0; i < program.parameter_places.size(); ++i) {
      memcpy(parameters + program.parameter_places[i], arguments[i], program.parameter_bytes[i]);
    }
    l.parameters = parameters;
    return submit(config.stream, [l, memory] { return run_now(l); });
  } catch (const std::exception& error) {
    return told(cudaErrorNoKernelImageForDevice, error.what());
  }
}

std::vector<cudaLaunchConfig_t> configurations;  // pushed by <<<>>>

}  // namespace

void* allocate(size_t bytes) {
  void* memory = std::aligned_alloc(256, (bytes + 511) / 256 * 256);
  memset(memory, 0xcd, bytes);
  allocations[reinterpret_cast<uintptr_t>(memory)] = bytes;
  return memory;
}
void release(void* memory) {
  allocations.erase(reinterpret_cast<uintptr_t>(memory));
  std::free(memory);
}
bool is_allocated(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto after = allocations.upper_bound(at);
  return after != allocations.begin() && at < std::prev(after)->first + std::prev(after)->second;
}

void check_allocated(const void* address, size_t bytes, const char* what) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  auto after = allocations.upper_bound(at);
  if (after != allocations.begin()) {
    const auto& [begin, size] = *--after;
    if (at + bytes <= begin + size) return;
    if (at <= begin + size + 4096) {
      throw std::runtime_error(std::string(what) + ": " + std::to_string(bytes) + " bytes at " +
                               std::to_string(at - begin) + " of an allocation of " + std::to_string(size));
    }
  }
  throw std::runtime_error(std::string(what) + ": " + std::to_string(bytes) + " bytes outside of all allocations");
}

}  // namespace ptx

using ptx::told;

extern "C" {

// What nvcc's host code calls. A fat binary's wrapper is {mark, version, data, ...}; the data hold the PTX as text.
void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int mark, version;
    const char* data;
  };
  struct Header {
    uint32_t mark;
    uint16_t version, bytes;
    uint64_t size;
  };
  const char* data = static_cast<Wrapper*>(wrapper)->data;
  Header header;
  memcpy(&header, data, sizeof header);
  const std::string all(data + header.bytes, header.size);
  auto* module = new ptx::Module;
  constexpr char kBegin[] = "\n.version ";
  for (size_t at = all.find(kBegin); at != std::string::npos; at = all.find(kBegin, at + 1)) {
    module->texts.push_back({all.c_str() + at, {}});
  }
  return reinterpret_cast<void**>(module);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void** handle, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
  ptx::functions()[function] = {reinterpret_cast<ptx::Module*>(handle), name};
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  ptx::configurations.push_back({grid, block, shared, stream, nullptr, 0});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const cudaLaunchConfig_t c = ptx::configurations.back();
  ptx::configurations.pop_back();
  *grid = c.gridDim, *block = c.blockDim, *shared = c.dynamicSmemBytes;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t stream) {
  return ptx::launch(kernel, {grid, block, shared, stream, nullptr, 0}, arguments);
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t stream) {
  return ptx::launch(function, {grid, block, shared, stream, nullptr, 0}, arguments);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  return ptx::launch(function, *config, arguments);
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) return cudaSuccess;
  const auto found = ptx::functions().find(function);
  if (found == ptx::functions().end() || attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return told(cudaErrorInvalidValue, "an attribute of a function");
  }
  if (value > ptx::device.shared_bytes) return told(cudaErrorInvalidValue, "more shared memory than the device has");
  found->second.dynamic_shared = value;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t shared,
                                                                   unsigned) {
  *blocks = static_cast<int>(static_cast<size_t>(ptx::device.shared_bytes) / (shared + 1024));
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(ptx::last_error, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t error) {
  static std::string name;
  return (name = "error " + std::to_string(error)).c_str();
}
const char* cudaGetErrorString(cudaError_t) { return ptx::trouble.c_str(); }
cudaError_t cudaPeekAtLastError() { return ptx::last_error; }
cudaError_t cudaGetDevice(int* index) { return *index = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = ptx::device.sm / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = ptx::device.sm % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = ptx::device.sm_count; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = ptx::device.shared_bytes; break;
    default: return told(cudaErrorInvalidValue, "a device attribute that is not known here");
  }
  return cudaSuccess;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, CUDA_SUCCESS;
}
// Of the driver two functions; PyTorch asks for more, and needs none of them.
static CUresult not_supported() { return CUDA_ERROR_NOT_SUPPORTED; }
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(&not_supported);
  if (!std::strcmp(symbol, "cuTensorMapEncodeTiled")) *function = reinterpret_cast<void*>(&ptx::encode_tiled);
  if (!std::strcmp(symbol, "cuTensorMapEncodeIm2col")) *function = reinterpret_cast<void*>(&ptx::encode_im2col);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // extern "C"
