// The kernels without torch or Python: every instruction set against the scalar table, byte for byte.
//
// Buffers have exactly the size that is needed, so that the sanitizers see one byte too many. Built with
// PTQ4ARVG_EMULATE the AVX-512-VNNI source runs on SIMDe's emulation of its instructions: that checks its arithmetic,
// not the hardware. Prints a line for each table, with what it ran on (the argument, or "on hardware"), and "ok"; exits
// with 1 at the first difference.
#include "cases.h"
#include "check_maps.h"

namespace {

constexpr int kPositions = 9;

void check_gemm(const cpu::KernelTable& table, int64_t m, int64_t n, int64_t k, int bits, bool extreme, bool requantize,
                DType dtype, Activation activation) {
  const Weights w = make_weights(n, k, bits, extreme);
  const int64_t stride = k + uniform(0, 3), tokens = uniform(1, 5), images = (m + tokens - 1) / tokens;
  const Exact<int8_t> a(m ? (m - 1) * stride + k : 0,
                        [=] { return extreme ? (uniform(0, 1) ? 127 : -128) : uniform(-128, 127); });
  const auto a_scale = floats(kPositions, 0.01f, 0.1f), w_scale = floats(n, 1e-3f, 1e-2f), bias = floats(n, -1, 1);
  const auto gate = floats(images * n, -1, 1), residual = floats(m * n, -1, 1), inv = floats(kPositions, 1, 40);
  const Exact<int32_t> a_zero(kPositions, [] { return uniform(-128, 127); });
  const Exact<int32_t> position(1, [=] { return uniform(0, kPositions - static_cast<int>(tokens)); });
  const Exact<int32_t> out_zero(kPositions, [=] { return uniform(0, levels(bits) - 1); });
  GemmProblem p;
  p.m = m, p.n = n, p.k = k, p.bits = bits;
  p.a = a.get(), p.a_stride = stride;
  p.w = w.packed.get(), p.w_zero = w.problem.zero;
  p.rows = {tokens, position.get()};
  Epilogue& e = p.epilogue;
  e.a_scale = a_scale.get(), e.a_zero = a_zero.get(), e.w_scale = w_scale.get(), e.bias = bias.get();
  e.activation = activation;
  e.gate = {gate.get(), DType::f32, n}, e.residual = {residual.get(), DType::f32, n};
  e.requantize = requantize, e.out_dtype = dtype;
  e.out_table = {inv.get(), out_zero.get(), bits};
  const int blocks[] = {0, 2, 4, 8, 16};
  for (const int block : blocks) {
    if (requantize && rotation_fits(block, n, kMaxEpilogueRotation) && uniform(0, 2)) e.rotation = block;
  }
  const size_t bytes = m * n * (requantize ? 1 : dtype == DType::f32 ? 4 : 2);
  const Exact<uint8_t> expected(bytes), actual(bytes);
  e.out = expected.get();
  cpu::scalar_table().gemm(p);
  e.out = actual.get();
  table.gemm(p);
  if (bytes && std::memcmp(expected.get(), actual.get(), bytes)) fail(table.isa, "gemm", m, n, k, bits);

  GemmFloatProblem f;
  const auto x = floats(m * k, -2, 2);
  f.m = m, f.n = n, f.k = k, f.bits = bits;
  f.x = {x.get(), DType::f32, k};
  f.w = p.w, f.w_zero = p.w_zero, f.w_scale = w_scale.get(), f.bias = bias.get(), f.activation = activation;
  const Exact<float> exact(m * n), close(m * n);
  f.out = exact.get();
  cpu::scalar_table().gemm_float(f);
  f.out = close.get();
  table.gemm_float(f);
  for (int64_t i = 0; i < m * n; ++i) {
    const float difference = exact.get()[i] - close.get()[i];
    if (!(difference < 1e-3f && difference > -1e-3f)) fail(table.isa, "gemm_float", m, n, k, bits);
  }
}

void check_rows(const cpu::KernelTable& table, int64_t m, int64_t k, int bits, DType dtype) {
  const Exact<uint32_t> noise(dtype == DType::f32 ? m * k : (m * k + 1) / 2,
                              [] { return uniform(0x3d00, 0x4100) * 0x10001u | (uniform(0, 1) ? 0x80008000u : 0u); });
  const auto inv = floats(kPositions, 1, 40), vector = floats(k, -1, 1), rows = floats((m + 1) * k, -1, 1);
  const Exact<int32_t> zero(kPositions, [=] { return uniform(0, levels(bits) - 1); });
  const Exact<int8_t> expected(m * k), actual(m * k);
  QuantizeProblem q;
  q.m = m, q.k = k, q.x = {noise.get(), dtype, k}, q.rows = {1 + m % kPositions, nullptr};
  q.table = {inv.get(), zero.get(), bits};
  for (int block = 2; rotation_fits(block, k, kMaxRotation); block *= 2) q.rotation = m % 2 ? block : 0;
  q.out = expected.get();
  cpu::scalar_table().quantize(q);
  q.out = actual.get();
  table.quantize(q);
  if (m && std::memcmp(expected.get(), actual.get(), m * k)) fail(table.isa, "quantize", m, 0, k, bits);
  if (k % 2 == 0 && !q.rotation) {  // the rows as gates and what they gate
    QuantizeProblem gated = q;
    gated.k = k / 2, gated.gated = true, gated.activation = Activation(uniform(0, 3));
    gated.out = expected.get();
    cpu::scalar_table().quantize(gated);
    gated.out = actual.get();
    table.quantize(gated);
    if (m && std::memcmp(expected.get(), actual.get(), m * k / 2)) fail(table.isa, "gate_quantize", m, 0, k, bits);
  }

  NormQuantizeProblem p;
  p.m = m, p.k = k, p.x = q.x, p.rows = q.rows, p.table = q.table;
  p.weight = p.bias = p.constant = p.post_scale = p.post_shift = {vector.get(), DType::f32, 0};
  p.scale = p.shift = {rows.get(), DType::f32, k};
  p.rms = m % 2;
  p.rotation = q.rotation;
  p.out = expected.get();
  cpu::scalar_table().norm_quantize(p);
  p.out = actual.get();
  table.norm_quantize(p);
  if (m && std::memcmp(expected.get(), actual.get(), m * k)) fail(table.isa, "norm_quantize", m, 0, k, bits);
}

// Floats [batch, heads, tokens, size] with gaps between tokens, heads and images, in a block that ends with the last.
struct Heads {
  Heads(int64_t batch, int64_t heads, int64_t tokens, int64_t size, DType dtype)
      : of_head(size + uniform(0, 5)),
        of_token(heads * of_head + uniform(0, 5)),
        of_image(tokens * of_token + uniform(0, 5)),
        dtype(dtype),
        halves(((batch - 1) * of_image + (tokens - 1) * of_token + (heads - 1) * of_head + size) *
                   (dtype == DType::f32 ? 2 : 1),
               [] { return uniform(0x3c00, 0x4100) | uniform(0, 1) << 15; }) {}
  HeadTensor tensor() const { return {halves.get(), dtype, of_image, of_head, of_token}; }

  int64_t of_head, of_token, of_image;
  DType dtype;
  Exact<uint16_t> halves;
};

// Any codes, with a gap between images, in blocks that end with the last image.
struct Cache {
  Cache(int64_t batch, int64_t heads, int64_t head_bytes, int64_t capacity)
      : capacity(capacity),
        of_image(heads * head_bytes + uniform(0, 40)),
        keys((batch - 1) * of_image + heads * head_bytes, [] { return uniform(-128, 127); }),
        values(keys.count, [] { return uniform(-128, 127); }) {}
  KvCache<int8_t> all() const { return {keys.get(), values.get(), of_image, of_image, capacity}; }
  KvCache<const int8_t> read() const { return {keys.get(), values.get(), of_image, of_image, capacity}; }

  int64_t capacity, of_image;
  Exact<int8_t> keys, values;
};

// Positions and limits may go past the cache's end, and limits may leave nothing to attend to.
void check_attention(const cpu::KernelTable& table, int64_t tokens, int64_t size, int64_t capacity, DType dtype,
                     DType out_dtype) {
  const int64_t batch = uniform(1, 3), heads = uniform(1, 3), head_bytes = capacity * size;
  const Heads q(batch, heads, tokens, size, dtype), k(batch, heads, tokens, size, dtype);
  const Heads v(batch, heads, tokens, size, out_dtype);
  const auto k_scale = floats(heads * size, 1e-3f, 3e-2f), k_shift = floats(heads * size, -1, 1);
  const auto v_scale = floats(heads * size, 1e-3f, 3e-2f), v_shift = floats(heads * size, -1, 1);
  const int room = static_cast<int>(capacity);
  const Exact<int32_t> position(1, [=] { return uniform(0, room); });
  const Exact<int32_t> limits(tokens, [=] { return uniform(-1, room + 3); });
  const Cache expected(batch, heads, head_bytes, capacity);
  const size_t bytes = expected.keys.count;
  const Exact<int8_t> keys(bytes), values(bytes);
  std::memcpy(keys.get(), expected.keys.get(), bytes);
  std::memcpy(values.get(), expected.values.get(), bytes);

  StoreKvProblem s;
  s.batch = batch, s.heads = heads, s.tokens = tokens, s.size = size;
  s.k = k.tensor(), s.v = v.tensor();
  s.k_scale = k_scale.get(), s.k_shift = k_shift.get(), s.v_scale = v_scale.get(), s.v_shift = v_shift.get();
  s.position = uniform(0, 3) ? position.get() : nullptr;
  s.cache = expected.all();
  const auto vectors = floats(4 * size, -2, 2), rotation = floats(tokens * size, -1, 1), factors = floats(heads, -1, 1);
  const size_t q_bytes = batch * tokens * heads * size * (dtype == DType::f32 ? 4 : 2);
  const Exact<uint8_t> q_wanted(q_bytes), q_found(q_bytes);
  if (uniform(0, 2)) {
    const auto vector = [&](int i) {
      return uniform(0, 1) ? FloatMatrix{vectors.get() + i * size, DType::f32, 0} : FloatMatrix{};
    };
    s.q = q.tensor();
    s.norm = static_cast<HeadNorm>(uniform(0, 3)), s.eps = 1e-6f;
    s.q_weight = vector(0), s.q_bias = vector(1), s.k_weight = vector(2), s.k_bias = vector(3);
    s.rotation = uniform(0, 1) ? rotation.get() : nullptr;
    s.q_factors.data = uniform(0, 1) ? factors.get() : nullptr;
  }
  s.q_out = q_wanted.get();
  cpu::scalar_table().store_kv(s);
  s.cache.keys = keys.get(), s.cache.values = values.get();
  s.q_out = q_found.get();
  table.store_kv(s);
  if (s.q.data && std::memcmp(q_wanted.get(), q_found.get(), q_bytes)) {
    fail(table.isa, "store_kv's queries", tokens, capacity, size, 8);
  }
  if (std::memcmp(expected.keys.get(), keys.get(), bytes) || std::memcmp(expected.values.get(), values.get(), bytes)) {
    fail(table.isa, "store_kv", tokens, capacity, size, 8);
  }

  AttentionProblem p;
  p.batch = batch, p.heads = heads, p.tokens = tokens, p.size = size;
  p.q = q.tensor(), p.out_dtype = out_dtype;
  p.k_scale = k_scale.get(), p.v_scale = v_scale.get(), p.v_shift = v_shift.get();
  p.cache = expected.read();
  p.position = s.position;
  p.limits = uniform(0, 1) ? limits.get() : nullptr;
  const Exact<float> inverse = floats(tokens, 1, 40);
  const Exact<int32_t> zeros(tokens, [] { return uniform(0, 255); });
  p.requantize = uniform(0, 1), p.one_entry = uniform(0, 1), p.out_table = {inverse.get(), zeros.get(), 8};
  const int block = 1 << uniform(1, 4);
  if (p.requantize && rotation_fits(block, size, kMaxEpilogueRotation)) p.rotation = block;
  const size_t element = p.requantize ? 1 : out_dtype == DType::f32 ? 4 : 2;
  const size_t out_bytes = batch * tokens * heads * size * element;
  const Exact<uint8_t> wanted(out_bytes), found(out_bytes);
  p.out = wanted.get();
  cpu::scalar_table().attention(p);
  p.out = found.get();
  table.attention(p);
  if (std::memcmp(wanted.get(), found.get(), out_bytes)) fail(table.isa, "attention", tokens, capacity, size, 8);
}

void check_table(const cpu::KernelTable& table, const char* how) {
  int count = 0;
  for (int bits : {8, 6, 4}) {
    for (bool extreme : {false, true}) {
      for (int64_t m : {0, 1, 2, 3, 4, 5, 6, 7, 11, 13, 24, 50}) {
        const int64_t n = uniform(0, 1) ? uniform(1, 150) : 16 * uniform(1, 9), k = uniform(1, 90);
        check_gemm(table, m, n, k, bits, extreme, count % 2, DType(count % 3), Activation(count % 4));
        check_rows(table, m, k, bits, DType(count % 3));
        check_rows(table, m, 16 * uniform(1, 20), bits, DType(count % 3));
        const int64_t tokens = m ? m : 9, size = 4 * uniform(1, 32);
        check_attention(table, tokens, size, 16 * uniform(1, 20), DType(count % 3), DType(uniform(0, 2)));
        check_map(table, uniform(0, 3), uniform(1, 12), uniform(1, 12), uniform(1, 80), bits);
        check_convolution(table, uniform(0, 2), uniform(1, 9), uniform(1, 9), uniform(1, 40), n, bits, extreme);
        ++count;
      }
      check_gemm(table, 7, 16, 4, bits, extreme, false, DType::f32, Activation::none);
      check_gemm(table, 40, 64, 64, bits, extreme, true, DType::f32, Activation::gelu);
      check_gemm(table, 100, 130, 2051, bits, extreme, false, DType::f32, Activation::none);
      check_attention(table, 70, 64, 512, DType::f32, DType::f32);
      check_map(table, 2, 40, 33, 36, bits);
      check_convolution(table, 1, 20, 17, 130, 70, bits, extreme);
      count += 3;
    }
  }
  std::printf("%s: %d cases agree (%s)\n", table.isa, count, how);
}

}  // namespace

int main(int argc, char** argv) {
  const char* how = argc > 1 ? argv[1] : "on hardware";
  set_parallel({Threads::run, Threads::count});
  check_table(cpu::scalar_table(), "itself");
  int count;
  const cpu::IsaChoice* choices = cpu::isa_choices(&count);
  for (int i = 0; i < count; ++i) {
    const std::string name = choices[i].name;
    if (name == "scalar") continue;
#if defined(PTQ4ARVG_EMULATE)
    if (name == "avx512_vnni") {
      check_table(choices[i].table(), "emulated by SIMDe, not on hardware");
      continue;
    }
#endif
    if (choices[i].available()) check_table(choices[i].table(), how);
    else std::printf("%s: not on this processor, not checked\n", choices[i].name);
  }
  std::printf("ok\n");
  return 0;
}
