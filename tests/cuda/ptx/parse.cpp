// The text of a PTX module to programs.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <unordered_map>

#include "operations.h"
#include "program.h"
#include "traffic.h"

namespace ptx {

bool Instruction::has(const char* part) const {
  for (const std::string& each : name) {
    if (each == part) return true;
  }
  return false;
}

std::string Instruction::full_name() const {
  std::string all;
  for (const std::string& each : name) all += (all.empty() ? "" : ".") + each;
  return all;
}

namespace {

using Tokens = std::vector<std::string>;

// Words (with dots and double colons inside), single marks, and strings in quotes.
Tokens tokens_of(const std::string& text) {
  Tokens tokens;
  const auto in_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || strchr("_$%.", c); };
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (std::isspace(static_cast<unsigned char>(c))) {
      ++i;
    } else if (text.compare(i, 2, "//") == 0) {
      i = text.find('\n', i);
    } else if (text.compare(i, 2, "/*") == 0) {
      i = text.find("*/", i) + 2;
    } else if (c == '"') {
      i = text.find('"', i + 1) + 1;
      tokens.push_back("\"");
    } else if (in_word(c)) {
      size_t end = i;
      while (end < text.size() && (in_word(text[end]) || text.compare(end, 2, "::") == 0)) {
        end += text[end] == ':' ? 2 : 1;
      }
      tokens.push_back(text.substr(i, end - i));
      i = end;
    } else {
      tokens.push_back(std::string(1, c));
      ++i;
    }
    if (i == std::string::npos) break;
  }
  return tokens;
}

int size_of_type(const std::string& type) {
  if (type == ".pred") return 1;
  return std::atoi(type.c_str() + 2) / 8;
}

int round_up(int x, int step) { return (x + step - 1) / step * step; }

struct Parser {
  Tokens tokens;
  size_t at = 0;
  std::map<std::string, Program> programs;
  std::unordered_map<std::string, int> module_shared;  // dynamic shared memory and its alignment

  explicit Parser(const std::string& text) : tokens(tokens_of(text)) {}

  const std::string& next() { return tokens.at(at++); }
  const std::string& peek() const { return tokens.at(at); }
  bool take(const char* token) {
    if (peek() != token) return false;
    ++at;
    return true;
  }
  void expect(const char* token) {
    if (!take(token)) fail("wanted '" + std::string(token) + "'");
  }
  [[noreturn]] void fail(const std::string& why) const {
    std::string near;
    for (size_t i = at < 8 ? 0 : at - 8; i < at + 8 && i < tokens.size(); ++i) near += tokens[i] + " ";
    throw std::runtime_error("PTX: " + why + " near: " + near);
  }
  void skip_past(const char* token) {
    while (next() != token) {
    }
  }

  void module() {
    while (at < tokens.size()) {
      const std::string word = next();
      if (word == ".entry") {
        kernel();
      } else if (word == ".extern") {
        declare_dynamic_shared();
      } else if (word == ".global") {
        skip_past(";");
      }
    }
  }

  void declare_dynamic_shared() {
    if (!take(".shared")) fail("an external symbol that is not shared memory");
    int align = 1;
    if (take(".align")) align = std::atoi(next().c_str());
    ++at;  // the type of an element
    module_shared[next()] = align;
    skip_past(";");
  }

  // ---- one kernel ----

  struct Scope {
    std::unordered_map<std::string, int> registers;
    std::unordered_map<std::string, int> labels;
    int parent;
  };
  struct Jump {
    int instruction, argument, scope;
    std::string label;
  };
  Program program;
  std::vector<Scope> scopes;
  int scope = -1;
  std::vector<std::string> prefixes;  // of `.reg .b32 %r<9>`
  std::vector<Jump> jumps;
  std::unordered_map<std::string, int> parameters, shared, constants;

  void kernel() {
    program = {};
    scopes.clear(), prefixes.clear(), jumps.clear(), parameters.clear(), shared.clear(), constants.clear();
    program.name = next();
    if (take("(")) {
      while (!take(")")) parameter();
    }
    while (peek() != "{") {
      if (next() == ".maxntid") {
        program.threads_per_block = std::atoi(next().c_str());
        while (take(",")) program.threads_per_block *= std::atoi(next().c_str());
      }
    }
    ++at;
    scope = open_scope(-1);
    while (scope >= 0) statement();
    for (const Jump& each : jumps) {
      program.code[each.instruction].arguments[each.argument].target = label(each);
    }
    programs[program.name] = std::move(program);
  }

  void parameter() {
    expect(".param");
    int align = 0;
    std::string type;
    while (peek()[0] == '.') {
      const std::string word = next();
      if (word == ".align") align = std::atoi(next().c_str());
      else if (type.empty()) type = word;
    }
    const std::string name = next();
    const int element = size_of_type(type), bytes = element * elements();
    take(",");
    const int place = append(&program.parameters_end, align ? align : element, bytes);
    parameters[name] = place;
    program.parameter_places.push_back(place);
    program.parameter_bytes.push_back(bytes);
  }

  // The product of the sizes in brackets.
  int elements() {
    int count = 1;
    while (take("[")) {
      count *= std::atoi(next().c_str());
      expect("]");
    }
    return count;
  }

  static int append(int* end, int align, int bytes) {
    const int place = round_up(*end, align);
    *end = place + bytes;
    return place;
  }

  int open_scope(int parent) {
    scopes.push_back({{}, {}, parent});
    return static_cast<int>(scopes.size()) - 1;
  }

  int label(const Jump& jump) const {
    for (int s = jump.scope; s >= 0; s = scopes[s].parent) {
      const auto found = scopes[s].labels.find(jump.label);
      if (found != scopes[s].labels.end()) return found->second;
    }
    throw std::runtime_error("PTX: no label " + jump.label);
  }

  void statement() {
    if (take("{")) {
      scope = open_scope(scope);
    } else if (take("}")) {
      scope = scopes[scope].parent;
    } else if (take(";")) {
    } else if (take(".reg")) {
      registers();
    } else if (take(".shared")) {
      static_shared();
    } else if (take(".pragma")) {
      skip_past(";");
    } else if (peek()[0] == '.') {
      fail("a directive that is not known");
    } else if (tokens.at(at + 1) == ":") {
      scopes[scope].labels[next()] = static_cast<int>(program.code.size());
      ++at;
    } else {
      instruction();
    }
  }

  void registers() {
    ++at;  // their type: every slot has room for 64 bits
    do {
      const std::string name = next();
      if (take("<")) {
        prefixes.push_back(name);
        skip_past(">");
      } else {
        scopes[scope].registers[name] = program.slots++;
      }
    } while (take(","));
    expect(";");
  }

  void static_shared() {
    int align = 1;
    if (take(".align")) align = std::atoi(next().c_str());
    const int element = size_of_type(next());
    const std::string name = next();
    shared[name] = append(&program.static_shared, align, element * elements());
    expect(";");
  }

  void instruction() {
    Instruction made;
    const size_t first = at;
    if (take("@")) {
      made.guard_negated = take("!");
      made.guard = find_register(next());
      if (made.guard < 0) fail("a guard that is no register");
    }
    const std::string name = next();
    for (size_t begin = 0; begin <= name.size();) {
      size_t end = name.find('.', begin);
      if (end == std::string::npos) end = name.size();
      made.name.push_back(name.substr(begin, end - begin));
      begin = end + 1;
    }
    while (!take(";")) {
      argument(made);
      take(",");
    }
    for (size_t i = first; i + 1 < at; ++i) made.text += tokens[i] + " ";
    made.collective = made.has("sync") || made.has("aligned") || made.name[0] == "bar";
    made.run = handler_of(made);
    made.slots_taken = slots_of(made);
    const bool partial = made.name[0] == "bar" && !made.has("warp") && made.arguments.size() > 1;
    if (partial || made.name[0] == "mbarrier" || made.has("cluster")) program.plain_barriers = false;
    if (!made.run) throw std::runtime_error("PTX: an instruction that is not known: " + made.text);
    program.code.push_back(std::move(made));
  }

  void argument(Instruction& to) {
    Argument made;
    if (take("{")) {
      made.kind = Argument::Kind::vector;
      while (!take("}")) {
        made.slots.push_back(value());
        take(",");
      }
    } else if (take("[")) {
      made.kind = Argument::Kind::memory;
      made.slots.push_back(value());
      if (take("+")) {
        const bool negative = take("-");
        made.offset = std::atoll(next().c_str()) * (negative ? -1 : 1);
      }
      if (take(",")) {
        expect("{");
        while (!take("}")) {
          made.slots.push_back(value());
          take(",");
        }
      }
      expect("]");
    } else if (to.name[0] == "bra") {
      made.kind = Argument::Kind::label;
      jumps.push_back({static_cast<int>(program.code.size()), static_cast<int>(to.arguments.size()), scope, next()});
    } else if (take("_")) {
      made.kind = Argument::Kind::unused;
      if (take("|")) made.kind = Argument::Kind::value, made.slots = {program.slots++, value()};
    } else {
      made.kind = Argument::Kind::value;
      made.slots.push_back(value());
      if (take("|")) made.slots.push_back(value());
    }
    to.arguments.push_back(std::move(made));
  }

  // The slot of a register, of a number or of an address.
  int value() {
    const bool negative = take("-");
    const std::string word = next();
    const int found = negative ? -1 : find_register(word);
    return found >= 0 ? found : constant(word, negative);
  }

  int find_register(const std::string& word) {
    for (int s = scope; s >= 0; s = scopes[s].parent) {
      const auto found = scopes[s].registers.find(word);
      if (found != scopes[s].registers.end()) return found->second;
    }
    const size_t digits = word.find_last_not_of("0123456789") + 1;
    for (const std::string& prefix : prefixes) {
      if (digits < word.size() && word.compare(0, digits, prefix) == 0 && prefix.size() == digits) {
        return scopes[0].registers[word] = program.slots++;
      }
    }
    return -1;
  }

  int constant(const std::string& word, bool negative) {
    const auto known = constants.find((negative ? "-" : "") + word);
    if (known != constants.end()) return known->second;
    Constant made{program.slots++, Constant::Kind::number, 0, ""};
    if (word[0] == '%') {
      made.kind = Constant::Kind::special, made.special = word;
    } else if (std::isdigit(static_cast<unsigned char>(word[0]))) {
      // Floats are their bits: 0f3F800000, 0d3FF0000000000000.
      const bool bits = word.size() > 2 && word[0] == '0' && strchr("fFdD", word[1]);
      made.number = std::strtoull(word.c_str() + (bits ? 2 : 0), nullptr, bits ? 16 : 0);
      if (negative) made.number = -made.number;
    } else if (parameters.count(word)) {
      made.kind = Constant::Kind::parameters, made.number = parameters[word];
    } else if (shared.count(word)) {
      made.kind = Constant::Kind::shared, made.number = shared[word];
    } else if (module_shared.count(word)) {
      // Dynamic shared memory lies behind the static one, which is declared before the code.
      made.kind = Constant::Kind::shared,
      made.number = program.dynamic_begin = round_up(program.static_shared, module_shared[word]);
    } else {
      fail("a name that is not known: " + word);
    }
    program.constants.push_back(made);
    return constants[(negative ? "-" : "") + word] = made.slot;
  }
};

}  // namespace

std::map<std::string, Program> parse(const std::string& text) {
  Parser parser(text);
  parser.module();
  return std::move(parser.programs);
}

}  // namespace ptx
