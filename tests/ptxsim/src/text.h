// PTX text as a tree: what the parser hands to the decoder. Names are resolved: registers,
// variables and labels are indices, whatever the scope they were declared in.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptxsim {

// Text that is not PTX, or PTX that the simulator does not know. The message names line and text.
struct SyntaxError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Space : uint8_t { kGeneric, kParam, kConst, kGlobal, kShared, kLocal };

// .pred is {'p', 1}; .b32 {'b', 32}; .f16x2 {'h', 32}; .bf16 {'B', 16}; .bf16x2 {'B', 32}.
// Kinds: b, u, s, f, p as in PTX; 'h' f16 lanes, 'B' bf16 lanes (bits tells scalar or pair).
struct Type {
  char kind = 0;
  uint8_t bits = 0;
  bool operator==(const Type& o) const { return kind == o.kind && bits == o.bits; }
};

struct Register {
  std::string name;  // with its number: "%r12"
  Type type;
};

struct Variable {
  std::string name;
  Space space;
  uint32_t align = 1;
  uint64_t bytes = 0;  // 0 for `.extern .shared name[]`: the launch says
  bool external = false;
  std::vector<uint8_t> init;  // empty: none
};

struct Operand {
  enum class Kind : uint8_t {
    kNone,       // `_`
    kRegister,   // also `d|p` (second is `pair`) and `!p`
    kSpecial,    // %tid.x, %laneid, ...: `name`
    kImmediate,  // `value`
    kVector,     // `items`
    kAddress,    // [register|variable + value]; `items` are tensor coordinates: [a, {c0, c1}]
    kVariable,   // the address of `variable`
    kLabel,      // `target`
    kFunction,   // callee of a call: `name`
    kList,       // ( ... ) of a call: `items`
  };
  Kind kind = Kind::kNone;
  bool negated = false;    // !p
  int32_t reg = -1;        // index into Function::registers
  int32_t pair = -1;       // register after `|`; -2: `|_`
  int32_t variable = -1;   // index into Module::variables
  uint64_t value = 0;      // immediate bits (0f.. as 32 bits, 0d.. as 64), or address offset
  bool is_float = false;   // immediate was written as a floating-point number (0f, 0d or decimal)
  uint8_t float_bits = 0;  // 32 for 0f, 64 for 0d and decimals
  int32_t target = -1;     // index into Function::instructions
  std::string name;
  std::vector<Operand> items;
};

struct Instruction {
  int32_t guard = -1;  // predicate register
  bool guard_negated = false;
  std::string opcode;                  // "ld"
  std::vector<std::string> modifiers;  // "global", "nc", "v4", "u32"; "L2::128B" is one
  std::vector<Operand> operands;
  uint32_t line = 0;         // in the PTX text
  std::string text;          // as written, on one line
  int32_t source_file = -1;  // of the last .loc
  uint32_t source_line = 0;
};

struct Function {
  std::string name;
  bool is_entry = false;
  bool is_declaration = false;  // .extern .func
  std::vector<int32_t> params;  // variables of space kParam, in order
  std::vector<Register> registers;
  std::vector<Instruction> instructions;
  uint32_t maxntid[3] = {0, 0, 0};     // 0: not given; .maxntid and .reqntid
  uint32_t reqcluster[3] = {0, 0, 0};  // .reqnctapercluster
};

struct Module {
  std::string version;              // "9.0"
  std::string target;               // "sm_90a"
  std::vector<Variable> variables;  // of all scopes: module, function, block
  std::vector<Function> functions;
  std::map<int32_t, std::string> files;  // .file
};

// Throws SyntaxError with the line.
Module parse(const std::string& text);

}  // namespace ptxsim
