// bra, ret, exit, trap and the two functions of the device runtime that kernels call [PTX
// ISA 9.7.12].

#include <cstdio>
#include <cstring>

#include "lanes.h"

namespace ptxsim {
namespace {

Flow branch(Warp& w, const Inst& inst, Mask active) {
  w.branch(active, inst.target);
  return Flow::kMoved;
}

void decode_bra(Decoder& d) {
  d.take("uni");
  d.inst.cls = Class::kControl;
  d.inst.execute = branch;
  d.results(0);
  d.finish({1});
}

Flow leave(Warp& w, const Inst&, Mask active) {
  w.exit(active);
  return Flow::kMoved;
}

void decode_exit(Decoder& d) {
  d.take("uni");
  d.inst.cls = Class::kControl;
  d.inst.execute = leave;
  d.finish({0});
}

Flow trap(Warp&, const Inst&, Mask) { throw Fault("trap", "trap"); }

void decode_trap(Decoder& d) {
  d.inst.cls = Class::kControl;
  d.inst.execute = trap;
  d.finish({0});
}

// A parameter of the call: they lie one after another in the caller's local memory.
template <class T>
T parameter(Warp& w, const Inst& inst, int index, int lane) {
  bool defined;
  T value;
  std::memcpy(&value,
              w.load(Space::kLocal, lane, inst.arg(2, index).value, sizeof(T), false, &defined),
              sizeof(T));
  return value;
}

std::string string_at(Warp& w, uint64_t at) {
  std::string text;
  for (const uint8_t* p; (p = w.cta.machine.memory.peek(at, 1)) != nullptr && *p != 0; ++at) {
    text += static_cast<char>(*p);
  }
  return text;
}

// printf of one lane: the arguments lie in a buffer, promoted as in C and naturally aligned.
std::string formatted(Warp& w, int lane, const std::string& format, uint64_t buffer) {
  std::string out;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    size_t end = i + 1;
    while (end < format.size() && std::strchr("diouxXeEfFgGaAcsp%", format[end]) == nullptr) ++end;
    if (end == format.size()) break;
    std::string spec = format.substr(i, end - i + 1);
    const char conversion = format[end];
    i = end;
    if (conversion == '%') {
      out += '%';
      continue;
    }
    const bool wide =
        spec.find('l') != std::string::npos || std::strchr("eEfFgGaAsp", conversion) != nullptr;
    const uint64_t size = wide ? 8 : 4;
    buffer = (buffer + size - 1) / size * size;
    bool defined;
    uint64_t bits = 0;
    std::memcpy(&bits,
                w.load(Space::kGeneric, lane, buffer, static_cast<uint32_t>(size), false, &defined),
                size);
    buffer += size;
    char text[128];
    if (conversion == 's') {
      out += string_at(w, bits);
      continue;
    }
    if (std::strchr("eEfFgGaA", conversion) != nullptr) {
      std::snprintf(text, sizeof text, spec.c_str(), from_bits<double>(bits));
    } else if (wide) {
      std::snprintf(text, sizeof text, spec.c_str(), bits);
    } else {
      std::snprintf(text, sizeof text, spec.c_str(), static_cast<uint32_t>(bits));
    }
    out += text;
  }
  return out;
}

Flow print(Warp& w, const Inst& inst, Mask active) {
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    const auto format = parameter<uint64_t>(w, inst, 0, l);
    w.cta.machine.printed +=
        formatted(w, l, string_at(w, format), parameter<uint64_t>(w, inst, 1, l));
  }
  return Flow::kNext;
}

Flow assert_failed(Warp& w, const Inst& inst, Mask active) {
  const int l = __builtin_ctz(active);
  throw Fault("assert", string_at(w, parameter<uint64_t>(w, inst, 0, l)) + ", " +
                            string_at(w, parameter<uint64_t>(w, inst, 1, l)) + ":" +
                            std::to_string(parameter<uint32_t>(w, inst, 2, l)));
}

void decode_call(Decoder& d) {
  d.take("uni");
  d.inst.cls = Class::kControl;
  d.results(0);
  // call (result), name, (arguments)   or   call name, (arguments)
  for (const Operand& operand : d.text.operands) {
    if (operand.kind != Operand::Kind::kFunction) continue;
    if (operand.name == "vprintf") d.inst.execute = print;
    if (operand.name == "__assertfail") d.inst.execute = assert_failed;
    if (d.inst.execute == nullptr) d.fail("no function of this name can be called");
  }
  if (d.inst.operands.size() == 2) d.inst.operands.insert(d.inst.operands.begin(), Slot{});
  d.finish({2, 3});
}

}  // namespace

void add_control_ops() {
  add_op("bra", decode_bra);
  add_op("ret", decode_exit);  // an entry has no caller
  add_op("exit", decode_exit);
  add_op("trap", decode_trap);
  add_op("call", decode_call);
}

}  // namespace ptxsim
