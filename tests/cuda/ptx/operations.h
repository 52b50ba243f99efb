// The instructions that the interpreter knows, by groups. Each function gives the handler of an instruction, or none.
#pragma once

#include "program.h"

namespace ptx {

Handler arithmetic(const Instruction&);   // arithmetic.cpp: one lane's registers to its registers
Handler conversion(const Instruction&);   // conversion.cpp: mov, cvt, cvta
Handler memory(const Instruction&);       // memory.cpp: ld, st, atom, red, prefetch
Handler asynchronous(const Instruction&); // asynchronous.cpp: cp.async, bulk copies of tensors
Handler barriers(const Instruction&);     // barriers.cpp: bar, barrier.cluster, mbarrier
Handler matrices(const Instruction&);     // matrices.cpp: ldmatrix, stmatrix, mma, wgmma
Handler across(const Instruction&);       // across.cpp: shfl, elect, mapa, control flow and hints

Handler handler_of(const Instruction&);

// f.operator()<T>() with the type that a name like "s32" means; null where it is none.
template <class F>
Handler by_type(const std::string& name, F f) {
  if (name == "s32") return f.template operator()<int32_t>();
  if (name == "u32" || name == "b32") return f.template operator()<uint32_t>();
  if (name == "s64") return f.template operator()<int64_t>();
  if (name == "u64" || name == "b64") return f.template operator()<uint64_t>();
  if (name == "s16") return f.template operator()<int16_t>();
  if (name == "u16" || name == "b16") return f.template operator()<uint16_t>();
  if (name == "s8") return f.template operator()<int8_t>();
  if (name == "u8" || name == "b8") return f.template operator()<uint8_t>();
  if (name == "f32") return f.template operator()<float>();
  if (name == "f64") return f.template operator()<double>();
  if (name == "pred") return f.template operator()<bool>();
  return nullptr;
}

}  // namespace ptx
