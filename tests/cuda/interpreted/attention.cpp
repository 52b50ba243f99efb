// store_kv and attention: sizes of heads, norms and rotations, types, strides, positions and limits, and numbers at their ends.
#include "kernels/cuda/attention.h"

#include <cmath>
#include <limits>

#include "device.h"
#include "kernels/cpu/isa.h"

using namespace ptq4arvg;

namespace {

int64_t bytes_of(DType type) { return type == DType::f32 ? 4 : 2; }

// Queries, keys and values of all tokens, one after the other as a linear layer gives them, [batch, tokens, 3, heads,
// size], or with a gap that leaves no alignment.
struct Projections {
  int64_t heads, tokens, size, stride;
  DType type;
  DeviceArray<uint8_t> data;

  Projections(int64_t batch, int64_t heads, int64_t tokens, int64_t size, DType type)
      : heads(heads), tokens(tokens), size(size), stride(3 * heads * size + (uniform(0, 2) ? 0 : 1)), type(type),
        data(batch * tokens * stride * bytes_of(type)) {
    const float scale = uniform(0, 7) ? 0.01f : type == DType::f16 ? 100.0f : 1e28f;
    for (int64_t i = 0; i < batch * tokens * stride; ++i) store_float(data.data, type, i, scale * uniform(-300, 300));
  }
  HeadTensor part(int which) const {
    return {data.data + which * heads * size * bytes_of(type), type, tokens * stride, size, stride};
  }
  void set(int64_t image, int64_t token, int64_t head, int64_t channel, float x) const {
    store_float(data.data, type, (image * tokens + token) * stride + head * size + channel, x);
  }
};

// A cache of garbage, with gaps between images.
struct Cache {
  int64_t image;
  DeviceArray<int8_t> keys, values;

  Cache(int64_t batch, int64_t image)
      : image(image), keys(batch * image, [] { return uniform(-128, 127); }),
        values(batch * image, [] { return uniform(-128, 127); }) {}
  template <class Byte>
  KvCache<Byte> of(int64_t capacity) const {
    return {keys.data, values.data, image, image, capacity};
  }
  void copy(const Cache& other) const {
    std::memcpy(keys.data, other.keys.data, keys.bytes());
    std::memcpy(values.data, other.values.data, values.bytes());
  }
  bool operator==(const Cache& other) const {
    return !std::memcmp(keys.data, other.keys.data, keys.bytes()) &&
           !std::memcmp(values.data, other.values.data, values.bytes());
  }
};

// Bits, but for the bits of what is not a number.
bool same(const void* a, const void* b, DType type, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = load_float(a, type, i), y = load_float(b, type, i);
    if (float_bits(x) != float_bits(y) && !(std::isnan(x) && std::isnan(y))) return false;
  }
  return true;
}

// Everything that store_kv can do to q and k, each part or not, vectors of any type and off their alignment.
struct Steps {
  DType types[3] = {DType(uniform(0, 2)), DType(uniform(0, 2)), DType(uniform(0, 2))};
  int64_t size, shift = uniform(0, 2) ? 0 : 1;
  DeviceArray<uint8_t> vectors[3];  // of q, of k, of the heads
  DeviceArray<float> rotation;

  Steps(int64_t heads, int64_t tokens, int64_t size)
      : size(size), vectors{filled(0, 2 * size + 1), filled(1, 2 * size + 1), filled(2, heads)},
        rotation(floats(tokens * size + 1, -1, 1)) {}
  DeviceArray<uint8_t> filled(int which, int64_t count) const {
    DeviceArray<uint8_t> made(count * bytes_of(types[which]));
    for (int64_t i = 0; i < count; ++i) store_float(made.data, types[which], i, 0.01f * uniform(-300, 300));
    return made;
  }
  FloatMatrix vector(int which, int64_t first) const {
    if (uniform(0, 1)) return {};
    return {vectors[which].data + first * bytes_of(types[which]), types[which], 0};
  }
  void set(StoreKvProblem* s) const {
    s->norm = HeadNorm(uniform(0, 3)), s->eps = uniform(0, 1) ? 1e-6f : 1e-12f;
    s->q_weight = vector(0, shift), s->q_bias = vector(0, shift + size);
    s->k_weight = vector(1, shift), s->k_bias = vector(1, shift + size);
    s->q_factors = vector(2, 0), s->q_factor = uniform(0, 1) ? 1.0f : 0.25f;
    if (uniform(0, 1)) s->rotation = rotation.data + shift;
  }
};

// One of few multiprocessors, or of many: whose blocks have many queries, or whose warps split the keys.
cuda::Launch launch() {
  cuda::Launch made{ptx_device()};
  made.device.sm_count = uniform(0, 1) ? 0 : 1000;
  return made;
}

int count = 0;

void check(int64_t batch, int64_t heads, int64_t tokens, int64_t size, int64_t capacity) {
  ++count;
  setenv("PTQ4ARVG_CUDA_PDL", uniform(0, 1) ? "1" : "0", 1);
  const DType type = DType(uniform(0, 2));
  const Projections x(batch, heads, tokens, size, type);
  const int shift = uniform(0, 3) ? 0 : 1;  // tables off their alignment
  const int64_t channels = heads * size;
  const DeviceArray<float> k_scale = floats(channels + 1, 0.01f, 0.1f), v_scale = floats(channels + 1, 0.01f, 0.1f),
                           k_shift = floats(channels + 1, -1, 1), v_shift = floats(channels + 1, -1, 1);
  // Now and then so far on that the last tokens have no room.
  const int room = static_cast<int>(capacity > tokens ? capacity - tokens : 0);
  const DeviceArray<int32_t> position(1, [=] { return uniform(0, room + (uniform(0, 5) ? 0 : 5)); });
  const bool placed = uniform(0, 3);

  const int64_t image = channels * capacity + 16 * uniform(0, 2);
  const Cache cache(batch, image), expected_cache(batch, image);
  expected_cache.copy(cache);
  StoreKvProblem s;
  s.batch = batch, s.heads = heads, s.tokens = tokens, s.size = size, s.k = x.part(1), s.v = x.part(2);
  s.k_scale = k_scale.data + shift, s.v_scale = v_scale.data + shift;
  s.k_shift = k_shift.data + shift, s.v_shift = v_shift.data + shift;
  s.position = placed ? position.data : nullptr;
  const Steps steps(heads, tokens, size);
  const int64_t queries = batch * tokens * channels;
  const DeviceArray<uint8_t> expected_q(queries * bytes_of(type)), actual_q(expected_q.count);
  actual_q.fill(0x33);
  if (uniform(0, 3)) s.q = x.part(0), steps.set(&s);
  s.cache = expected_cache.of<int8_t>(capacity);
  s.q_out = expected_q.data;
  cpu::scalar_table().store_kv(s);
  s.cache = cache.of<int8_t>(capacity);
  s.q_out = actual_q.data;
  if (cuda::store_kv(s, launch()) != cudaSuccess) fail("store_kv start", batch, heads, tokens, size);
  if (!(cache == expected_cache))
    fail("store_kv", batch, heads, tokens, size, capacity, placed ? position[0] : -1, int(type), int(s.norm));
  if (s.q.data && !same(expected_q.data, actual_q.data, type, queries))
    fail("queries", batch, heads, tokens, size, int(type), int(s.norm));

  // Queries of the first image: not a number, infinite, zero, and next to nothing.
  const float odd[] = {std::nanf(""), INFINITY, 0.0f, 1e-36f};
  for (int i = 0; i < 4 && i < tokens && !uniform(0, 3); ++i) {
    for (int64_t c = i < 2 ? size - 1 : 0; c < size; ++c) x.set(0, i, heads - 1, c, odd[i]);
  }
  AttentionProblem p;
  p.batch = batch, p.heads = heads, p.tokens = tokens, p.size = size, p.q = x.part(0);
  p.k_scale = s.k_scale, p.v_scale = s.v_scale, p.v_shift = s.v_shift;
  p.cache = cache.of<const int8_t>(capacity);
  p.position = s.position;
  const int least = uniform(0, 9) ? 1 : -1;
  const DeviceArray<int32_t> limits(tokens, [=] { return uniform(least, static_cast<int>(capacity) + (least < 0)); });
  if (uniform(0, 1)) p.limits = limits.data;
  p.out_dtype = DType(uniform(0, 2));
  // The same as codes, by a table of places or of one entry.
  const DeviceArray<float> inverse = floats(tokens + 9, 1, 40);
  const DeviceArray<int32_t> zero(tokens + 9, [] { return uniform(0, 255); }), place(1, [] { return uniform(0, 9); });
  p.requantize = uniform(0, 1), p.one_entry = uniform(0, 3) == 0;
  p.out_table = {inverse.data, zero.data, 8};
  if (uniform(0, 1)) p.out_position = place.data;
  for (const int block : {2, 4, 8, 16}) {
    if (p.requantize && rotation_fits(block, size, kMaxEpilogueRotation) && uniform(0, 2)) p.rotation = block;
  }
  const int64_t outputs = batch * tokens * channels, of_output = p.requantize ? 1 : bytes_of(p.out_dtype);
  const DeviceArray<uint8_t> expected(outputs * of_output), actual(expected.count);
  actual.fill(0x33);
  p.out = expected.data;
  cpu::scalar_table().attention(p);
  p.out = actual.data;
  if (cuda::attention(p, launch()) != cudaSuccess) fail("attention start", batch, heads, tokens, size);
  const bool equal = p.requantize ? !std::memcmp(expected.data, actual.data, expected.bytes())
                                  : same(expected.data, actual.data, p.out_dtype, outputs);
  if (!equal) {
    fail(p.requantize ? "attention to codes" : "attention", batch, heads, tokens, size, capacity, p.limits != nullptr, placed ? position[0] : -1, int(type));
  }
}

// All codes at their ends, so that scores and sums are as far from zero as they can be.
void check_extremes(int64_t tokens, int64_t capacity, int sign) {
  constexpr int64_t kSize = 128;
  const DeviceArray<float> q(tokens * kSize, [=] { return sign; }), ones(kSize, [] { return 1; });
  const DeviceArray<int8_t> keys(capacity * kSize, [] { return -127; }), values(capacity * kSize, [] { return -127; });
  for (int64_t c = 0; c < kSize; ++c) keys[key_place(capacity / 2, c, kSize)] = 127;
  AttentionProblem p;
  p.batch = p.heads = 1, p.tokens = tokens, p.size = kSize;
  p.q = {q.data, DType::f32, 0, 0, kSize};
  p.k_scale = p.v_scale = p.v_shift = ones.data;
  p.cache = {keys.data, values.data, 0, 0, capacity};
  const DeviceArray<int32_t> position(1, [=] { return capacity - tokens; });
  p.position = position.data;
  const DeviceArray<float> expected(tokens * kSize), actual(tokens * kSize);
  p.out = expected.data;
  cpu::scalar_table().attention(p);
  p.out = actual.data;
  if (cuda::attention(p, launch()) != cudaSuccess) fail("attention start", tokens, capacity);
  if (!same(expected.data, actual.data, DType::f32, expected.count)) fail("extremes", tokens, capacity, sign);
  ++count;
}

}  // namespace

int main() {
  for (const int64_t size : {4, 20, 48, 64, 80, 88, 96, 100, 128}) {
    for (const int64_t tokens : {1, uniform(2, 15), 16, uniform(17, 63), 64, uniform(65, 70)}) {
      const int64_t capacity = whole_panels(tokens + uniform(0, 1) * uniform(0, 200));
      check(uniform(1, 2), uniform(1, 2), tokens, size, capacity);
    }
    for (int i = 0; i < 3; ++i) {
      check(uniform(1, 3), uniform(1, 3), uniform(1, 5), size, whole_panels(5 + uniform(0, 500)));
    }
  }
  for (const int sign : {1, -1}) check_extremes(3, 1024, sign), check_extremes(40, 272, sign);
  std::printf("attention: %d cases agree, %.3f bank conflicts\nok\n", count, bank_conflicts());
  return 0;
}
