// Integer arithmetic, bits and shifts.

#include <initializer_list>
#include <type_traits>

#include "arithmetic.h"

namespace ptxsim {
namespace {

// The unsigned type in which T is computed: wide enough that C++ does not promote it to int.
template <class T>
using Unsigned = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class T>
struct WiderOf;
template <>
struct WiderOf<uint16_t> {
  using type = uint32_t;
};
template <>
struct WiderOf<int16_t> {
  using type = int32_t;
};
template <>
struct WiderOf<uint32_t> {
  using type = uint64_t;
};
template <>
struct WiderOf<int32_t> {
  using type = int64_t;
};
template <>
struct WiderOf<uint64_t> {
  using type = unsigned __int128;
};
template <>
struct WiderOf<int64_t> {
  using type = __int128;
};
template <class T>
using Wider = typename WiderOf<T>::type;

template <class T>
constexpr int kBits = 8 * static_cast<int>(sizeof(T));

// --- arithmetic ---------------------------------------------------------------------------------

template <class T>
struct Add {
  T operator()(T a, T b) const { return static_cast<T>(Unsigned<T>(a) + Unsigned<T>(b)); }
};
template <class T>
struct Sub {
  T operator()(T a, T b) const { return static_cast<T>(Unsigned<T>(a) - Unsigned<T>(b)); }
};
struct AddSat {
  int32_t operator()(int32_t a, int32_t b) const {
    const int64_t sum = static_cast<int64_t>(a) + b;
    return static_cast<int32_t>(std::max<int64_t>(INT32_MIN, std::min<int64_t>(INT32_MAX, sum)));
  }
};
struct SubSat {
  int32_t operator()(int32_t a, int32_t b) const {
    const int64_t difference = static_cast<int64_t>(a) - b;
    return static_cast<int32_t>(
        std::max<int64_t>(INT32_MIN, std::min<int64_t>(INT32_MAX, difference)));
  }
};
template <class T>
struct MulLo {
  T operator()(T a, T b) const { return static_cast<T>(Unsigned<T>(a) * Unsigned<T>(b)); }
};
template <class T>
struct MulHi {
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<Wider<T>>(a) * static_cast<Wider<T>>(b) >> kBits<T>);
  }
};
template <class T>
struct MulWide {
  Wider<T> operator()(T a, T b) const {
    return static_cast<Wider<T>>(a) * static_cast<Wider<T>>(b);
  }
};
template <class T>
struct MadLo {
  T operator()(T a, T b, T c) const { return Add<T>()(MulLo<T>()(a, b), c); }
};
template <class T>
struct MadHi {
  T operator()(T a, T b, T c) const { return Add<T>()(MulHi<T>()(a, b), c); }
};
template <class T>
struct MadWide {
  Wider<T> operator()(T a, T b, Wider<T> c) const { return Add<Wider<T>>()(MulWide<T>()(a, b), c); }
};

// PTX leaves division by zero open; what GPUs do is all ones and the dividend. The one overflow,
// of the smallest number by -1, wraps.
template <class T>
struct Div {
  T operator()(T a, T b) const {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Sub<T>()(0, a);
    return static_cast<T>(a / b);
  }
};
template <class T>
struct Rem {
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
template <class T>
struct Neg {
  T operator()(T a) const { return Sub<T>()(0, a); }
};
template <class T>
struct Abs {
  T operator()(T a) const { return a < 0 ? Sub<T>()(0, a) : a; }
};
template <class T>
struct Min {
  T operator()(T a, T b) const { return b < a ? b : a; }
};
template <class T>
struct Max {
  T operator()(T a, T b) const { return a < b ? b : a; }
};
template <class T>
struct Sad {
  T operator()(T a, T b, T c) const { return Add<T>()(c, a < b ? Sub<T>()(b, a) : Sub<T>()(a, b)); }
};

// --- bits ---------------------------------------------------------------------------------------

template <class T>
struct And {
  T operator()(T a, T b) const { return a & b; }
};
template <class T>
struct Or {
  T operator()(T a, T b) const { return a | b; }
};
template <class T>
struct Xor {
  T operator()(T a, T b) const { return a ^ b; }
};
template <class T>
struct Not {
  T operator()(T a) const { return static_cast<T>(~a); }
};
// A predicate is a whole register that holds 0 or 1.
struct NotPredicate {
  uint64_t operator()(uint64_t a) const { return a ^ 1; }
};
template <class T>
struct Cnot {
  T operator()(T a) const { return a == 0; }
};

// Bit i of the table is the result where (a, b, c) spell i.
struct Lop3 {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c, uint32_t table) const {
    uint32_t d = 0;
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t term = (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
      d |= term & (0u - (table >> i & 1));
    }
    return d;
  }
};

// Amounts beyond the width are not masked: everything is shifted out.
template <class T>
struct Shl {
  T operator()(T a, uint32_t b) const {
    return static_cast<T>(b < kBits<T> ? Unsigned<T>(a) << (b & (kBits<Unsigned<T>> - 1)) : 0);
  }
};
template <class T>
struct Shr {
  T operator()(T a, uint32_t b) const {
    constexpr uint32_t last = kBits<T> - 1;
    if (std::is_signed_v<T>) return static_cast<T>(a >> (b < last ? b : last));
    return static_cast<T>(b <= last ? a >> (b & last) : 0);
  }
};

// Funnel shifts of the 64 bits b:a. A clamped amount of 32 selects the other word.
template <bool Left, bool Wrap>
struct Shf {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    const uint32_t n = Wrap ? c & 31 : (c < 32 ? c : 32);
    const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    return static_cast<uint32_t>(Left ? both << n >> 32 : both >> n);
  }
};

// Each nibble of c picks one of the eight bytes of b:a, or its sign.
struct Prmt {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    uint32_t d = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32_t pick = c >> (4 * i);
      uint32_t byte = static_cast<uint32_t>(both >> (8 * (pick & 7))) & 0xff;
      if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
      d |= byte << (8 * i);
    }
    return d;
  }
};

// The low `length` bits.
inline uint64_t low_mask(uint32_t length) { return length < 64 ? (1ull << length) - 1 : ~0ull; }

template <class T>
struct Bfe {
  T operator()(T a, uint32_t position, uint32_t length) const {
    position &= 0xff;
    length &= 0xff;
    if (length == 0) return 0;
    constexpr uint32_t last = kBits<T> - 1;
    using U = std::make_unsigned_t<T>;
    const uint64_t field = position <= last ? static_cast<U>(a) >> position : 0;
    const uint64_t mask = low_mask(length);
    const bool sign =
        std::is_signed_v<T> && static_cast<U>(a) >> std::min(position + length - 1, last) & 1;
    // Where the field reaches beyond the top, the sign fills it.
    const uint32_t there = position <= last ? std::min(length, last + 1 - position) : 0;
    return static_cast<T>((field & mask) | (sign ? ~low_mask(there) : 0));
  }
};
template <class T>
struct Bfi {
  T operator()(T a, T b, uint32_t position, uint32_t length) const {
    position &= 0xff;
    if (position >= kBits<T>) return b;
    const T mask = static_cast<T>(low_mask(length & 0xff) << position);
    return static_cast<T>((b & ~mask) | (static_cast<T>(a << position) & mask));
  }
};
// Of signed numbers, the highest bit that differs from the sign.
template <class T, bool ShiftAmount>
struct Bfind {
  uint32_t operator()(T a) const {
    const uint64_t x = static_cast<uint64_t>(a < 0 ? ~a : a);
    if (x == 0) return 0xffffffff;
    const uint32_t highest = 63 - static_cast<uint32_t>(__builtin_clzll(x));
    return ShiftAmount ? kBits<T> - 1 - highest : highest;
  }
};
template <class T>
struct Brev {
  T operator()(T a) const {
    T d = 0;
    for (int i = 0; i < kBits<T>; ++i) d = static_cast<T>(d << 1 | (a >> i & 1));
    return d;
  }
};
template <class T>
struct Clz {
  uint32_t operator()(T a) const {
    const uint32_t zeros = a ? static_cast<uint32_t>(__builtin_clzll(a)) : 64;
    return zeros - (64 - kBits<T>);
  }
};
template <class T>
struct Popc {
  uint32_t operator()(T a) const { return static_cast<uint32_t>(__builtin_popcountll(a)); }
};

// --- decoding -----------------------------------------------------------------------------------

struct Row {
  Type type;
  Execute execute;
};

Execute pick(std::initializer_list<Row> rows, Type type) {
  for (const Row& row : rows) {
    if (row.type == type) return row.execute;
  }
  return nullptr;
}

constexpr Type kU16{'u', 16}, kS16{'s', 16}, kU32{'u', 32}, kS32{'s', 32}, kU64{'u', 64},
    kS64{'s', 64}, kB16{'b', 16}, kB32{'b', 32}, kB64{'b', 64}, kPred{'p', 1};

template <template <class> class F>
Execute of_narrow(Type type) {
  return pick({{kU16, lanewise<F<uint16_t>>},
               {kS16, lanewise<F<int16_t>>},
               {kU32, lanewise<F<uint32_t>>},
               {kS32, lanewise<F<int32_t>>}},
              type);
}
template <template <class> class F>
Execute of_integers(Type type) {
  const Execute narrow = of_narrow<F>(type);
  return narrow ? narrow
                : pick({{kU64, lanewise<F<uint64_t>>}, {kS64, lanewise<F<int64_t>>}}, type);
}
template <template <class> class F>
Execute of_signed(Type type) {
  return pick(
      {{kS16, lanewise<F<int16_t>>}, {kS32, lanewise<F<int32_t>>}, {kS64, lanewise<F<int64_t>>}},
      type);
}
template <template <class> class F>
Execute of_words(Type type) {
  return pick({{kB32, lanewise<F<uint32_t>>}, {kB64, lanewise<F<uint64_t>>}}, type);
}
template <template <class> class F>
Execute of_bits(Type type) {
  return type == kB16 ? lanewise<F<uint16_t>> : of_words<F>(type);
}
template <template <class> class F>
Execute of_logic(Type type) {
  return type == kPred ? lanewise<F<uint64_t>> : of_bits<F>(type);
}

void finish(Decoder& d, Execute execute, int operands) {
  d.inst.execute = execute;
  d.inst.cls = Class::kInteger;
  d.finish({operands});
}

bool is_integer(Type type) { return type.kind == 'u' || type.kind == 's'; }

// Names that floating point has too.
template <template <class> class F, Common Op, int Operands>
void decode_common(Decoder& d) {
  const Type type = d.type();
  if (!is_integer(type)) return decode_float(d, Op, type);
  finish(d, of_integers<F>(type), Operands);
}

template <template <class> class F, class Saturating, Common Op>
void decode_add(Decoder& d) {
  const Type type = d.type();
  if (!is_integer(type)) return decode_float(d, Op, type);
  if (type == kS32 && d.take("sat")) return finish(d, lanewise<Saturating>, 3);
  finish(d, of_integers<F>(type), 3);
}

template <template <class> class F, Common Op>
void decode_sign(Decoder& d) {
  const Type type = d.type();
  if (!is_integer(type)) return decode_float(d, Op, type);
  finish(d, of_signed<F>(type), 2);
}

void decode_mul(Decoder& d) {
  const Type type = d.type();
  if (!is_integer(type)) return decode_float(d, Common::kMul, type);
  switch (d.choose({"lo", "hi", "wide"})) {
    case 0:
      return finish(d, of_integers<MulLo>(type), 3);
    case 1:
      return finish(d, of_integers<MulHi>(type), 3);
    case 2:
      return finish(d, of_narrow<MulWide>(type), 3);
    default:
      d.fail("integer mul needs .lo, .hi or .wide");
  }
}

void decode_mad(Decoder& d) {
  const Type type = d.type();
  if (!is_integer(type)) d.fail("mad is supported for integers; floating point has fma");
  switch (d.choose({"lo", "hi", "wide"})) {
    case 0:
      return finish(d, of_integers<MadLo>(type), 4);
    case 1:
      return finish(d, of_integers<MadHi>(type), 4);
    case 2:
      return finish(d, of_narrow<MadWide>(type), 4);
    default:
      d.fail("integer mad needs .lo, .hi or .wide");
  }
}

template <template <class> class F, int Operands>
void decode_integer(Decoder& d) {
  finish(d, of_integers<F>(d.type()), Operands);
}

void predicate_immediates(Decoder& d) {
  for (Arg& arg : d.inst.args) {
    if (arg.kind == Arg::Kind::kImmediate) arg.value = arg.value != 0;
  }
}

template <template <class> class F>
void decode_logic(Decoder& d) {
  const Type type = d.type();
  if (type == kPred) predicate_immediates(d);
  finish(d, of_logic<F>(type), 3);
  if (type == kPred) d.inst.cls = Class::kPredicate;
}

void decode_not(Decoder& d) {
  const Type type = d.type();
  if (type == kPred) predicate_immediates(d);
  finish(d, type == kPred ? lanewise<NotPredicate> : of_bits<Not>(type), 2);
  if (type == kPred) d.inst.cls = Class::kPredicate;
}

template <template <class> class F, int Operands>
void decode_words(Decoder& d) {
  finish(d, of_words<F>(d.type()), Operands);
}

template <template <class> class F, int Operands>
void decode_bits(Decoder& d) {
  finish(d, of_bits<F>(d.type()), Operands);
}

void decode_shr(Decoder& d) {
  const Type type = d.type();
  const Execute execute = of_bits<Shr>(type);
  finish(d, execute ? execute : of_integers<Shr>(type), 3);
}

void decode_shf(Decoder& d) {
  const int direction = d.choose({"l", "r"});
  const int mode = d.choose({"wrap", "clamp"});
  if (direction < 0 || mode < 0 || !(d.type() == kB32))
    d.fail("shf is {.l, .r}{.wrap, .clamp}.b32");
  constexpr Execute kTable[2][2] = {{lanewise<Shf<true, true>>, lanewise<Shf<true, false>>},
                                    {lanewise<Shf<false, true>>, lanewise<Shf<false, false>>}};
  finish(d, kTable[direction][mode], 4);
}

template <class F, int Operands>
void decode_b32(Decoder& d) {
  finish(d, d.type() == kB32 ? lanewise<F> : nullptr, Operands);
}

void decode_bfe(Decoder& d) {
  finish(d,
         pick({{kU32, lanewise<Bfe<uint32_t>>},
               {kS32, lanewise<Bfe<int32_t>>},
               {kU64, lanewise<Bfe<uint64_t>>},
               {kS64, lanewise<Bfe<int64_t>>}},
              d.type()),
         4);
}

template <bool ShiftAmount>
Execute bfind(Type type) {
  return pick({{kU32, lanewise<Bfind<uint32_t, ShiftAmount>>},
               {kS32, lanewise<Bfind<int32_t, ShiftAmount>>},
               {kU64, lanewise<Bfind<uint64_t, ShiftAmount>>},
               {kS64, lanewise<Bfind<int64_t, ShiftAmount>>}},
              type);
}

void decode_bfind(Decoder& d) {
  const bool shift_amount = d.take("shiftamt");
  const Type type = d.type();
  finish(d, shift_amount ? bfind<true>(type) : bfind<false>(type), 2);
}

}  // namespace

void add_integer_ops() {
  add_op("add", decode_add<Add, AddSat, Common::kAdd>);
  add_op("sub", decode_add<Sub, SubSat, Common::kSub>);
  add_op("mul", decode_mul);
  add_op("mad", decode_mad);
  add_op("div", decode_common<Div, Common::kDiv, 3>);
  add_op("rem", decode_integer<Rem, 3>);
  add_op("neg", decode_sign<Neg, Common::kNeg>);
  add_op("abs", decode_sign<Abs, Common::kAbs>);
  add_op("min", decode_common<Min, Common::kMin, 3>);
  add_op("max", decode_common<Max, Common::kMax, 3>);
  add_op("sad", decode_integer<Sad, 4>);
  add_op("and", decode_logic<And>);
  add_op("or", decode_logic<Or>);
  add_op("xor", decode_logic<Xor>);
  add_op("not", decode_not);
  add_op("cnot", decode_bits<Cnot, 2>);
  add_op("lop3", decode_b32<Lop3, 5>);
  add_op("shl", decode_bits<Shl, 3>);
  add_op("shr", decode_shr);
  add_op("shf", decode_shf);
  add_op("prmt", decode_b32<Prmt, 4>);
  add_op("bfe", decode_bfe);
  add_op("bfi", decode_words<Bfi, 5>);
  add_op("bfind", decode_bfind);
  add_op("brev", decode_words<Brev, 2>);
  add_op("clz", decode_words<Clz, 2>);
  add_op("popc", decode_words<Popc, 2>);
}

}  // namespace ptxsim
