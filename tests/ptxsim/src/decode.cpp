// From the tree to dense instructions, and the layout of a function's variables.

#include <algorithm>
#include <set>
#include <unordered_map>

#include "memory.h"
#include "program.h"

namespace ptxsim {
namespace {

std::unordered_map<std::string, Decode>& table() {
  static std::unordered_map<std::string, Decode> ops;
  if (ops.empty()) {
    ops.emplace("", nullptr);  // so that this happens once
    add_integer_ops();
    add_float_ops();
    add_convert_ops();
    add_memory_ops();
    add_multimem_ops();
    add_control_ops();
    add_warp_ops();
    add_barrier_ops();
    add_mbarrier_ops();
    add_copy_ops();
    add_matrix_ops();
    add_wgmma_ops();
    add_tcgen05_ops();
  }
  return ops;
}

const std::unordered_map<std::string, Special>& specials() {
  static const std::unordered_map<std::string, Special> names = {
      {"%tid.x", Special::kTidX},
      {"%tid.y", Special::kTidY},
      {"%tid.z", Special::kTidZ},
      {"%ntid.x", Special::kNtidX},
      {"%ntid.y", Special::kNtidY},
      {"%ntid.z", Special::kNtidZ},
      {"%ctaid.x", Special::kCtaidX},
      {"%ctaid.y", Special::kCtaidY},
      {"%ctaid.z", Special::kCtaidZ},
      {"%nctaid.x", Special::kNctaidX},
      {"%nctaid.y", Special::kNctaidY},
      {"%nctaid.z", Special::kNctaidZ},
      {"%laneid", Special::kLaneid},
      {"%warpid", Special::kWarpid},
      {"%nwarpid", Special::kNwarpid},
      {"%smid", Special::kZero},
      {"%cluster_ctarank", Special::kZero},
      {"%cluster_ctaid.x", Special::kZero},
      {"%cluster_nctarank", Special::kClusterNctaRank},
      {"%lanemask_eq", Special::kLaneMaskEq},
      {"%lanemask_lt", Special::kLaneMaskLt},
      {"%lanemask_le", Special::kLaneMaskLe},
      {"%lanemask_gt", Special::kLaneMaskGt},
      {"%lanemask_ge", Special::kLaneMaskGe},
      {"%clock", Special::kClock},
      {"%clock64", Special::kClock},
      {"%globaltimer", Special::kGlobalTimer},
      {"%dynamic_smem_size", Special::kDynamicSharedBytes},
      {"%total_smem_size", Special::kTotalSharedBytes},
  };
  return names;
}

// Lays the variables of one space out in order, from `start`; returns the end.
uint64_t place(const Module& module, const std::vector<int32_t>& which, uint64_t start,
               std::vector<uint64_t>& address) {
  for (int32_t v : which) {
    const Variable& var = module.variables[v];
    start = (start + var.align - 1) / var.align * var.align;
    address[v] = start;
    start += var.bytes;
  }
  return start;
}

void note_variables(const std::vector<Operand>& operands, std::set<int32_t>& used) {
  for (const Operand& operand : operands) {
    if (operand.variable >= 0) used.insert(operand.variable);
    note_variables(operand.items, used);
  }
}

Layout lay_out(const Module& module, const Function& function) {
  Layout layout;
  layout.address.assign(module.variables.size(), 0);
  // A module holds the variables of all its kernels.
  std::set<int32_t> used;
  for (const Instruction& text : function.instructions) note_variables(text.operands, used);
  std::vector<int32_t> statics, externs, locals, call_params;
  for (int32_t v : used) {
    const Variable& var = module.variables[v];
    const bool is_param =
        std::find(function.params.begin(), function.params.end(), v) != function.params.end();
    if (var.space == Space::kShared) (var.external ? externs : statics).push_back(v);
    if (var.space == Space::kLocal) locals.push_back(v);
    if (var.space == Space::kParam && !is_param) call_params.push_back(v);
  }
  layout.param_bytes = static_cast<uint32_t>(place(module, function.params, 0, layout.address));
  uint64_t end = place(module, statics, kSharedBase, layout.address);
  for (int32_t v : externs) {
    layout.dynamic_shared_align = std::max(layout.dynamic_shared_align, module.variables[v].align);
  }
  end = (end + layout.dynamic_shared_align - 1) / layout.dynamic_shared_align *
        layout.dynamic_shared_align;
  for (int32_t v : externs) layout.address[v] = end;  // all name the same memory
  layout.static_shared = static_cast<uint32_t>(end - kSharedBase);
  // The parameters of calls live with the locals, behind them.
  end = place(module, locals, 0, layout.address);
  layout.local_bytes =
      static_cast<uint32_t>(place(module, call_params, (end + 15) / 16 * 16, layout.address));
  return layout;
}

class FunctionDecoder {
 public:
  FunctionDecoder(const Module& module, const Function& function, Program& program)
      : module_(module), function_(function), program_(program) {}

  Inst decode(const Instruction& text) {
    Inst inst;
    inst.text = &text;
    inst.guard = text.guard;
    inst.guard_negated = text.guard_negated;
    for (const Operand& operand : text.operands) add(text, inst, operand);
    const auto found = table().find(text.opcode);
    Decoder d(text, inst);
    if (found == table().end() || found->second == nullptr) d.fail("unknown instruction");
    found->second(d);
    note_registers(inst, d.results_);
    return inst;
  }

 private:
  void add(const Instruction& text, Inst& inst, const Operand& operand) {
    Slot slot;
    slot.begin = static_cast<uint16_t>(inst.args.size());
    switch (operand.kind) {
      case Operand::Kind::kVector:
      case Operand::Kind::kList:
        for (const Operand& item : operand.items) inst.args.push_back(scalar(text, item));
        break;
      case Operand::Kind::kAddress:
        inst.args.push_back(base(operand, slot));
        for (const Operand& item : operand.items) inst.args.push_back(scalar(text, item));
        break;
      case Operand::Kind::kLabel:
        inst.target = operand.target;
        [[fallthrough]];
      case Operand::Kind::kFunction:
        inst.args.push_back({});
        break;
      default:
        if (operand.kind == Operand::Kind::kVariable) {
          slot.space = module_.variables[operand.variable].space;
        }
        inst.args.push_back(scalar(text, operand));
        slot.pair = operand.pair;
    }
    slot.count = static_cast<uint16_t>(inst.args.size() - slot.begin);
    inst.operands.push_back(slot);
  }

  Arg scalar(const Instruction& text, const Operand& operand) {
    Arg arg;
    arg.negated = operand.negated;
    switch (operand.kind) {
      case Operand::Kind::kNone:
        break;
      case Operand::Kind::kRegister:
        arg.kind = Arg::Kind::kRegister;
        arg.reg = operand.reg;
        arg.bits = function_.registers[operand.reg].type.bits;
        break;
      case Operand::Kind::kImmediate:
        arg.kind = Arg::Kind::kImmediate;
        arg.value = operand.value;
        break;
      case Operand::Kind::kVariable:
        arg.kind = Arg::Kind::kImmediate;
        arg.value = program_.layout.address[operand.variable] + operand.value;
        break;
      case Operand::Kind::kSpecial: {
        const auto found = specials().find(operand.name);
        if (found == specials().end()) {
          throw SyntaxError("line " + std::to_string(text.line) + ": unknown special register " +
                            operand.name + " in: " + text.text);
        }
        arg.kind = Arg::Kind::kSpecial;
        arg.special = found->second;
        break;
      }
      default:
        throw SyntaxError("line " + std::to_string(text.line) +
                          ": an operand of this kind cannot stand here: " + text.text);
    }
    return arg;
  }

  Arg base(const Operand& operand, Slot& slot) {
    Arg arg;
    if (operand.reg >= 0) {
      arg.kind = Arg::Kind::kRegister;
      arg.reg = operand.reg;
      arg.bits = function_.registers[operand.reg].type.bits;
      slot.offset = static_cast<int64_t>(operand.value);
    } else {
      arg.kind = Arg::Kind::kImmediate;
      arg.value = operand.value;
      if (operand.variable >= 0) {
        const Variable& var = module_.variables[operand.variable];
        arg.value += program_.layout.address[operand.variable];
        // Parameters of a call lie in the caller's local memory.
        const bool own = std::find(function_.params.begin(), function_.params.end(),
                                   operand.variable) != function_.params.end();
        slot.space = var.space == Space::kParam && !own ? Space::kLocal : var.space;
      }
    }
    return arg;
  }

  // Results first, then what is read; an address is always read.
  static void note_registers(Inst& inst, int results) {
    for (size_t i = 0; i < inst.operands.size(); ++i) {
      const Slot& slot = inst.operands[i];
      const bool is_address = inst.text->operands[i].kind == Operand::Kind::kAddress;
      const bool is_result = static_cast<int>(i) < results && !is_address;
      for (int j = 0; j < slot.count; ++j) {
        const int32_t reg = inst.args[slot.begin + j].reg;
        if (reg >= 0) (is_result ? inst.written : inst.read).push_back(reg);
      }
      if (slot.pair >= 0) inst.written.push_back(slot.pair);
    }
  }

  const Module& module_;
  const Function& function_;
  Program& program_;
};

}  // namespace

void add_op(const char* opcode, Decode decode) { table().emplace(opcode, decode); }

bool Decoder::take(std::string_view modifier) {
  for (size_t i = 0; i < taken_.size(); ++i) {
    if (!taken_[i] && text.modifiers[i] == modifier) return taken_[i] = true;
  }
  return false;
}

int Decoder::choose(std::initializer_list<std::string_view> words) {
  int index = 0;
  for (std::string_view word : words) {
    if (take(word)) return index;
    ++index;
  }
  return -1;
}

bool Decoder::has(std::string_view modifier) const {
  for (size_t i = 0; i < taken_.size(); ++i) {
    if (!taken_[i] && text.modifiers[i] == modifier) return true;
  }
  return false;
}

bool Decoder::has_type() const {
  for (size_t i = 0; i < taken_.size(); ++i) {
    if (!taken_[i] && type_of(text.modifiers[i]).kind != 0) return true;
  }
  return false;
}

Type Decoder::type() {
  for (size_t i = 0; i < taken_.size(); ++i) {
    const Type found = taken_[i] ? Type{} : type_of(text.modifiers[i]);
    if (found.kind != 0) {
      taken_[i] = true;
      return found;
    }
  }
  fail("no type");
}

std::string Decoder::next() {
  for (size_t i = 0; i < taken_.size(); ++i) {
    if (!taken_[i]) {
      taken_[i] = true;
      return text.modifiers[i];
    }
  }
  return "";
}

void Decoder::finish(std::initializer_list<int> counts) {
  for (size_t i = 0; i < taken_.size(); ++i) {
    if (!taken_[i]) fail("modifier ." + text.modifiers[i] + " is not supported here");
  }
  const int count = static_cast<int>(text.operands.size());
  if (std::find(counts.begin(), counts.end(), count) == counts.end()) {
    fail(std::to_string(count) + " operands are not supported");
  }
  if (inst.execute == nullptr) fail("this combination of modifiers is not supported");
}

void Decoder::fail(const std::string& why) const {
  throw SyntaxError("line " + std::to_string(text.line) + ": " + why + ": " + text.text);
}

Type type_of(std::string_view m) {
  static const std::unordered_map<std::string_view, Type> types = {
      {"pred", {'p', 1}},     {"b8", {'b', 8}},      {"b16", {'b', 16}},    {"b32", {'b', 32}},
      {"b64", {'b', 64}},     {"b128", {'b', 128}},  {"u8", {'u', 8}},      {"u16", {'u', 16}},
      {"u32", {'u', 32}},     {"u64", {'u', 64}},    {"s8", {'s', 8}},      {"s16", {'s', 16}},
      {"s32", {'s', 32}},     {"s64", {'s', 64}},    {"f16", {'h', 16}},    {"f16x2", {'h', 32}},
      {"bf16", {'B', 16}},    {"bf16x2", {'B', 32}}, {"f32", {'f', 32}},    {"f64", {'f', 64}},
      {"f32x2", {'w', 64}},   {"tf32", {'T', 32}},   {"e4m3", {'E', 8}},    {"e4m3x2", {'E', 16}},
      {"e4m3x4", {'E', 32}},  {"e5m2", {'F', 8}},    {"e5m2x2", {'F', 16}}, {"e5m2x4", {'F', 32}},
      {"e2m1", {'M', 4}},     {"e2m1x2", {'M', 8}},  {"e2m1x4", {'M', 16}}, {"ue8m0", {'U', 8}},
      {"ue8m0x2", {'U', 16}}, {"ue4m3", {'V', 8}},
  };
  const auto found = types.find(m);
  return found == types.end() ? Type{} : found->second;
}

Program decode(const Module& module, const Function& function) {
  Program program;
  program.module = &module;
  program.function = &function;
  program.layout = lay_out(module, function);
  program.registers = static_cast<int32_t>(function.registers.size());
  for (int32_t v : function.params) {
    program.param_offset.push_back(static_cast<uint32_t>(program.layout.address[v]));
    program.param_size.push_back(static_cast<uint32_t>(module.variables[v].bytes));
  }
  for (const Instruction& text : function.instructions) {
    std::set<int32_t> used;
    note_variables(text.operands, used);
    for (int32_t v : used) {
      const Variable& var = module.variables[v];
      if (var.space != Space::kGlobal && var.space != Space::kConst) continue;
      std::vector<uint8_t>& data = program.data[v];
      if (data.empty()) {
        data = var.init;
        data.resize(var.bytes + 16);
      }
      program.layout.address[v] = reinterpret_cast<uint64_t>(data.data());
    }
  }
  FunctionDecoder decoder(module, function, program);
  program.insts.reserve(function.instructions.size());
  for (const Instruction& text : function.instructions) {
    program.insts.push_back(decoder.decode(text));
  }
  const std::string last = function.instructions.empty() ? "" : function.instructions.back().opcode;
  if (last != "ret" && last != "exit" && last != "bra" && last != "trap") {
    throw SyntaxError("function " + function.name + " does not end in ret, exit, trap or bra");
  }
  return program;
}

}  // namespace ptxsim
