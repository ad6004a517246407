// multimem.st [PTX ISA 9.7.9.14]: one store to the memory of several devices.

#include "lanes.h"

namespace ptxsim {
namespace {

Flow store_to_all(Warp& w, const Inst& inst, Mask active) {
  uint64_t at[kLanes];
  w.addresses(inst, 0, active, at);
  const uint32_t element = inst.type.bits / 8u;
  const uint32_t bytes = element * inst.vector;
  for (int i = 0; i < inst.vector; ++i) w.require(inst.arg(1, i), active, "a stored value");
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    for (const uint64_t place : w.cta.machine.memory.behind_multicast(at[l], bytes)) {
      uint8_t* to = w.store(Space::kGlobal, l, place, bytes);
      for (int i = 0; i < inst.vector; ++i) {
        const uint64_t value = w.lane_value(inst.arg(1, i), l);
        std::memcpy(to + i * element, &value, element);
      }
    }
  }
  w.multicast |= active;
  // It leaves the device once; the switch repeats it.
  count_global(w.cta.machine.counters.store, active, at, bytes);
  return Flow::kNext;
}

void decode_multimem(Decoder& d) {
  Inst& inst = d.inst;
  if (!d.take("st")) d.fail("only multimem.st is known");
  const bool weak = d.take("weak");
  if (!weak && d.choose({"relaxed", "release"}) >= 0 &&
      d.choose({"cta", "cluster", "gpu", "sys"}) < 0) {
    d.fail("no scope");
  }
  if (!d.take("global")) d.fail("no space but global is known");
  inst.space = Space::kGlobal;
  const int vector = d.choose({"v2", "v4"});
  inst.vector = static_cast<uint8_t>(vector < 0 ? 1 : 2 << vector);
  inst.type = d.type();
  const bool is_float = inst.type.kind == 'f' && inst.type.bits == 32;
  const bool is_integer = inst.type.kind == 'b' || inst.type.kind == 'u' || inst.type.kind == 's';
  if (inst.vector > 1 ? !is_float : !is_float && !(is_integer && inst.type.bits >= 32)) {
    d.fail("no multicast store of this type");
  }
  inst.cls = Class::kGlobalStore;
  inst.execute = store_to_all;
  d.results(0);
  d.finish({2});
  if (inst.count(1) != inst.vector) d.fail("vector of another length");
}

}  // namespace

void add_multimem_ops() { add_op("multimem", decode_multimem); }

}  // namespace ptxsim
