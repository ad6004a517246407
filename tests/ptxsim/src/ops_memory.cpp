// ld, st, atom, red, cvta, isspacep [PTX ISA 9.7.9].

#include <algorithm>

#include "lanes.h"

namespace ptxsim {
namespace {

// How a load or store is executed: what the decoder writes to Inst::mode.
enum Mode { kElementBytes, kSigned, kConstant, kSpins, kStrong = kSpins };

bool take_space(Decoder& d, Space& space) {
  if (d.take("global")) return space = Space::kGlobal, true;
  if (d.take("shared") || d.take("shared::cta")) return space = Space::kShared, true;
  if (d.take("local")) return space = Space::kLocal, true;
  if (d.take("const")) return space = Space::kConst, true;
  if (d.take("param") || d.take("param::entry") || d.take("param::func")) {
    return space = Space::kParam, true;
  }
  return false;
}

// Hints and scopes have no effect on values: one launch at a time runs here, in program order.
void take_hints(Decoder& d) {
  d.choose({"ca", "cg", "cs", "lu", "cv", "wb", "wt"});
  d.choose({"L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last",
            "L1::no_allocate"});
  d.choose({"L2::evict_normal", "L2::evict_first", "L2::evict_last"});
  d.choose({"L2::64B", "L2::128B", "L2::256B"});
  d.take("L2::cache_hint");
}

enum Semantics { kWeak = -1, kVolatile, kAcquire, kRelaxed, kRelease, kAcqRel, kMmio };

// All but weak loads may wait for another thread's write.
Semantics take_semantics(Decoder& d) {
  const int semantics = d.choose({"volatile", "acquire", "relaxed", "release", "acq_rel", "mmio"});
  d.take("weak");
  d.choose({"cta", "cluster", "gpu", "sys"});
  return static_cast<Semantics>(semantics);
}

Class class_of(Space space, bool load) {
  switch (space) {
    case Space::kShared:
      return load ? Class::kSharedLoad : Class::kSharedStore;
    case Space::kLocal:
      return Class::kLocal;
    case Space::kParam:
    case Space::kConst:
      return Class::kParam;
    default:
      return load ? Class::kGlobalLoad : Class::kGlobalStore;
  }
}

// The parameters of a call lie in local memory, whatever the instruction calls them.
Space space_of(const Inst& inst, int operand) {
  return inst.operands[operand].space == Space::kLocal ? Space::kLocal : inst.space;
}

// Counts a warp-wide access in whatever memory it goes to.
void note(Warp& w, Space space, Mask active, const uint64_t* at, uint32_t bytes, bool load) {
  Counters& c = w.cta.machine.counters;
  const uint64_t any = at[__builtin_ctz(active)];
  if (space == Space::kGeneric) {
    space = any >> 56 == kSharedWindow >> 56  ? Space::kShared
            : any >> 56 == kLocalWindow >> 56 ? Space::kLocal
            : any >> 56 == kParamWindow >> 56 ? Space::kParam
                                              : Space::kGlobal;
  }
  if (space == Space::kGlobal) {
    count_global(load ? c.load : c.store, active, at, bytes);
  } else if (space == Space::kShared) {
    uint32_t at32[kLanes];
    for (int l = 0; l < kLanes; ++l) at32[l] = static_cast<uint32_t>(at[l]);
    count_shared(load ? c.shared_load : c.shared_store, active, at32, bytes);
  } else if (space == Space::kLocal) {
    c.local_bytes += static_cast<uint64_t>(__builtin_popcount(active)) * bytes;
  }
}

int64_t sign_extended(uint64_t value, uint32_t bytes) {
  const int shift = 64 - 8 * static_cast<int>(bytes);
  return static_cast<int64_t>(value << shift) >> shift;
}

Flow load(Warp& w, const Inst& inst, Mask active) {
  uint64_t at[kLanes];
  w.addresses(inst, 1, active, at);
  const uint32_t element = inst.mode[kElementBytes];
  const uint32_t bytes = element * inst.vector;
  const Space space = space_of(inst, 1);
  Mask defined = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    bool is_defined;
    const uint8_t* from = w.load(space, l, at[l], bytes, inst.mode[kConstant] != 0, &is_defined);
    defined |= static_cast<Mask>(is_defined) << l;
    for (int i = 0; i < inst.vector; ++i) {
      const Arg& to = inst.arg(0, i);
      if (to.kind == Arg::Kind::kNone) continue;
      uint64_t value = 0;
      std::memcpy(&value, from + i * element, element);
      if (inst.mode[kSigned]) {  // extended to the register, of which the rest stays zero
        value = static_cast<uint64_t>(sign_extended(value, element));
        if (to.bits < 64) value &= (uint64_t{1} << to.bits) - 1;
      }
      w.reg[to.reg].v[l] = value;
    }
  }
  for (int i = 0; i < inst.vector; ++i) w.set_defined(inst.arg(0, i), active, defined);
  note(w, space, active, at, bytes, true);
  return inst.mode[kSpins] ? Flow::kYield : Flow::kNext;
}

Flow store(Warp& w, const Inst& inst, Mask active) {
  uint64_t at[kLanes];
  w.addresses(inst, 0, active, at);
  const uint32_t element = inst.mode[kElementBytes];
  const uint32_t bytes = element * inst.vector;
  const Space space = space_of(inst, 0);
  for (int i = 0; i < inst.vector; ++i) {
    const Arg& from = inst.arg(1, i);
    if (space == Space::kGlobal || space == Space::kGeneric) {
      w.require(from, active, "a stored value");
    } else if (space == Space::kShared && (active & ~w.defined_of(from)) != 0) {
      w.warn("undefined values are stored to shared memory, PTX line " +
             std::to_string(inst.text->line));
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    uint8_t* to =
        inst.mode[kStrong] ? w.atomic(space, l, at[l], bytes) : w.store(space, l, at[l], bytes);
    for (int i = 0; i < inst.vector; ++i) {
      const uint64_t value = w.lane_value(inst.arg(1, i), l);
      std::memcpy(to + i * element, &value, element);
    }
  }
  note(w, space, active, at, bytes, false);
  return Flow::kNext;
}

void decode_access(Decoder& d, bool is_load) {
  Inst& inst = d.inst;
  const Semantics semantics = take_semantics(d);
  take_space(d, inst.space);
  inst.mode[kConstant] = d.take("nc");
  take_hints(d);
  const int vector = d.choose({"v2", "v4", "v8"});
  inst.vector = static_cast<uint8_t>(vector < 0 ? 1 : 2 << vector);
  inst.type = d.type();
  inst.mode[kElementBytes] = inst.type.bits / 8u;
  inst.mode[kSigned] = inst.type.kind == 's';
  // A strong store is a signal to other blocks, as an atomic is, and like it no race.
  inst.mode[kSpins] =
      is_load ? semantics != kWeak
              : inst.space == Space::kGlobal && (semantics == kRelaxed || semantics == kRelease);
  if (inst.type.kind == 'p' || inst.mode[kElementBytes] == 0 || inst.type.bits == 128) {
    d.fail("no memory access of this type");
  }
  inst.cls = class_of(inst.space, is_load);
  if (is_load) {
    inst.execute = load;
    inst.sets_defined = true;
  } else {
    inst.execute = store;
    d.results(0);
  }
  // A third operand is a cache policy.
  d.finish({2, 3});
  if (inst.count(is_load ? 0 : 1) != inst.vector) d.fail("vector of another length");
}

void decode_ld(Decoder& d) { decode_access(d, true); }
void decode_st(Decoder& d) { decode_access(d, false); }

// --- atomics
// --------------------------------------------------------------------------------------

enum class Atomic : uint32_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kExch, kCas, kInc, kDec };

template <class T>
uint64_t combine(Atomic op, uint64_t old_bits, uint64_t a_bits, uint64_t b_bits) {
  const T old = from_bits<T>(old_bits), a = from_bits<T>(a_bits);
  switch (op) {
    case Atomic::kAdd:
      return to_bits<T>(static_cast<T>(old + a));
    case Atomic::kMin:
      return to_bits<T>(std::min(old, a));
    case Atomic::kMax:
      return to_bits<T>(std::max(old, a));
    case Atomic::kExch:
      return a_bits;
    case Atomic::kCas:
      return old_bits == a_bits ? b_bits : old_bits;
    default:
      break;
  }
  if constexpr (std::is_integral_v<T>) {
    switch (op) {
      case Atomic::kAnd:
        return to_bits<T>(old & a);
      case Atomic::kOr:
        return to_bits<T>(old | a);
      case Atomic::kXor:
        return to_bits<T>(old ^ a);
      case Atomic::kInc:
        return to_bits<T>(old >= a ? T{0} : static_cast<T>(old + 1));
      case Atomic::kDec:
        return to_bits<T>(old == 0 || old > a ? a : static_cast<T>(old - 1));
      default:
        break;
    }
  }
  return old_bits;
}

uint64_t combine(const Inst& inst, uint64_t old, uint64_t a, uint64_t b) {
  const auto op = static_cast<Atomic>(inst.mode[0]);
  const bool wide = inst.type.bits == 64;
  switch (inst.type.kind) {
    case 's':
      return wide ? combine<int64_t>(op, old, a, b) : combine<int32_t>(op, old, a, b);
    case 'f':
      return wide ? combine<double>(op, old, a, b) : combine<float>(op, old, a, b);
    default:
      return wide ? combine<uint64_t>(op, old, a, b) : combine<uint32_t>(op, old, a, b);
  }
}

Flow atomic(Warp& w, const Inst& inst, Mask active) {
  const int address = static_cast<int>(inst.mode[1]);  // 1 for atom, 0 for red
  uint64_t at[kLanes];
  w.addresses(inst, address, active, at);
  const uint32_t bytes = inst.type.bits / 8u;
  const bool has_b = static_cast<Atomic>(inst.mode[0]) == Atomic::kCas;
  w.require(inst.arg(address + 1), active, "an operand of an atomic");
  uint64_t result[kLanes] = {};
  for (int l = 0; l < kLanes; ++l) {
    if (!(active >> l & 1)) continue;
    uint8_t* place = w.atomic(inst.space, l, at[l], bytes);
    uint64_t old = 0;
    std::memcpy(&old, place, bytes);
    const uint64_t a = w.lane_value(inst.arg(address + 1), l);
    const uint64_t b = has_b ? w.lane_value(inst.arg(address + 2), l) : 0;
    const uint64_t value = combine(inst, old, a, b);
    std::memcpy(place, &value, bytes);
    result[l] = old;
  }
  if (address == 1) {
    w.write(inst.arg(0), active, result);
    w.set_defined(inst.arg(0), active, active);
  }
  note(w, inst.space, active, at, bytes, true);
  note(w, inst.space, active, at, bytes, false);
  // What spins on an atomic must let others run.
  return has_b ? Flow::kYield : Flow::kNext;
}

void decode_atomic(Decoder& d, bool returns) {
  Inst& inst = d.inst;
  take_semantics(d);
  take_space(d, inst.space);
  take_hints(d);
  const int op = d.choose({"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"});
  if (op < 0) d.fail("unknown atomic operation");
  inst.type = d.type();
  const bool plain = inst.type.bits == 32 || inst.type.bits == 64;
  if (!plain || inst.type.kind == 'h' || inst.type.kind == 'B' || inst.type.kind == 'w') {
    d.fail("no atomics of this type");
  }
  const auto kind = static_cast<Atomic>(op);
  if (inst.type.kind == 'f' && kind != Atomic::kAdd && kind != Atomic::kExch) {
    d.fail("no floating-point atomic of this kind");
  }
  inst.mode[0] = static_cast<uint32_t>(op);
  inst.mode[1] = returns;
  inst.cls = Class::kAtomic;
  inst.execute = atomic;
  inst.sets_defined = true;
  d.results(returns ? 1 : 0);
  const int operands = 2 + returns + (kind == Atomic::kCas);
  d.finish({operands, operands + 1});  // one more: a cache policy
}

void decode_atom(Decoder& d) { decode_atomic(d, true); }
void decode_red(Decoder& d) { decode_atomic(d, false); }

// --- address spaces
// ---------------------------------------------------------------------------------

uint64_t window_of(Space space) {
  switch (space) {
    case Space::kShared:
      return kSharedWindow;
    case Space::kLocal:
      return kLocalWindow;
    case Space::kParam:
      return kParamWindow;
    default:
      return 0;  // global and constant addresses are generic ones
  }
}

Flow convert_address(Warp& w, const Inst& inst, Mask active) {
  Lanes room, out;
  const uint64_t* from = w.read(inst.arg(1), room);
  const auto offset = static_cast<uint64_t>(inst.operands[1].offset);
  const uint64_t window = window_of(inst.space);
  for (int l = 0; l < kLanes; ++l) {
    out.v[l] = inst.mode[0] ? from[l] + offset - window : from[l] + offset + window;
  }
  w.write(inst.arg(0), active, out.v);
  return Flow::kNext;
}

void decode_cvta(Decoder& d) {
  Inst& inst = d.inst;
  inst.mode[0] = d.take("to");
  if (!take_space(d, inst.space)) d.fail("no space");
  inst.type = d.type();
  inst.cls = Class::kInteger;
  inst.execute = convert_address;
  d.finish({2});
}

Flow is_space(Warp& w, const Inst& inst, Mask active) {
  Lanes room, out;
  const uint64_t* from = w.read(inst.arg(1), room);
  for (int l = 0; l < kLanes; ++l) out.v[l] = from[l] >> 56 == window_of(inst.space) >> 56;
  w.write(inst.arg(0), active, out.v);
  return Flow::kNext;
}

void decode_isspacep(Decoder& d) {
  if (!take_space(d, d.inst.space)) d.fail("no space");
  d.inst.cls = Class::kPredicate;
  d.inst.execute = is_space;
  d.finish({2});
}

}  // namespace

void add_memory_ops() {
  add_op("ld", decode_ld);
  add_op("ldu", decode_ld);
  add_op("st", decode_st);
  add_op("atom", decode_atom);
  add_op("red", decode_red);
  add_op("cvta", decode_cvta);
  add_op("isspacep", decode_isspacep);
}

}  // namespace ptxsim
