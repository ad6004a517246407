// A function after decoding: dense instructions that carry a pointer to what executes them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text.h"

namespace ptxsim {

class Warp;
struct Inst;
using Mask = uint32_t;  // one bit per lane
constexpr int kLanes = 32;
constexpr Mask kAllLanes = 0xffffffffu;

// What becomes of the group of lanes that executed an instruction.
enum class Flow : uint8_t {
  kNext,   // go on behind it
  kYield,  // go on behind it, but let others run first (a failed try_wait, nanosleep)
  kMoved,  // the handler has set the program counters itself (branches, exit)
  kWait,   // stay: blocked until somebody else moves the group on (bar.sync)
};

// Executes for the lanes of `active`; never called with none.
using Execute = Flow (*)(Warp&, const Inst&, Mask active);

// Who must arrive before an instruction executes.
enum class Gather : uint8_t {
  kNone,
  kMembers,  // the lanes of the member mask, operand `members`
  kWarp,     // every lane of the warp that has not exited (.aligned)
};

// Instruction classes of the counters.
enum class Class : uint8_t {
  kInteger,
  kFloat,
  kHalf,
  kDouble,
  kSpecial /* ex2, rcp, sqrt, sin: the MUFU pipe */,
  kConvert,
  kMove,
  kPredicate /* setp, selp */,
  kControl,
  kGlobalLoad,
  kGlobalStore,
  kSharedLoad,
  kSharedStore,
  kLocal,
  kParam,
  kAtomic,
  kWarpOp,
  kBarrier,
  kMatrix,
  kMatrixLoad,
  kAsyncCopy,
  kOther,
  kCount
};

enum class Special : uint8_t {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneid,
  kWarpid,
  kNwarpid,
  kSmid,
  kClusterCtaRank,
  kClusterNctaRank,
  kClusterIdX,
  kLaneMaskEq,
  kLaneMaskLt,
  kLaneMaskLe,
  kLaneMaskGt,
  kLaneMaskGe,
  kClock,
  kGlobalTimer,
  kDynamicSharedBytes,
  kTotalSharedBytes,
  kZero /* ranks and ids of launches without clusters */
};

// One scalar operand: 32 values, one per lane. A register's value is the PTX value zero-extended to
// 64 bits, whatever its type; predicates are 0 or 1.
struct Arg {
  enum class Kind : uint8_t { kNone, kRegister, kImmediate, kSpecial };
  Kind kind = Kind::kNone;
  bool negated = false;  // !p
  int32_t reg = -1;      // kRegister
  uint64_t value = 0;    // kImmediate
  Special special = Special::kZero;
  uint8_t bits = 0;  // width of the register's declared type; 0 for immediates
};

// Operand i of the text: args[begin] .. args[begin + count). An address is one arg (its base, or an
// immediate) and `offset`; its tensor coordinates, if any, are the args after the first.
struct Slot {
  uint16_t begin = 0;
  uint16_t count = 0;
  int32_t pair = -1;              // register after `|`
  int64_t offset = 0;             // of an address
  Space space = Space::kGeneric;  // of an address or variable whose base is a variable
};

struct Inst {
  Execute execute = nullptr;
  Class cls = Class::kOther;
  Gather gather = Gather::kNone;
  uint8_t members = 0;  // kMembers: index of the operand that holds the member mask
  int32_t guard = -1;
  bool guard_negated = false;
  bool sets_defined = false;  // the handler says itself which results are defined (loads)
  std::vector<Slot> operands;
  std::vector<Arg> args;
  std::vector<int32_t> written;  // registers, for the propagation of undefined values
  std::vector<int32_t> read;
  // What the decoder made of the modifiers; each family of instructions has its own use of them.
  Type type, type2;
  uint8_t vector = 1;  // .v2, .v4, .v8
  Space space = Space::kGeneric;
  uint32_t mode[6] = {};
  int32_t target = -1;          // branch
  std::shared_ptr<void> extra;  // anything larger
  const Instruction* text = nullptr;

  const Arg& arg(int operand, int item = 0) const { return args[operands[operand].begin + item]; }
  int count(int operand) const { return operands[operand].count; }
};

// One instruction being decoded: modifiers are taken one by one, in any order, and what nobody took
// is an error, so no modifier is ever ignored by accident.
class Decoder {
 public:
  Decoder(const Instruction& text, Inst& inst)
      : text(text), inst(inst), taken_(text.modifiers.size()) {}

  const Instruction& text;
  Inst& inst;

  bool take(std::string_view modifier);  // takes it if it is there
  // Takes whichever of the words is there and returns its index, else -1.
  int choose(std::initializer_list<std::string_view> words);
  bool has(std::string_view modifier) const;
  // Takes the first type modifier left (.u32, .f16x2, .pred, .e4m3 ...); throws if there is none.
  Type type();
  bool has_type() const;
  // Takes the first modifier left, whatever it is ("m16n8k16"); "" if there is none.
  std::string next();
  // Throws unless all modifiers were taken and the number of operands is one of `counts`.
  void finish(std::initializer_list<int> counts);
  // The first `n` operands are results (the default is 1). Call it before finish() if it is not 1.
  void results(int n) { results_ = n; }
  [[noreturn]] void fail(const std::string& why) const;

  int results_ = 1;

 private:
  std::vector<bool> taken_;
};

// "f16" -> {'h', 16}; kind 0 if it is not a type. f32x2 is {'w', 64}. Narrow formats have kinds of
// their own: e4m3 'E', e5m2 'F', e2m1 'M', ue8m0 'U', ue4m3 'V', tf32 'T' (bits: 8, 8, 4, 8, 8, 32;
// x2 and x4 double and quadruple them).
Type type_of(std::string_view modifier);

using Decode = void (*)(Decoder&);
// The instruction table: one decoder per opcode. Each ops_*.cpp file adds its own.
void add_integer_ops();
void add_float_ops();
void add_convert_ops();
void add_memory_ops();
void add_multimem_ops();
void add_control_ops();
void add_warp_ops();
void add_barrier_ops();
void add_mbarrier_ops();
void add_copy_ops();
void add_matrix_ops();
void add_wgmma_ops();
void add_tcgen05_ops();
void add_op(const char* opcode, Decode decode);

// Where the variables of a function lie.
struct Layout {
  std::vector<uint64_t> address;  // per Module::variables: offset in its space
  uint32_t static_shared = 0;     // bytes, from kSharedBase on
  uint32_t dynamic_shared_align = 16;
  uint32_t local_bytes = 0;  // per lane
  uint32_t param_bytes = 0;
};

struct Program {
  const Module* module = nullptr;
  const Function* function = nullptr;
  std::vector<Inst> insts;
  Layout layout;
  std::vector<uint32_t> param_offset, param_size;
  int32_t registers = 0;
  // Contents of the .global and .const variables, by index into Module::variables.
  std::map<int32_t, std::vector<uint8_t>> data;
};

Program decode(const Module& module, const Function& function);

}  // namespace ptxsim
