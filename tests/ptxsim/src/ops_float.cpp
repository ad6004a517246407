// Floating-point arithmetic: exact value, rounded once, then .ftz, .sat and .relu.

#include <utility>

#include "arithmetic.h"

namespace ptxsim {
namespace {

// Each operation in two forms: `near` is the host's own, correctly rounded to nearest in the type
// itself; `odd` takes and gives doubles, exact or rounded to odd. Those that the host lacks in
// single precision, and the approximations, have `odd` only.
struct Add {
  static constexpr bool kNative = true;
  template <class T>
  static T near(T a, T b) {
    return a + b;
  }
  static double odd(Rounding round, double a, double b) { return odd_add(a, b, round); }
};
struct Sub {
  static constexpr bool kNative = true;
  template <class T>
  static T near(T a, T b) {
    return a - b;
  }
  static double odd(Rounding round, double a, double b) { return odd_add(a, -b, round); }
};
struct Mul {
  static constexpr bool kNative = true;
  template <class T>
  static T near(T a, T b) {
    return a * b;
  }
  static double odd(Rounding, double a, double b) { return a * b; }
};
struct Fma {
  static constexpr bool kNative = true;
  template <class T>
  static T near(T a, T b, T c) {
    return std::fma(a, b, c);
  }
  static double odd(Rounding round, double a, double b, double c) {
    return odd_add(a * b, c, round);
  }
};
struct Div {
  static constexpr bool kNative = true;
  template <class T>
  static T near(T a, T b) {
    return a / b;
  }
  static double odd(Rounding, double a, double b) { return odd_divide(a, b); }
};
struct Rcp {
  static constexpr bool kNative = true;
  template <class T>
  static T near(T a) {
    return 1 / a;
  }
  static double odd(Rounding, double a) { return odd_divide(1, a); }
};
struct Sqrt {
  static constexpr bool kNative = true;
  template <class T>
  static T near(T a) {
    return std::sqrt(a);
  }
  static double odd(Rounding, double a) { return odd_sqrt(a); }
};

// The approximations of the hardware differ from the exact value by a few units in the last place;
// the simulator gives the nearest value.
struct DivApprox {
  static constexpr bool kNative = false;
  // Documented as a * (1 / b), where the reciprocal of a large b underflows.
  static double odd(Rounding, double a, double b) {
    const double large = std::fabs(b);
    return large > 0x1p126 && std::isfinite(b) ? a * std::copysign(0.0, b) : a / b;
  }
};
struct DivFull {
  static constexpr bool kNative = false;
  static double odd(Rounding, double a, double b) { return a / b; }
};
struct Rsqrt {
  static constexpr bool kNative = false;
  static double odd(Rounding, double a) { return 1 / std::sqrt(a); }
};
struct Ex2 {
  static constexpr bool kNative = false;
  static double odd(Rounding, double a) { return std::exp2(a); }
};
struct Lg2 {
  static constexpr bool kNative = false;
  static double odd(Rounding, double a) { return std::log2(a); }
};
struct Sin {
  static constexpr bool kNative = false;
  static double odd(Rounding, double a) { return std::sin(a); }
};
struct Cos {
  static constexpr bool kNative = false;
  static double odd(Rounding, double a) { return std::cos(a); }
};
struct Tanh {
  static constexpr bool kNative = false;
  static double odd(Rounding, double a) { return std::tanh(a); }
};

template <class Op, class T, class... Same>
T scalar(const Mode& m, T a, Same... rest) {
  if (m.ftz) {
    a = flush(a);
    ((rest = flush(rest)), ...);
  }
  if constexpr (std::is_same_v<T, double>) return Op::near(a, rest...);
  if constexpr (std::is_same_v<T, float> && Op::kNative) {
    if (m.round == Rounding::kNearest) return clamp(m, canonical(Op::near(a, rest...)));
  }
  return clamp(m, narrow<T>(Op::odd(m.round, widen(a), widen(rest)...), m.round));
}

// One or two values per register.
template <class Op, class T, class... Same>
T evaluate(const Mode& m, T a, Same... rest) {
  return scalar<Op>(m, a, rest...);
}
template <class Op, class T, class... Same>
Pair<T> evaluate(const Mode& m, Pair<T> a, Same... rest) {
  return {scalar<Op>(m, a.low, rest.low...), scalar<Op>(m, a.high, rest.high...)};
}

// `AnyMode` false: to nearest without further ado, which the compiler then makes vector code of.
template <bool AnyMode>
class Operation {
 public:
  explicit Operation(const Inst& inst) : mode_(inst) {}
  Mode mode() const { return AnyMode ? mode_ : Mode(); }

 private:
  Mode mode_;
};
template <class Op, class T, bool AnyMode>
struct Unary : Operation<AnyMode> {
  using Operation<AnyMode>::Operation;
  T operator()(T a) const { return evaluate<Op>(this->mode(), a); }
};
template <class Op, class T, bool AnyMode>
struct Binary : Operation<AnyMode> {
  using Operation<AnyMode>::Operation;
  T operator()(T a, T b) const { return evaluate<Op>(this->mode(), a, b); }
};
template <class Op, class T, bool AnyMode>
struct Ternary : Operation<AnyMode> {
  using Operation<AnyMode>::Operation;
  T operator()(T a, T b, T c) const { return evaluate<Op>(this->mode(), a, b, c); }
};

// --- sign, minimum and maximum: no rounding -----------------------------------------------------

template <class T>
T nan_of() {
  return narrow<T>(std::numeric_limits<double>::quiet_NaN(), Rounding::kNearest);
}

struct Neg {
  template <class T>
  static T of(const Mode&, T a) {
    return from_bits<T>(to_bits(a) ^ 1ull << (8 * sizeof(T) - 1));
  }
};
struct Abs {
  template <class T>
  static T of(const Mode&, T a) {
    return from_bits<T>(to_bits(a) & ~(1ull << (8 * sizeof(T) - 1)));
  }
};
// The magnitude of b with the sign of a.
struct Copysign {
  template <class T>
  static T of(const Mode&, T a, T b) {
    const uint64_t sign = 1ull << (8 * sizeof(T) - 1);
    return from_bits<T>((to_bits(a) & sign) | (to_bits(b) & ~sign));
  }
};
// A NaN yields to a number unless .NaN is given, and -0 is less than +0.
template <bool Max>
struct Extreme {
  template <class T>
  static T of(const Mode& m, T a, T b) {
    const auto x = widen(a);
    const auto y = widen(b);
    const bool a_nan = x != x, b_nan = y != y;
    // Equal numbers differ in nothing but the sign of zero: one or both bits decide.
    const T same = from_bits<T>(Max ? to_bits(a) & to_bits(b) : to_bits(a) | to_bits(b));
    const bool first = (Max ? x > y : x < y) | b_nan;
    const T number = x == y ? same : (first & !a_nan ? a : b);
    return (a_nan & b_nan) | (m.nan & (a_nan | b_nan)) ? nan_of<T>() : number;
  }
};

template <class F, class T, class... Same>
T select(const Mode& m, T a, Same... rest) {
  return m.ftz ? F::of(m, flush(a), flush(rest)...) : F::of(m, a, rest...);
}
template <class F, class T, class... Same>
Pair<T> select(const Mode& m, Pair<T> a, Same... rest) {
  return {select<F>(m, a.low, rest.low...), select<F>(m, a.high, rest.high...)};
}

template <class F, class T, bool AnyMode>
struct SelectUnary : Operation<AnyMode> {
  using Operation<AnyMode>::Operation;
  T operator()(T a) const { return select<F>(this->mode(), a); }
};
template <class F, class T, bool AnyMode>
struct SelectBinary : Operation<AnyMode> {
  using Operation<AnyMode>::Operation;
  T operator()(T a, T b) const { return select<F>(this->mode(), a, b); }
};

// --- decoding -----------------------------------------------------------------------------------

using Brains = Pair<Brain>;
using Halves = Pair<Half>;
using Floats = Pair<float>;

template <template <class, class, bool> class Arity, class Op>
Execute arithmetic(Type type, bool any_mode) {
  if (type == kTypeF32)
    return any_mode ? modal<Arity<Op, float, true>> : modal<Arity<Op, float, false>>;
  if (type == kTypeF64) return modal<Arity<Op, double, false>>;
  return nullptr;
}
// Those that packed types have too.
template <template <class, class, bool> class Arity, class Op>
Execute packed_arithmetic(Type type, bool any_mode) {
  if (type == kTypeF32x2) {
    return any_mode ? modal<Arity<Op, Floats, true>> : modal<Arity<Op, Floats, false>>;
  }
  if (type == kTypeF16) return modal<Arity<Op, Half, true>>;
  if (type == kTypeF16x2) return modal<Arity<Op, Halves, true>>;
  if (type == kTypeBf16) return modal<Arity<Op, Brain, true>>;
  if (type == kTypeBf16x2) return modal<Arity<Op, Brains, true>>;
  return arithmetic<Arity, Op>(type, any_mode);
}

template <template <class, class, bool> class Arity, class F>
Execute selection(Type type, bool any_mode) {
  if (type == kTypeF16) return modal<Arity<F, Half, true>>;
  if (type == kTypeF16x2) return modal<Arity<F, Halves, true>>;
  if (type == kTypeBf16) return modal<Arity<F, Brain, true>>;
  if (type == kTypeBf16x2) return modal<Arity<F, Brains, true>>;
  return arithmetic<Arity, F>(type, any_mode);
}

bool is_half(Type type) { return type.kind == 'h'; }
bool is_brain(Type type) { return type.kind == 'B'; }

Class class_of(Type type) {
  if (is_half(type) || is_brain(type)) return Class::kHalf;
  return type == kTypeF64 ? Class::kDouble : Class::kFloat;
}

// .rn .rz .rm .rp; only f32 has others than .rn.
Rounding take_rounding(Decoder& d, Type type, bool required) {
  const int which = d.choose({"rn", "rz", "rm", "rp"});
  if (which < 0 && required) d.fail("a rounding (.rn, .rz, .rm, .rp) or .approx is needed");
  const bool single = type == kTypeF32 || type == kTypeF32x2;
  if (which > 0 && !single) d.fail("only .rn is supported for this type");
  constexpr Rounding kTable[] = {Rounding::kNearest, Rounding::kZero, Rounding::kDown,
                                 Rounding::kUp};
  return which < 0 ? Rounding::kNearest : kTable[which];
}

void take_flags(Decoder& d, Type type, Mode& mode, bool saturates) {
  if (type == kTypeF32 || type == kTypeF32x2 || is_half(type)) mode.ftz = d.take("ftz");
  if (saturates && (type == kTypeF32 || is_half(type))) mode.sat = d.take("sat");
}

void finish(Decoder& d, Type type, const Mode& mode, Execute execute, Class cls, int operands) {
  d.inst.execute = execute;
  d.inst.cls = cls;
  d.inst.mode[0] = mode.pack();
  d.finish({operands});
  fit_immediates(d, type);
}

template <template <class, class, bool> class Arity, class Op, int Operands>
void decode_sum(Decoder& d, Type type) {
  Mode mode;
  mode.round = take_rounding(d, type, false);
  take_flags(d, type, mode, true);
  finish(d, type, mode, packed_arithmetic<Arity, Op>(type, !mode.plain()), class_of(type),
         Operands);
}

void decode_fma(Decoder& d) {
  const Type type = d.type();
  Mode mode;
  mode.round = take_rounding(d, type, true);
  take_flags(d, type, mode, true);
  if (is_half(type) || is_brain(type)) mode.relu = d.take("relu");
  if (mode.relu && mode.sat) d.fail(".relu excludes .sat");
  finish(d, type, mode, packed_arithmetic<Ternary, Fma>(type, !mode.plain()), class_of(type), 4);
}

template <template <class, class, bool> class Arity, class Exact, class Approx, int Operands>
void decode_root(Decoder& d, Type type) {
  Mode mode;
  const bool approximate = d.take("approx");
  if (!approximate) mode.round = take_rounding(d, type, true);
  take_flags(d, type, mode, false);
  Execute execute = nullptr;
  if (!approximate) {
    execute = arithmetic<Arity, Exact>(type, !mode.plain());
  } else if (type == kTypeF32) {
    execute = modal<Arity<Approx, float, true>>;
  }
  finish(d, type, mode, execute, Class::kSpecial, Operands);
}

void decode_div(Decoder& d, Type type) {
  if (type == kTypeF32 && d.take("full")) {
    Mode mode;
    take_flags(d, type, mode, false);
    return finish(d, type, mode, modal<Binary<DivFull, float, true>>, Class::kSpecial, 3);
  }
  decode_root<Binary, Div, DivApprox, 3>(d, type);
}

template <class Exact, class Approx>
void decode_root(Decoder& d) {
  decode_root<Unary, Exact, Approx, 2>(d, d.type());
}

template <class Op>
void decode_approx(Decoder& d) {
  const Type type = d.type();
  Mode mode;
  if (!d.take("approx")) d.fail("only the .approx form is supported");
  take_flags(d, type, mode, false);
  finish(d, type, mode, type == kTypeF32 ? modal<Unary<Op, float, true>> : nullptr, Class::kSpecial,
         2);
}

// ex2 and tanh, which half precision has too.
template <class Op, bool BrainFlushes>
void decode_half_approx(Decoder& d) {
  const Type type = d.type();
  Mode mode;
  if (!d.take("approx")) d.fail("only the .approx form is supported");
  take_flags(d, type, mode, false);
  if (is_brain(type) && BrainFlushes && !(mode.ftz = d.take("ftz"))) d.fail("bf16 needs .ftz");
  Execute execute = nullptr;
  if (type == kTypeF32) execute = modal<Unary<Op, float, true>>;
  if (type == kTypeF16) execute = modal<Unary<Op, Half, true>>;
  if (type == kTypeF16x2) execute = modal<Unary<Op, Halves, true>>;
  if (type == kTypeBf16) execute = modal<Unary<Op, Brain, true>>;
  if (type == kTypeBf16x2) execute = modal<Unary<Op, Brains, true>>;
  finish(d, type, mode, execute, Class::kSpecial, 2);
}

template <class F>
void decode_sign(Decoder& d, Type type) {
  Mode mode;
  take_flags(d, type, mode, false);
  finish(d, type, mode, selection<SelectUnary, F>(type, !mode.plain()), class_of(type), 2);
}

template <class F>
void decode_extreme(Decoder& d, Type type) {
  Mode mode;
  take_flags(d, type, mode, false);
  if (!(type == kTypeF64)) mode.nan = d.take("NaN");
  finish(d, type, mode, selection<SelectBinary, F>(type, !mode.plain()), class_of(type), 3);
}

void decode_copysign(Decoder& d) {
  const Type type = d.type();
  finish(d, type, Mode(), arithmetic<SelectBinary, Copysign>(type, false), class_of(type), 3);
}

void fit(Decoder& d, Type type, const Operand& operand, Arg& arg) {
  if (operand.kind != Operand::Kind::kImmediate) return;
  const bool is_float = type == kTypeF32 || type == kTypeF64;
  if (!operand.is_float) {
    if (type.kind == 'f' || type.kind == 'h' || type.kind == 'B' || type.kind == 'w') {
      d.fail("an integer cannot be an operand of a floating-point instruction");
    }
    return;
  }
  if (operand.float_bits == type.bits) return;
  if (!is_float) d.fail("a floating-point number cannot be an operand here");
  arg.value = type == kTypeF32 ? to_bits(static_cast<float>(from_bits<double>(operand.value)))
                               : to_bits(static_cast<double>(from_bits<float>(operand.value)));
}

}  // namespace

void fit_immediates(Decoder& d, Type type) {
  for (size_t i = 0; i < d.text.operands.size(); ++i) {
    const Operand& operand = d.text.operands[i];
    Arg* args = d.inst.args.data() + d.inst.operands[i].begin;
    if (operand.kind == Operand::Kind::kVector) {
      for (size_t j = 0; j < operand.items.size(); ++j) {
        const uint8_t bits = static_cast<uint8_t>(type.bits / operand.items.size());
        fit(d, {'b', bits}, operand.items[j], args[j]);
      }
    } else {
      fit(d, type, operand, *args);
    }
  }
}

void decode_float(Decoder& d, Common op, Type type) {
  switch (op) {
    case Common::kAdd:
      return decode_sum<Binary, Add, 3>(d, type);
    case Common::kSub:
      return decode_sum<Binary, Sub, 3>(d, type);
    case Common::kMul:
      return decode_sum<Binary, Mul, 3>(d, type);
    case Common::kDiv:
      return decode_div(d, type);
    case Common::kNeg:
      return decode_sign<Neg>(d, type);
    case Common::kAbs:
      return decode_sign<Abs>(d, type);
    case Common::kMin:
      return decode_extreme<Extreme<false>>(d, type);
    case Common::kMax:
      return decode_extreme<Extreme<true>>(d, type);
  }
}

void add_float_ops() {
  add_op("fma", decode_fma);
  add_op("rcp", decode_root<Rcp, Rcp>);
  add_op("sqrt", decode_root<Sqrt, Sqrt>);
  add_op("rsqrt", decode_approx<Rsqrt>);
  add_op("ex2", decode_half_approx<Ex2, true>);
  add_op("lg2", decode_approx<Lg2>);
  add_op("sin", decode_approx<Sin>);
  add_op("cos", decode_approx<Cos>);
  add_op("tanh", decode_half_approx<Tanh, false>);
  add_op("copysign", decode_copysign);
  add_compare_ops();
}

}  // namespace ptxsim
