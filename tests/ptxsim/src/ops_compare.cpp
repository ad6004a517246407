// setp, set, selp, slct. A comparison is a table of four bits: what it says of a < b, a = b, a > b
// and of operands that are not ordered because one is NaN.

#include "arithmetic.h"

namespace ptxsim {
namespace {

enum Relation : uint32_t { kLess = 1, kEqual = 2, kGreater = 4, kUnordered = 8 };

struct Comparison {
  std::string_view name;
  uint32_t table;
  std::string_view kinds;  // types that have it: b, u, s; f stands for all floating point
};
constexpr Comparison kComparisons[] = {
    {"eq", kEqual, "busf"},
    {"ne", kLess | kGreater, "busf"},
    {"lt", kLess, "usf"},
    {"le", kLess | kEqual, "usf"},
    {"gt", kGreater, "usf"},
    {"ge", kGreater | kEqual, "usf"},
    {"lo", kLess, "u"},
    {"ls", kLess | kEqual, "u"},
    {"hi", kGreater, "u"},
    {"hs", kGreater | kEqual, "u"},
    {"equ", kEqual | kUnordered, "f"},
    {"neu", kLess | kGreater | kUnordered, "f"},
    {"ltu", kLess | kUnordered, "f"},
    {"leu", kLess | kEqual | kUnordered, "f"},
    {"gtu", kGreater | kUnordered, "f"},
    {"geu", kGreater | kEqual | kUnordered, "f"},
    {"num", kLess | kEqual | kGreater, "f"},
    {"nan", kUnordered, "f"},
};

// Inst::mode: 0 as in arithmetic.h, 1 the table, 2 how to combine with operand 3, 3 what `set`
// writes for true.
enum Combine : uint32_t { kAlone, kAnd, kOr, kXor };

template <class T>
T number(T x) {
  return x;
}
float number(Half x) { return widen(x); }
float number(Brain x) { return widen(x); }

template <class T>
uint64_t holds(uint32_t table, T a, T b) {
  const auto x = number(a);
  const auto y = number(b);
  // Four selections between constants: what the vectoriser understands.
  const uint32_t relation = (x < y ? kLess : 0u) | (x == y ? kEqual : 0u) |
                            (x > y ? kGreater : 0u) | (x != x || y != y ? kUnordered : 0u);
  return (table & relation) != 0;
}

// The comparison of every lane, 0 or 1, with subnormals flushed where asked for.
template <class T>
void compare(Warp& w, const Inst& inst, uint64_t* out) {
  Lanes room[2];
  const uint64_t* a = w.read(inst.arg(1), room[0]);
  const uint64_t* b = w.read(inst.arg(2), room[1]);
  const uint32_t table = inst.mode[1];
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, Half>) {
    if (Mode(inst).ftz) {
#pragma GCC ivdep
      for (int l = 0; l < kLanes; ++l) {
        out[l] = holds(table, flush(from_bits<T>(a[l])), flush(from_bits<T>(b[l])));
      }
      return;
    }
  }
#pragma GCC ivdep
  for (int l = 0; l < kLanes; ++l) out[l] = holds(table, from_bits<T>(a[l]), from_bits<T>(b[l]));
}

uint64_t combined(uint32_t combine, uint64_t a, uint64_t b) {
  switch (combine) {
    case kAnd:
      return a & b;
    case kOr:
      return a | b;
    case kXor:
      return a ^ b;
    default:
      return a;
  }
}

template <class T>
struct Setp {
  static Flow run(Warp& w, const Inst& inst, Mask active) {
    Lanes result, room;
    compare<T>(w, inst, result.v);
    const int32_t pair = inst.operands[0].pair;
    if (inst.mode[2] == kAlone && pair < 0) {
      w.write(inst.arg(0), active, result.v);
      return Flow::kNext;
    }
    const uint64_t* with = inst.mode[2] == kAlone ? result.v : w.read(inst.arg(3), room);
    // The second result combines the opposite of the comparison.
    Mask opposite = 0;
    for (int l = 0; l < kLanes; ++l) {
      opposite |= static_cast<Mask>(combined(inst.mode[2], result.v[l] ^ 1, with[l])) << l;
      result.v[l] = combined(inst.mode[2], result.v[l], with[l]);
    }
    w.write(inst.arg(0), active, result.v);
    if (pair >= 0) w.write_predicate(pair, active, opposite);
    return Flow::kNext;
  }
};

template <class T>
struct Set {
  static Flow run(Warp& w, const Inst& inst, Mask active) {
    Lanes result, room;
    compare<T>(w, inst, result.v);
    const uint64_t* with = inst.mode[2] == kAlone ? result.v : w.read(inst.arg(3), room);
    for (int l = 0; l < kLanes; ++l) {
      result.v[l] = combined(inst.mode[2], result.v[l], with[l]) ? inst.mode[3] : 0;
    }
    w.write(inst.arg(0), active, result.v);
    return Flow::kNext;
  }
};

// Both halves of a packed register.
template <class T>
struct SetPairs {
  explicit SetPairs(const Inst& inst) : table(inst.mode[1]), truth(inst.mode[3]) {}
  uint32_t table, truth;
  uint32_t operator()(Pair<T> a, Pair<T> b) const {
    return (holds(table, a.low, b.low) ? truth : 0) |
           (holds(table, a.high, b.high) ? truth << 16 : 0);
  }
};

template <class T>
struct Selp {
  T operator()(T a, T b, uint64_t p) const { return p ? a : b; }
};
template <class T, class C>
struct Slct {
  T operator()(T a, T b, C c) const { return c >= 0 ? a : b; }
};

// --- decoding -----------------------------------------------------------------------------------

bool is_floating(Type type) { return type.kind == 'f' || type.kind == 'h' || type.kind == 'B'; }

// Takes comparison and combination; the comparison must be one of the type's, which is not taken
// yet.
const Comparison& take_comparison(Decoder& d) {
  for (const Comparison& comparison : kComparisons) {
    if (!d.take(comparison.name)) continue;
    d.inst.mode[1] = comparison.table;
    d.inst.mode[2] = static_cast<uint32_t>(d.choose({"and", "or", "xor"}) + 1);
    return comparison;
  }
  d.fail("no comparison");
}

void take_flush(Decoder& d, const Comparison& comparison, Type type) {
  const char kind = is_floating(type) ? 'f' : type.kind;
  if (comparison.kinds.find(kind) == std::string_view::npos) {
    d.fail("this type has no such comparison");
  }
  Mode mode;
  if (type == kTypeF32 || type == kTypeF16) mode.ftz = d.take("ftz");
  d.inst.mode[0] = mode.pack();
}

template <template <class> class F>
Execute by_type(Type type) {
  const bool is_unsigned = type.kind == 'u' || type.kind == 'b';
  if (is_unsigned && type.bits == 16) return F<uint16_t>::run;
  if (is_unsigned && type.bits == 32) return F<uint32_t>::run;
  if (is_unsigned && type.bits == 64) return F<uint64_t>::run;
  if (type == Type{'s', 16}) return F<int16_t>::run;
  if (type == Type{'s', 32}) return F<int32_t>::run;
  if (type == Type{'s', 64}) return F<int64_t>::run;
  if (type == kTypeF16) return F<Half>::run;
  if (type == kTypeBf16) return F<Brain>::run;
  if (type == kTypeF32) return F<float>::run;
  if (type == kTypeF64) return F<double>::run;
  return nullptr;
}

void decode_setp(Decoder& d) {
  const Comparison& comparison = take_comparison(d);
  const Type type = d.type();
  take_flush(d, comparison, type);
  d.inst.execute = by_type<Setp>(type);
  d.inst.cls = Class::kPredicate;
  d.finish({d.inst.mode[2] == kAlone ? 3 : 4});
  fit_immediates(d, type);
}

void decode_set(Decoder& d) {
  const Comparison& comparison = take_comparison(d);
  const Type result = d.type();
  const Type type = d.type();
  const bool pairs = type == kTypeF16x2 || type == kTypeBf16x2;
  take_flush(d, comparison, type);
  const bool mask = result == Type{'u', 32} || result == Type{'s', 32};
  if (mask) {
    d.inst.mode[3] = pairs ? 0xffff : 0xffffffff;
  } else if (result == kTypeF32 && !pairs) {
    d.inst.mode[3] = 0x3f800000;
  } else if (result == type && result.kind == 'h') {
    d.inst.mode[3] = 0x3c00;
  } else if (result == type && result.kind == 'B') {
    d.inst.mode[3] = 0x3f80;
  } else {
    d.fail("this pair of types is not supported");
  }
  if (pairs && d.inst.mode[2] != kAlone) d.fail("packed types cannot be combined");
  d.inst.execute = type == kTypeF16x2    ? modal<SetPairs<Half>>
                   : type == kTypeBf16x2 ? modal<SetPairs<Brain>>
                                         : by_type<Set>(type);
  d.inst.cls = Class::kPredicate;
  d.finish({d.inst.mode[2] == kAlone ? 3 : 4});
  fit_immediates(d, type);
}

template <template <class> class F>
Execute by_width(Type type) {
  switch (std::string_view("busf").find(type.kind) == std::string_view::npos ? 0 : type.bits) {
    case 16:
      return lanewise<F<uint16_t>>;
    case 32:
      return lanewise<F<uint32_t>>;
    case 64:
      return lanewise<F<uint64_t>>;
    default:
      return nullptr;
  }
}

void decode_selp(Decoder& d) {
  const Type type = d.type();
  d.inst.execute = by_width<Selp>(type);
  d.inst.cls = Class::kPredicate;
  d.finish({4});
  // The predicate is a register; the values may be numbers.
  fit_immediates(d, type);
}

template <class T>
using SlctInteger = Slct<T, int32_t>;
template <class T>
using SlctFloat = Slct<T, float>;

void decode_slct(Decoder& d) {
  const Type type = d.type();
  const Type by = d.type();
  if (by == Type{'s', 32}) d.inst.execute = by_width<SlctInteger>(type);
  if (by == kTypeF32) d.inst.execute = by_width<SlctFloat>(type);
  d.inst.cls = Class::kInteger;
  d.finish({4});
  fit_immediates(d, type);
}

}  // namespace

void add_compare_ops() {
  add_op("setp", decode_setp);
  add_op("set", decode_set);
  add_op("selp", decode_selp);
  add_op("slct", decode_slct);
}

}  // namespace ptxsim
