// The tree of text.h as Python dicts and lists with the same names, for tests and for looking at
// it.
#pragma once

#include <pybind11/pybind11.h>

#include "text.h"

namespace ptxsim {

inline const char* name_of(Space space) {
  switch (space) {
    case Space::kGeneric:
      return "generic";
    case Space::kParam:
      return "param";
    case Space::kConst:
      return "const";
    case Space::kGlobal:
      return "global";
    case Space::kShared:
      return "shared";
    case Space::kLocal:
      return "local";
  }
  return "";
}

inline const char* name_of(Operand::Kind kind) {
  switch (kind) {
    case Operand::Kind::kNone:
      return "none";
    case Operand::Kind::kRegister:
      return "register";
    case Operand::Kind::kSpecial:
      return "special";
    case Operand::Kind::kImmediate:
      return "immediate";
    case Operand::Kind::kVector:
      return "vector";
    case Operand::Kind::kAddress:
      return "address";
    case Operand::Kind::kVariable:
      return "variable";
    case Operand::Kind::kLabel:
      return "label";
    case Operand::Kind::kFunction:
      return "function";
    case Operand::Kind::kList:
      return "list";
  }
  return "";
}

inline pybind11::int_ to_python(int32_t value) { return value; }
inline pybind11::int_ to_python(uint32_t value) { return value; }
inline pybind11::str to_python(const std::string& text) { return text; }

template <typename Items>
pybind11::list list_to_python(const Items& items) {
  pybind11::list result;
  for (const auto& item : items) result.append(to_python(item));
  return result;
}

inline pybind11::dict to_python(const Register& one) {
  using namespace pybind11::literals;
  return pybind11::dict("name"_a = one.name, "kind"_a = std::string(1, one.type.kind),
                        "bits"_a = one.type.bits);
}

inline pybind11::dict to_python(const Variable& one) {
  using namespace pybind11::literals;
  const pybind11::bytes init(reinterpret_cast<const char*>(one.init.data()), one.init.size());
  return pybind11::dict("name"_a = one.name, "space"_a = name_of(one.space), "align"_a = one.align,
                        "bytes"_a = one.bytes, "external"_a = one.external, "init"_a = init);
}

inline pybind11::dict to_python(const Operand& one) {
  using namespace pybind11::literals;
  return pybind11::dict("kind"_a = name_of(one.kind), "negated"_a = one.negated, "reg"_a = one.reg,
                        "pair"_a = one.pair, "variable"_a = one.variable, "value"_a = one.value,
                        "is_float"_a = one.is_float, "float_bits"_a = one.float_bits,
                        "target"_a = one.target, "name"_a = one.name,
                        "items"_a = list_to_python(one.items));
}

inline pybind11::dict to_python(const Instruction& one) {
  using namespace pybind11::literals;
  return pybind11::dict("opcode"_a = one.opcode, "modifiers"_a = list_to_python(one.modifiers),
                        "operands"_a = list_to_python(one.operands), "guard"_a = one.guard,
                        "guard_negated"_a = one.guard_negated, "line"_a = one.line,
                        "text"_a = one.text, "source_file"_a = one.source_file,
                        "source_line"_a = one.source_line);
}

inline pybind11::dict to_python(const Function& one) {
  using namespace pybind11::literals;
  return pybind11::dict(
      "name"_a = one.name, "is_entry"_a = one.is_entry, "is_declaration"_a = one.is_declaration,
      "params"_a = list_to_python(one.params), "registers"_a = list_to_python(one.registers),
      "instructions"_a = list_to_python(one.instructions),
      "maxntid"_a = list_to_python(one.maxntid), "reqcluster"_a = list_to_python(one.reqcluster));
}

inline pybind11::dict to_python(const Module& one) {
  using namespace pybind11::literals;
  pybind11::dict files;
  for (const auto& [number, name] : one.files) files[to_python(number)] = name;
  return pybind11::dict("version"_a = one.version, "target"_a = one.target,
                        "variables"_a = list_to_python(one.variables),
                        "functions"_a = list_to_python(one.functions), "files"_a = files);
}

}  // namespace ptxsim
