// cvt and mov.

#include <string_view>

#include "arithmetic.h"

namespace ptxsim {
namespace {

// --- mov ----------------------------------------------------------------------------------------

template <class T>
struct Move {
  T operator()(T a) const { return a; }
};

uint64_t low_bits(uint32_t bits) { return bits < 64 ? (1ull << bits) - 1 : ~0ull; }

// mode[1]: bits of an element.
Flow pack(Warp& w, const Inst& inst, Mask active) {
  Lanes room, out{};
  const uint64_t mask = low_bits(inst.mode[1]);
  for (int i = 0; i < inst.count(1); ++i) {
    const uint64_t* in = w.read(inst.arg(1, i), room);
    const uint32_t shift = inst.mode[1] * static_cast<uint32_t>(i);
    for (int l = 0; l < kLanes; ++l) out.v[l] |= (in[l] & mask) << shift;
  }
  w.write(inst.arg(0), active, out.v);
  return Flow::kNext;
}

Flow unpack(Warp& w, const Inst& inst, Mask active) {
  Lanes room, out;
  const uint64_t mask = low_bits(inst.mode[1]);
  // One of the results may be the source.
  Lanes in;
  std::memcpy(in.v, w.read(inst.arg(1), room), sizeof in.v);
  for (int i = 0; i < inst.count(0); ++i) {
    const uint32_t shift = inst.mode[1] * static_cast<uint32_t>(i);
    for (int l = 0; l < kLanes; ++l) out.v[l] = in.v[l] >> shift & mask;
    w.write(inst.arg(0, i), active, out.v);
  }
  return Flow::kNext;
}

void check_elements(Decoder& d, int operand, uint32_t bits) {
  for (int i = 0; i < d.inst.count(operand); ++i) {
    const Arg& arg = d.inst.arg(operand, i);
    if (arg.kind == Arg::Kind::kRegister && arg.bits != bits) {
      d.fail("the elements must be registers of " + std::to_string(bits) + " bits");
    }
  }
}

void decode_mov(Decoder& d) {
  const Type type = d.type();
  d.inst.cls = Class::kMove;
  const bool known = std::string_view("busfp").find(type.kind) != std::string_view::npos;
  switch (known ? type.bits : 0) {
    case 1:
      d.inst.execute = lanewise<Move<uint64_t>>;
      break;
    case 16:
      d.inst.execute = lanewise<Move<uint16_t>>;
      break;
    case 32:
      d.inst.execute = lanewise<Move<uint32_t>>;
      break;
    case 64:
      d.inst.execute = lanewise<Move<uint64_t>>;
      break;
    default:
      break;
  }
  d.finish({2});
  const bool unpacks = d.text.operands[0].kind == Operand::Kind::kVector;
  const bool packs = d.text.operands[1].kind == Operand::Kind::kVector;
  if (unpacks || packs) {
    if (unpacks && packs) d.fail("one side must be a register");
    const int operand = unpacks ? 0 : 1;
    const int count = d.inst.count(operand);
    if (type.kind == 'p' || (count != 2 && count != 4)) d.fail("2 or 4 elements are supported");
    d.inst.mode[1] = static_cast<uint32_t>(type.bits / count);
    check_elements(d, operand, d.inst.mode[1]);
    d.inst.execute = unpacks ? unpack : pack;
  }
  fit_immediates(d, type);
  Arg& source = d.inst.args.back();
  if (type.kind == 'p' && source.kind == Arg::Kind::kImmediate) source.value = source.value != 0;
}

// --- cvt between integers, and between integers and floating point ------------------------------

struct Integer {
  bool is_signed;
  int bits;
  explicit Integer(uint32_t packed) : is_signed(packed >> 8), bits(packed & 0xff) {}
  static uint32_t pack(Type type) { return (type.kind == 's') << 8 | type.bits; }

  // The value in the low bits of a register, as 64 bits.
  uint64_t extend(uint64_t x) const {
    const int spare = 64 - bits;
    return is_signed ? static_cast<uint64_t>(static_cast<int64_t>(x << spare) >> spare)
                     : x << spare >> spare;
  }
  uint64_t largest() const { return low_bits(static_cast<uint32_t>(is_signed ? bits - 1 : bits)); }
  int64_t smallest() const { return is_signed ? -static_cast<int64_t>(largest()) - 1 : 0; }
};

// mode[1], mode[2]: the integer types of result and source; mode[3]: bits of the result's register,
// to which narrower results are extended.
Flow int_to_int(Warp& w, const Inst& inst, Mask active) {
  Lanes room, out;
  const uint64_t* in = w.read(inst.arg(1), room);
  const Integer to(inst.mode[1]), from(inst.mode[2]);
  const uint64_t mask = low_bits(inst.mode[3]);
  const bool sat = Mode(inst).sat;
  for (int l = 0; l < kLanes; ++l) {
    uint64_t x = from.extend(in[l]);
    if (sat) {
      const bool negative = from.is_signed && static_cast<int64_t>(x) < 0;
      if (negative) {
        x = static_cast<uint64_t>(std::max(static_cast<int64_t>(x), to.smallest()));
      } else {
        x = std::min(x, to.largest());
      }
    }
    out.v[l] = to.extend(x) & mask;
  }
  w.write(inst.arg(0), active, out.v);
  return Flow::kNext;
}

template <class S>
struct FloatToInt {
  explicit FloatToInt(const Inst& inst)
      : mode(inst),
        to(inst.mode[1]),
        mask(low_bits(inst.mode[3])),
        above(std::ldexp(1.0, to.is_signed ? to.bits - 1 : to.bits)),
        // What becomes of NaN depends on the types.
        nan(std::is_same_v<S, double> || to.bits == 64 ? 1ull << (to.bits - 1) : 0) {}
  Mode mode;
  Integer to;
  uint64_t mask;
  double above;
  uint64_t nan;

  uint64_t operator()(S a) const {
    if (mode.ftz) a = flush(a);
    const double x = widen(a);
    if (x != x) return to.extend(nan) & mask;
    const double whole = to_integral(x, mode.round);
    if (whole >= above) return to.largest() & mask;
    if (whole < static_cast<double>(to.smallest())) {
      return static_cast<uint64_t>(to.smallest()) & mask;
    }
    const uint64_t bits = to.is_signed ? static_cast<uint64_t>(static_cast<int64_t>(whole))
                                       : static_cast<uint64_t>(whole);
    return bits & mask;
  }
};

template <class D>
struct IntToFloat {
  explicit IntToFloat(const Inst& inst) : mode(inst), from(inst.mode[2]) {}
  Mode mode;
  Integer from;

  D operator()(uint64_t a) const {
    const uint64_t bits = from.extend(a);
    if constexpr (std::is_same_v<D, double>) {
      return from.is_signed ? static_cast<double>(static_cast<int64_t>(bits))
                            : static_cast<double>(bits);
    }
    const double x = from.is_signed ? odd_from(static_cast<int64_t>(bits)) : odd_from(bits);
    return clamp(mode, narrow<D>(x, mode.round));
  }
};

// --- cvt between scalar floating-point types ----------------------------------------------------

// mode[1]: round to an integer.
template <class D, class S>
struct FloatToFloat {
  explicit FloatToFloat(const Inst& inst) : mode(inst), integral(inst.mode[1]) {
    // .ftz is about f32 only.
    flush_source = mode.ftz && std::is_same_v<S, float>;
    mode.ftz = mode.ftz && std::is_same_v<D, float>;
  }
  Mode mode;
  bool integral, flush_source;

  D operator()(S a) const {
    double x = widen(flush_source ? flush(a) : a);
    if (integral) x = to_integral(x, mode.round);
    return clamp(mode, narrow<D>(x, mode.round, mode.finite));
  }
};

// An f32 is a bf16 with more mantissa: no conversion, so even a NaN stays what it is.
struct BrainToFloat {
  float operator()(Brain a) const { return widen(a); }
};
struct NearestBrain {
  Brain operator()(float a) const { return nearest_brain(a); }
};
struct NearestBrains {
  Pair<Brain> operator()(float high, float low) const {
    return {nearest_brain(low), nearest_brain(high)};
  }
};

struct ToTf32 {
  explicit ToTf32(const Inst& inst) : mode(inst) {}
  Mode mode;
  uint32_t operator()(float a) const {
    if (a != a) return kF32.nan;
    if (mode.relu && !(a > 0)) return 0;
    return encode(kTf32, a, mode.round, mode.finite) << 13;
  }
};

// --- cvt of pairs -------------------------------------------------------------------------------

// The elements of packed types. f32 stands for two operands, of which the first is the upper
// element.
struct Element {
  char kind;
  uint32_t bits;
  double (*read)(uint32_t);
  uint32_t (*write)(double, Rounding, bool finite);
};

template <const Format& F>
constexpr Element element(char kind) {
  return {kind, static_cast<uint32_t>(F.bits), [](uint32_t code) { return decode(F, code); },
          [](double x, Rounding round, bool finite) { return encode(F, x, round, finite); }};
}

const Element kElements[] = {
    element<kF32>('f'),
    element<kF16>('h'),
    element<kBf16>('B'),
    element<kE4m3>('E'),
    element<kE5m2>('F'),
    element<kE2m1>('M'),
    {'U', 8, decode_ue8m0, encode_ue8m0},
};

uint32_t element_of(char kind) {
  uint32_t i = 0;
  while (kElements[i].kind != kind) ++i;
  return i;
}

// mode[1], mode[2]: the elements of result and source.
template <bool TwoOperands>
Flow convert_pairs(Warp& w, const Inst& inst, Mask active) {
  Lanes room[2], out;
  const Element& to = kElements[inst.mode[1]];
  const Element& from = kElements[inst.mode[2]];
  const Mode mode(inst);
  const uint64_t* first = w.read(inst.arg(1), room[0]);
  const uint64_t* second = TwoOperands ? w.read(inst.arg(2), room[1]) : first;
  const uint64_t mask = low_bits(from.bits);
  const auto convert = [&](uint64_t code) {
    double x = from.read(static_cast<uint32_t>(code & mask));
    if (mode.relu && x <= 0) x = 0.0;
    return static_cast<uint64_t>(to.write(x, mode.round, mode.finite));
  };
  for (int l = 0; l < kLanes; ++l) {
    const uint64_t high = TwoOperands ? first[l] : first[l] >> from.bits;
    out.v[l] = convert(high) << to.bits | convert(second[l]);
  }
  w.write(inst.arg(0), active, out.v);
  return Flow::kNext;
}

enum class Finite : uint8_t { kNo, kMay, kMust };

struct PairRule {
  char to, from;
  std::string_view roundings;  // n, z, p
  Finite finite;               // .satfinite
  bool relu;
};
constexpr PairRule kPairRules[] = {
    {'h', 'f', "nz", Finite::kMay, true},  {'B', 'f', "nz", Finite::kMay, true},
    {'E', 'f', "n", Finite::kMust, true},  {'F', 'f', "n", Finite::kMust, true},
    {'E', 'h', "n", Finite::kMust, true},  {'F', 'h', "n", Finite::kMust, true},
    {'E', 'B', "n", Finite::kMust, true},  {'F', 'B', "n", Finite::kMust, true},
    {'M', 'f', "n", Finite::kMust, true},  {'M', 'h', "n", Finite::kMust, true},
    {'M', 'B', "n", Finite::kMust, true},  {'U', 'f', "zp", Finite::kMay, false},
    {'U', 'B', "zp", Finite::kMay, false}, {'h', 'E', "n", Finite::kNo, true},
    {'h', 'F', "n", Finite::kNo, true},    {'h', 'M', "n", Finite::kNo, true},
    {'B', 'U', "n", Finite::kNo, false},
};

// --- decoding of cvt ----------------------------------------------------------------------------

bool is_integer(Type type) { return (type.kind == 'u' || type.kind == 's') && type.bits <= 64; }
bool is_float(Type type) {
  return type == kTypeF32 || type == kTypeF64 || type == kTypeF16 || type == kTypeBf16;
}

// The rounding to an integer (.rni ...), if there is one.
bool take_integral(Decoder& d, Mode& mode) {
  const int which = d.choose({"rni", "rzi", "rmi", "rpi"});
  constexpr Rounding kTable[] = {Rounding::kNearest, Rounding::kZero, Rounding::kDown,
                                 Rounding::kUp};
  if (which >= 0) mode.round = kTable[which];
  return which >= 0;
}

bool take_rounding(Decoder& d, Mode& mode) {
  const int which = d.choose({"rn", "rz", "rm", "rp"});
  constexpr Rounding kTable[] = {Rounding::kNearest, Rounding::kZero, Rounding::kDown,
                                 Rounding::kUp};
  if (which >= 0) mode.round = kTable[which];
  return which >= 0;
}

void finish(Decoder& d, const Mode& mode, Execute execute, int operands, Type source) {
  d.inst.mode[0] = mode.pack();
  d.inst.execute = execute;
  d.inst.cls = Class::kConvert;
  d.finish({operands});
  fit_immediates(d, source);
}

void set_register_width(Decoder& d) {
  const Arg& result = d.inst.args.front();
  d.inst.mode[3] = result.kind == Arg::Kind::kRegister ? result.bits : 64;
}

void decode_int_to_int(Decoder& d, Type to, Type from) {
  Mode mode;
  mode.sat = d.take("sat");
  d.inst.mode[1] = Integer::pack(to);
  d.inst.mode[2] = Integer::pack(from);
  set_register_width(d);
  finish(d, mode, int_to_int, 2, from);
}

void decode_float_to_int(Decoder& d, Type to, Type from) {
  Mode mode;
  if (!take_integral(d, mode)) d.fail("a rounding (.rni, .rzi, .rmi, .rpi) is needed");
  if (from == kTypeF32) mode.ftz = d.take("ftz");
  d.take("sat");  // results are clamped anyway
  d.inst.mode[1] = Integer::pack(to);
  set_register_width(d);
  finish(d, mode,
         from == kTypeF32   ? modal<FloatToInt<float>>
         : from == kTypeF64 ? modal<FloatToInt<double>>
         : from == kTypeF16 ? modal<FloatToInt<Half>>
                            : modal<FloatToInt<Brain>>,
         2, from);
}

void decode_int_to_float(Decoder& d, Type to, Type from) {
  Mode mode;
  if (!take_rounding(d, mode)) d.fail("a rounding (.rn, .rz, .rm, .rp) is needed");
  if (to == kTypeF64 && mode.round != Rounding::kNearest) d.fail("only .rn is supported for f64");
  if (!(to == kTypeF64)) mode.sat = d.take("sat");
  d.inst.mode[2] = Integer::pack(from);
  finish(d, mode,
         to == kTypeF32   ? modal<IntToFloat<float>>
         : to == kTypeF64 ? modal<IntToFloat<double>>
         : to == kTypeF16 ? modal<IntToFloat<Half>>
                          : modal<IntToFloat<Brain>>,
         2, from);
}

struct FloatRow {
  Type to, from;
  Execute execute;
  bool rounds;  // the result has fewer bits
};
const FloatRow kFloatTable[] = {
    {kTypeF32, kTypeF32, modal<FloatToFloat<float, float>>, false},
    {kTypeF64, kTypeF64, modal<FloatToFloat<double, double>>, false},
    {kTypeF16, kTypeF16, modal<FloatToFloat<Half, Half>>, false},
    {kTypeBf16, kTypeBf16, modal<FloatToFloat<Brain, Brain>>, false},
    {kTypeF32, kTypeF16, modal<FloatToFloat<float, Half>>, false},
    {kTypeF32, kTypeBf16, modal<FloatToFloat<float, Brain>>, false},
    {kTypeF64, kTypeF32, modal<FloatToFloat<double, float>>, false},
    {kTypeF64, kTypeF16, modal<FloatToFloat<double, Half>>, false},
    {kTypeF64, kTypeBf16, modal<FloatToFloat<double, Brain>>, false},
    {kTypeF32, kTypeF64, modal<FloatToFloat<float, double>>, true},
    {kTypeF16, kTypeF32, modal<FloatToFloat<Half, float>>, true},
    {kTypeF16, kTypeF64, modal<FloatToFloat<Half, double>>, true},
    {kTypeBf16, kTypeF32, modal<FloatToFloat<Brain, float>>, true},
    {kTypeBf16, kTypeF64, modal<FloatToFloat<Brain, double>>, true},
};

void decode_float_to_float(Decoder& d, Type to, Type from) {
  Mode mode;
  Execute execute = nullptr;
  for (const FloatRow& row : kFloatTable) {
    if (!(row.to == to) || !(row.from == from)) continue;
    execute = row.execute;
    if (row.rounds != take_rounding(d, mode)) {
      d.fail(row.rounds ? "a rounding (.rn, .rz, .rm, .rp) is needed" : "nothing is rounded here");
    }
  }
  if (to == from) d.inst.mode[1] = take_integral(d, mode);
  if (to == kTypeF32 || from == kTypeF32) mode.ftz = d.take("ftz");
  if (from == kTypeF32 && (to == kTypeF16 || to == kTypeBf16)) {
    mode.relu = d.take("relu");
    mode.finite = d.take("satfinite");
  }
  if (!(to == kTypeF64)) mode.sat = d.take("sat");
  if (mode.plain() && to == kTypeF32 && from == kTypeBf16) execute = lanewise<BrainToFloat>;
  if (mode.plain() && to == kTypeBf16 && from == kTypeF32) execute = lanewise<NearestBrain>;
  finish(d, mode, execute, 2, from);
}

void decode_tf32(Decoder& d) {
  Mode mode;
  if (d.take("rna")) {
    mode.round = Rounding::kAway;
  } else {
    if (!take_rounding(d, mode) || mode.round > Rounding::kZero) d.fail("needs .rna, .rn or .rz");
    mode.relu = d.take("relu");
  }
  mode.finite = d.take("satfinite");
  finish(d, mode, modal<ToTf32>, 2, kTypeF32);
}

const PairRule* pair_rule(Type to, Type from) {
  for (const PairRule& rule : kPairRules) {
    const bool packed =
        to.bits == 2 * kElements[element_of(rule.to)].bits &&
        from.bits == (rule.from == 'f' ? 32 : 2 * kElements[element_of(rule.from)].bits);
    if (rule.to == to.kind && rule.from == from.kind && packed) return &rule;
  }
  return nullptr;
}

void decode_pairs(Decoder& d, const PairRule& rule, Type from) {
  Mode mode;
  const char* name = "nzmp";
  if (!take_rounding(d, mode) ||
      rule.roundings.find(name[static_cast<int>(mode.round)]) == std::string_view::npos) {
    d.fail("this rounding is not supported for these types");
  }
  if (rule.finite != Finite::kNo) mode.finite = d.take("satfinite");
  if (rule.finite == Finite::kMust && !mode.finite) d.fail("these types need .satfinite");
  if (rule.relu) mode.relu = d.take("relu");
  d.inst.mode[1] = element_of(rule.to);
  d.inst.mode[2] = element_of(rule.from);
  const bool two = rule.from == 'f';
  Execute execute = two ? convert_pairs<true> : convert_pairs<false>;
  if (rule.to == 'B' && two && mode.plain()) execute = lanewise<NearestBrains>;
  finish(d, mode, execute, two ? 3 : 2, from);
}

void decode_cvt(Decoder& d) {
  const Type to = d.type();
  const Type from = d.type();
  if (is_integer(to) && is_integer(from)) return decode_int_to_int(d, to, from);
  if (is_integer(to) && is_float(from)) return decode_float_to_int(d, to, from);
  if (is_float(to) && is_integer(from)) return decode_int_to_float(d, to, from);
  if (is_float(to) && is_float(from)) return decode_float_to_float(d, to, from);
  if (to.kind == 'T' && from == kTypeF32) return decode_tf32(d);
  if (const PairRule* rule = pair_rule(to, from)) return decode_pairs(d, *rule, from);
  d.fail("this pair of types is not supported");
}

}  // namespace

void add_convert_ops() {
  add_op("mov", decode_mov);
  add_op("cvt", decode_cvt);
}

}  // namespace ptxsim
