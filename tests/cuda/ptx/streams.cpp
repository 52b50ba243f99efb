#include "streams.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "machine.h"
#include "runtime.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Graph {
  std::vector<ptx::Work> works;
};
struct Event {
  Clock::time_point at;
  uint64_t capture = 0;  // the one that it was recorded in, or none
};
struct Stream {
  uint64_t capture = 0;  // the one that it has begun or joined last
  int priority = 0;
};

// One capture at a time, by number; a stream joins it by waiting for an event of it.
Graph* capture = nullptr;
uint64_t captures = 0;
bool is_captured(const Stream& stream) { return capture && stream.capture == captures; }
Stream legacy;

Stream& stream_of(cudaStream_t stream) {
  return stream ? *reinterpret_cast<Stream*>(stream) : legacy;
}

// What waits for the device is forbidden while anything is captured.
cudaError_t waits() {
  return capture ? ptx::told(cudaErrorStreamCaptureUnsupported, "a wait during a capture") : cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t bytes) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

}  // namespace

namespace ptx {

cudaError_t submit(cudaStream_t stream, Work work) {
  if (!capture) return work();
  if (!stream) return told(cudaErrorStreamCaptureImplicit, "work for the default stream during a capture");
  if (!is_captured(stream_of(stream))) return work();
  capture->works.push_back(std::move(work));
  return cudaSuccess;
}

}  // namespace ptx

extern "C" {

// ---- memory ----
cudaError_t cudaMalloc(void** memory, size_t bytes) { return *memory = ptx::allocate(bytes), cudaSuccess; }
cudaError_t cudaFree(void* memory) {
  if (memory) ptx::release(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return *memory = std::malloc(bytes), cudaSuccess; }
cudaError_t cudaFreeHost(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* left, size_t* all) { return *left = *all = size_t{8} << 30, cudaSuccess; }
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  if (const cudaError_t error = waits()) return error;
  return cudaMemsetAsync(memory, value, bytes, nullptr);
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  ptx::check_allocated(memory, bytes, "cudaMemsetAsync");
  return ptx::submit(stream, [=] { return std::memset(memory, value, bytes), cudaSuccess; });
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (const cudaError_t error = waits()) return error;
  return copy(to, from, bytes);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return ptx::submit(stream, [=] { return copy(to, from, bytes); });
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  *attributes = {};
  attributes->type = ptx::is_allocated(pointer) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}

// ---- the device ----
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaSetDevice(int index) {
  return index == 0 ? cudaSuccess : ptx::told(cudaErrorInvalidDevice, "a device");
}
cudaError_t cudaDeviceSynchronize() { return waits(); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* made, int) {
  *made = {};
  std::strcpy(made->name, "PTX interpreter");
  made->major = ptx::device.sm / 10, made->minor = ptx::device.sm % 10;
  made->multiProcessorCount = ptx::device.sm_count, made->warpSize = 32, made->maxThreadsPerBlock = 1024;
  made->totalGlobalMem = size_t{8} << 30, made->sharedMemPerBlock = 48 << 10;
  made->sharedMemPerBlockOptin = made->sharedMemPerMultiprocessor = static_cast<size_t>(ptx::device.shared_bytes);
  made->regsPerBlock = made->regsPerMultiprocessor = 65536, made->maxThreadsPerMultiProcessor = 2048;
  made->l2CacheSize = 1 << 20;  // benchmarks keep weights out of it by copies
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = 0, *greatest = -5, cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

// ---- streams ----
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  auto* made = new Stream;
  made->priority = priority;
  return *stream = reinterpret_cast<cudaStream_t>(made), cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete &stream_of(stream), cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  return *priority = stream_of(stream).priority, cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return waits(); }
cudaError_t cudaStreamQuery(cudaStream_t) { return waits(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const uint64_t of = reinterpret_cast<Event*>(event)->capture;
  if (capture && of == captures) stream_of(stream).capture = of;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return ptx::submit(stream, [=] { return function(data), cudaSuccess; });
}

// ---- events ----
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = reinterpret_cast<cudaEvent_t>(new Event), cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete reinterpret_cast<Event*>(event), cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  *reinterpret_cast<Event*>(event) = {Clock::now(), is_captured(stream_of(stream)) ? captures : 0};
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}
cudaError_t cudaEventQuery(cudaEvent_t) { return waits(); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return waits(); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const auto time = reinterpret_cast<Event*>(to)->at - reinterpret_cast<Event*>(from)->at;
  return *milliseconds = std::chrono::duration<float, std::milli>(time).count(), cudaSuccess;
}

// ---- graphs ----
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream || capture)
    return ptx::told(cudaErrorStreamCaptureUnsupported, "a capture of the default stream, or a second one");
  capture = new Graph;
  stream_of(stream).capture = ++captures;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  stream_of(stream).capture = 0;
  *graph = reinterpret_cast<cudaGraph_t>(capture);
  capture = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool yes = is_captured(stream_of(stream));
  return *status = yes ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  if (id) *id = captures;
  if (graph) *graph = reinterpret_cast<cudaGraph_t>(capture);
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  return *count = reinterpret_cast<Graph*>(graph)->works.size(), cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  return *made = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph))), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  for (const ptx::Work& work : reinterpret_cast<Graph*>(graph)->works) {
    if (const cudaError_t error = ptx::submit(stream, work)) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete reinterpret_cast<Graph*>(graph), cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete reinterpret_cast<Graph*>(graph), cudaSuccess; }

}  // extern "C"
