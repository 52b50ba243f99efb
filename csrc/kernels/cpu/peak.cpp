#include "kernels/cpu/peak.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/peak_loops.h"

namespace ptq4arvg::cpu {
namespace {

constexpr double kWindow = 0.002;  // seconds: shorter than what a scheduler gives a process at a time
std::atomic<int> sink;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(PTQ4ARVG_X86)
bool has(const char* isa) {
  int count;
  const IsaChoice* choices = isa_choices(&count);
  for (int i = 0; i < count; ++i) {
    if (!std::strcmp(choices[i].name, isa)) return choices[i].available();
  }
  return false;
}

struct Kind {
  const char *name, *isa;
  const PeakLoop& (*loop)();
};

// The first of a name that the processor has counts.
const Kind kKinds[] = {{"amx", "amx_int8", tiles_amx_int8},
                       {"vnni", "avx512_vnni", dot_avx512_vnni},
                       {"vnni", "avx_vnni", dot_avx_vnni},
                       {"avx2_maddubs", "avx2", maddubs_avx2},
                       {"fma", "avx512_vnni", fma_avx512_vnni},
                       {"fma", "avx2", fma_avx2}};
#endif

const PeakLoop& find_loop(const std::string& name) {
  std::string known;
#if defined(PTQ4ARVG_X86)
  for (const Kind& kind : kKinds) {
    if (!has(kind.isa)) continue;
    if (name == kind.name) return kind.loop();
    if (known.find(kind.name) == std::string::npos) known += (known.empty() ? "" : ", ") + std::string(kind.name);
  }
#endif
  throw std::invalid_argument("measure_peak: kind is '" + name + "', this processor has " +
                              (known.empty() ? "none" : known));
}

ReadLoop find_read() {
#if defined(PTQ4ARVG_X86)
  if (has("avx512_vnni")) return read_avx512_vnni;
  if (has("avx2")) return read_avx2;
#endif
  return read_baseline;
}

void check(const char* function, int threads, double seconds) {
  if (threads < 1 || threads > 1024 || !(seconds > 0 && seconds <= 60)) {
    throw std::invalid_argument(std::string(function) + ": wanted 1 to 1024 threads and up to 60 seconds");
  }
}

// Every thread repeats work(thread) in windows until the time is over; the sum of the threads' best rates of `amount`
// per call.
template <class Work>
double best_rate(int threads, double seconds, double amount, const Work& work) {
  std::vector<double> best(threads, 0.0);
  const double end = now() + seconds;
  const auto run = [&](int thread) {
    do {
      const double begin = now();
      double elapsed;
      int64_t calls = 0;
      do {
        sink.store(work(thread), std::memory_order_relaxed);
        ++calls;
        elapsed = now() - begin;
      } while (elapsed < kWindow);
      const double rate = amount * static_cast<double>(calls) / elapsed;
      if (rate > best[thread]) best[thread] = rate;
    } while (now() < end);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(run, i);
  run(0);
  for (std::thread& other : others) other.join();
  double sum = 0;
  for (double rate : best) sum += rate;
  return sum;
}

}  // namespace

int read_baseline(const uint8_t* data, size_t bytes) {
  uint64_t sums[4] = {};
  for (size_t i = 0; i + sizeof sums <= bytes; i += sizeof sums) {
    uint64_t words[4];
    std::memcpy(words, data + i, sizeof words);
    for (int j = 0; j < 4; ++j) sums[j] ^= words[j];
  }
  return static_cast<int>(sums[0] ^ sums[1] ^ sums[2] ^ sums[3]);
}

double measure_peak(const char* kind, int threads, double seconds) {
  check("measure_peak", threads, seconds);
  const PeakLoop& loop = find_loop(kind);
  constexpr int64_t kRounds = 4096;
  return best_rate(threads, seconds, loop.operations * kRounds, [&](int) {
    if (loop.begin) loop.begin();
    const int result = loop.run(kRounds);
    if (loop.end) loop.end();
    return result;
  });
}

double measure_bandwidth(int64_t bytes, int threads, double seconds) {
  check("measure_bandwidth", threads, seconds);
  constexpr int64_t kLeast = 4096;
  if (bytes / threads < kLeast) {
    throw std::invalid_argument("measure_bandwidth: wanted at least 4096 bytes a thread, not " +
                                std::to_string(bytes) + " for " + std::to_string(threads));
  }
  const size_t part = static_cast<size_t>(bytes / threads) / kLeast * kLeast;
  const std::unique_ptr<uint8_t, void (*)(void*)> buffer(
      static_cast<uint8_t*>(std::aligned_alloc(kLeast, part * threads)), std::free);
  if (!buffer) throw std::bad_alloc();
  std::memset(buffer.get(), 1, part * threads);
  const ReadLoop read = find_read();
  // In pieces, so that a window of a large buffer is short enough; a small one is read whole.
  const size_t piece = part < (1u << 20) ? part : (1u << 20), pieces = part / piece;
  std::vector<size_t> next(threads * 16, 0);  // spaced: no line shared by two threads
  return best_rate(threads, seconds, static_cast<double>(piece), [&](int thread) {
    const size_t at = next[thread * 16];
    next[thread * 16] = at + 1 < pieces ? at + 1 : 0;
    return read(buffer.get() + thread * part + at * piece, piece);
  });
}

}  // namespace ptq4arvg::cpu
