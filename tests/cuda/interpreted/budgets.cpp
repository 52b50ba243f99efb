// How many instructions an element of the kernels takes that are to run at the speed of memory, in large calls, and how
// many a score of attention. What test_interpreted.py compares them with says how many there may be.
#include <vector>

#include "device.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/rowwise.h"
#include "kernels/cuda/unpack.h"

using namespace ptq4arvg;

namespace {

constexpr int64_t kRows = 64, kColumns = 1536;

// A call's, of all its kernels.
template <class Call>
void tell(const char* name, double elements, const Call& call) {
  const uint64_t before = ptx::slots_taken;
  if (call() != cudaSuccess) fail(name);
  std::printf("%s %.1f\n", name, 32 * static_cast<double>(ptx::slots_taken - before) / elements);
}

DeviceArray<uint8_t> halves(int64_t count) {
  DeviceArray<uint8_t> made(2 * count);
  for (int64_t i = 0; i < count; ++i) store_float(made.data, DType::bf16, i, 0.01f * uniform(-300, 300));
  return made;
}

void tell_rows() {
  const DeviceArray<uint8_t> x = halves(kRows * kColumns), vectors = halves(2 * kColumns);
  const DeviceArray<float> inv = floats(kRows, 1, 40);
  const DeviceArray<int32_t> zero(kRows, [] { return 12; });
  const DeviceArray<int8_t> out(kRows * kColumns);
  const FloatMatrix rows{x.data, DType::bf16, kColumns};
  const double elements = kRows * kColumns;

  QuantizeProblem q;
  q.m = kRows, q.k = kColumns, q.x = rows, q.rows = {kRows, nullptr}, q.table = {inv.data, zero.data, 8};
  q.out = out.data;
  const auto quantize = [&] { return cuda::quantize(q, {ptx_device()}); };
  tell("quantize", elements, quantize);
  q.rotation = 16;
  tell("quantize.rotated16", elements, quantize);
  q.rotation = 128;
  tell("quantize.rotated128", elements, quantize);
  q.rotation = 0, q.k = kColumns / 2, q.gated = true, q.activation = Activation::silu;
  tell("gate_quantize.silu", elements / 2, quantize);

  NormQuantizeProblem p;
  p.m = kRows, p.k = kColumns, p.x = rows, p.rows = q.rows, p.table = q.table, p.out = out.data;
  p.scale = {vectors.data, DType::bf16, 2 * kColumns}, p.shift = {vectors.data + 2 * kColumns, DType::bf16, 2 * kColumns};
  const auto norm_quantize = [&] { return cuda::norm_quantize(p, {ptx_device()}); };
  tell("norm_quantize", elements, norm_quantize);
  p.rotation = 128;
  tell("norm_quantize.rotated128", elements, norm_quantize);
  p.rotation = 0, p.rms = true, p.scale = p.shift = {}, p.weight = {vectors.data, DType::bf16, 0};
  tell("norm_quantize.rms", elements, norm_quantize);
  ptx::device.sm = 86;  // where float64 is slow
  tell("norm_quantize.rms.pairs", elements, norm_quantize);
  ptx::device.sm = 90;
}

void tell_map() {
  constexpr int64_t kSide = 48, kChannels = 160;
  const DeviceArray<uint8_t> x = halves(kSide * kSide * kChannels), vector = halves(kChannels);
  const DeviceArray<float> inv = floats(1, 1, 40);
  const DeviceArray<int32_t> zero(1, [] { return 12; });
  const DeviceArray<int8_t> out((kSide + 2) * (kSide + 2) * kChannels);
  QuantizeMapProblem p;
  p.images = 1, p.height = p.width = kSide, p.channels = kChannels, p.groups = 32;
  p.x = {x.data, DType::bf16, kChannels}, p.weight = p.bias = {vector.data, DType::bf16, 0};
  p.activation = Activation::silu, p.table = {inv.data, zero.data, 8}, p.border = 1, p.out = out.data;
  const DeviceArray<uint8_t> room(1 << 20);
  const auto allocate = [](void* memory, size_t) { return memory; };
  tell("quantize_map", kSide * kSide * kChannels,
       [&] { return cuda::quantize_map(p, {ptx_device()}, {allocate, room.data}); });
}

void tell_qkv() {
  constexpr int64_t kImages = 4, kHeads = 8, kTokens = 64, kSize = 64, kElements = kImages * kTokens * kHeads * kSize;
  const DeviceArray<uint8_t> x = halves(3 * kElements), vector = halves(kSize), q(2 * kElements);
  const DeviceArray<float> scale = floats(kHeads * kSize, 0.01f, 0.1f), shift = floats(kHeads * kSize, -1, 1),
                           turns = floats(kTokens * kSize, -1, 1);
  const DeviceArray<int8_t> keys(kElements), values(kElements);
  const auto part = [&](int which) {
    return HeadTensor{x.data + 2 * which * kHeads * kSize, DType::bf16, 3 * kTokens * kHeads * kSize, kSize,
                      3 * kHeads * kSize};
  };
  StoreKvProblem plain;
  plain.batch = kImages, plain.heads = kHeads, plain.tokens = kTokens, plain.size = kSize;
  plain.q = part(0), plain.k = part(1), plain.v = part(2), plain.q_out = q.data, plain.q_factor = 0.125f;
  plain.k_scale = plain.v_scale = scale.data, plain.k_shift = plain.v_shift = shift.data;
  plain.cache = {keys.data, values.data, kHeads * kTokens * kSize, kHeads * kTokens * kSize, kTokens};
  const auto store = [](const StoreKvProblem& s) { return [&] { return cuda::store_kv(s, {ptx_device()}); }; };
  StoreKvProblem s = plain;
  s.norm = HeadNorm::l2, s.eps = 1e-12f;
  tell("store_qkv.l2", 3 * kElements, store(s));
  s.norm = HeadNorm::layer, s.eps = 1e-6f;
  s.q_weight = s.q_bias = s.k_weight = s.k_bias = {vector.data, DType::bf16, 0};
  tell("store_qkv.layer", 3 * kElements, store(s));
  s = plain;
  s.rotation = turns.data;
  tell("store_qkv.rotation", 3 * kElements, store(s));
}

void tell_unpack() {
  constexpr int64_t kSide = 512;
  const DeviceArray<int32_t> zero(kSide, [] { return 7; });
  const DeviceArray<int8_t> codes(kSide * kSide);
  for (const int bits : {6, 4}) {
    const DeviceArray<uint8_t> packed(cuda::layout_of(kSide, kSide, bits).bytes, [] { return uniform(0, 255); });
    const PackProblem p{kSide, kSide, bits, zero.data};
    tell(bits == 6 ? "unpack.w6" : "unpack.w4", kSide * kSide,
         [&] { return cuda::unpack_weight(p, packed.data, codes.data, kSide, {ptx_device()}); });
  }
}

// The last scale of a VAR: scores of all queries with all keys.
void tell_attention() {
  constexpr int64_t kHeads = 1, kTokens = 256, kKeys = 680, kCapacity = 688, kSize = 64;
  const DeviceArray<uint8_t> q = halves(kTokens * kHeads * kSize), out(2 * q.count);
  const DeviceArray<float> scale = floats(kHeads * kSize, 0.01f, 0.1f), shift = floats(kHeads * kSize, -1, 1);
  const DeviceArray<int8_t> keys(kHeads * kCapacity * kSize, [] { return uniform(-127, 127); }), values(keys.count);
  const DeviceArray<int32_t> position(1, [] { return kKeys - kTokens; });
  AttentionProblem p;
  p.batch = 1, p.heads = kHeads, p.tokens = kTokens, p.size = kSize;
  p.q = {q.data, DType::bf16, kTokens * kHeads * kSize, kSize, kHeads * kSize};
  p.k_scale = p.v_scale = scale.data, p.v_shift = shift.data, p.position = position.data;
  p.cache = {keys.data, values.data, 0, 0, kCapacity};
  p.out_dtype = DType::bf16, p.out = out.data;
  cuda::Launch launch{ptx_device()};
  launch.device.sm_count = 1;  // so few that the keys are not split among the warps
  tell("attention", kHeads * kTokens * kKeys, [&] { return cuda::attention(p, launch); });
}

}  // namespace

int main() {
  tell_rows();
  tell_map();
  tell_qkv();
  tell_unpack();
  tell_attention();
  std::printf("ok\n");
  return 0;
}
