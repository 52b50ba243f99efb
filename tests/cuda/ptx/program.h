// A PTX module as the interpreter holds it: names are numbers, operands are slots of a warp's register file.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace ptx {

struct Warp;
struct Instruction;

// What an instruction says of itself: done; done, and the warp should give way; or not yet, ask again later.
enum class Step { done, pause, wait };

// Runs an instruction for the lanes of the mask.
using Handler = std::function<Step(Warp&, const Instruction&, uint32_t lanes)>;

struct Argument {
  enum class Kind { value, vector, memory, label, unused };
  Kind kind = Kind::unused;
  std::vector<int> slots;  // one of a value, two of `value|predicate`, of memory the address and the coordinates
  int64_t offset = 0;      // of memory, bytes
  int target = -1;         // of a label, an index of Program::code
};

struct Instruction {
  std::vector<std::string> name;  // "add.s32" as {"add", "s32"}
  std::vector<Argument> arguments;
  int guard = -1;  // slot of a predicate, or none
  bool guard_negated = false;
  bool collective = false;  // all lanes of the warp run it together
  int slots_taken = 1;      // of a scheduler, see traffic.h
  std::string text;         // for messages
  Handler run;

  bool has(const char* part) const;
  int slot(int argument) const { return arguments.at(argument).slots.at(0); }
  std::string full_name() const;
};

// A slot whose value is set when a warp starts.
struct Constant {
  enum class Kind { number, shared, parameters, special };
  int slot;
  Kind kind;
  uint64_t number;      // the value, or bytes from the block's shared memory or the kernel's parameters
  std::string special;  // "%tid.x"
};

struct Program {  // a kernel
  std::string name;
  std::vector<int> parameter_bytes;  // each parameter's place and size
  std::vector<int> parameter_places;
  int parameters_end = 0;
  int threads_per_block = 0;  // .maxntid, or 0
  int static_shared = 0;   // bytes
  int dynamic_begin = 0;   // where dynamic shared memory begins, behind it
  int slots = 0;
  bool plain_barriers = true;  // all threads of a block wait together, and nothing else orders its warps
  std::vector<Constant> constants;
  std::vector<Instruction> code;
};

// Every kernel of a module's text, with the handlers of its instructions. Throws std::runtime_error with the text of
// what it does not know.
std::map<std::string, Program> parse(const std::string& text);

}  // namespace ptx
