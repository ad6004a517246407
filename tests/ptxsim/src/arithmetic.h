// What the families of arithmetic instructions share. add, mul, min ... exist for integers and for
// floating point under one name: ops_integer.cpp registers these names, ops_float.cpp serves them.
#pragma once

#include "lanes.h"
#include "narrow.h"

namespace ptxsim {

// How an arithmetic instruction rounds and clamps; kept in Inst::mode[0].
struct Mode {
  Rounding round = Rounding::kNearest;
  bool ftz = false;     // subnormal inputs and results become zero
  bool sat = false;     // the result is clamped to [0, 1], NaN becomes 0
  bool relu = false;    // negative results become 0
  bool nan = false;     // min, max: NaN wins
  bool finite = false;  // cvt: overflow gives the largest value

  Mode() = default;
  explicit Mode(const Inst& inst)
      : round(static_cast<Rounding>(inst.mode[0] & 0xff)),
        ftz(inst.mode[0] >> 8 & 1),
        sat(inst.mode[0] >> 9 & 1),
        relu(inst.mode[0] >> 10 & 1),
        nan(inst.mode[0] >> 11 & 1),
        finite(inst.mode[0] >> 12 & 1) {}
  uint32_t pack() const {
    return static_cast<uint32_t>(round) | ftz << 8 | sat << 9 | relu << 10 | nan << 11 |
           finite << 12;
  }
  bool plain() const { return pack() == 0; }
};

// lanewise for function objects that are made from the instruction.
template <class F, class R, class... A, size_t... I>
Flow map_modal(Warp& w, const Inst& inst, Mask active, R (F::*)(A...) const,
               std::index_sequence<I...>) {
  Lanes room[sizeof...(A)], out;
  const uint64_t* in[] = {w.read(inst.arg(static_cast<int>(I) + 1), room[I])...};
  const F f(inst);
#pragma GCC ivdep  // lanes do not depend on each other
  for (int l = 0; l < kLanes; ++l) out.v[l] = to_bits<R>(f(from_bits<A>(in[I][l])...));
  w.write(inst.arg(0), active, out.v);
  return Flow::kNext;
}

template <class F, class R, class... A>
Flow map_modal(Warp& w, const Inst& inst, Mask active, R (F::*call)(A...) const) {
  return map_modal<F>(w, inst, active, call, std::index_sequence_for<A...>{});
}

template <class F>
Flow modal(Warp& w, const Inst& inst, Mask active) {
  return map_modal<F>(w, inst, active, &F::operator());
}

// The bits of x with subnormals replaced by zero of the same sign.
inline float flush(float x) {
  const uint32_t bits = static_cast<uint32_t>(to_bits(x));
  return from_bits<float>(bits & 0x7f800000 ? bits : bits & 0x80000000);
}
inline Half flush(Half x) {
  return x.bits & 0x7c00 ? x : Half{static_cast<uint16_t>(x.bits & 0x8000)};
}
inline Brain flush(Brain x) {
  return x.bits & 0x7f80 ? x : Brain{static_cast<uint16_t>(x.bits & 0x8000)};
}
inline double flush(double x) { return x; }  // f64 has no .ftz

// Clamps a result as the instruction's .ftz, .sat and .relu ask for.
template <class T>
inline T clamp(const Mode& m, T x) {
  if (m.ftz) x = flush(x);
  if (m.sat) {
    if (!(widen(x) > 0)) return narrow<T>(0.0, Rounding::kNearest);
    if (widen(x) > 1) return narrow<T>(1.0, Rounding::kNearest);
  }
  if (m.relu && widen(x) <= 0) return narrow<T>(0.0, Rounding::kNearest);
  return x;
}

constexpr Type kTypeF16{'h', 16}, kTypeF16x2{'h', 32}, kTypeBf16{'B', 16}, kTypeBf16x2{'B', 32},
    kTypeF32{'f', 32}, kTypeF64{'f', 64}, kTypeF32x2{'w', 64};

// Gives the floating-point immediates of the operands the width of the instruction's type.
void fit_immediates(Decoder& d, Type type);

void add_compare_ops();  // setp, set, selp, slct

// The floating-point side of names that integers have too; `type` has been taken.
enum class Common : uint8_t { kAdd, kSub, kMul, kDiv, kNeg, kAbs, kMin, kMax };
void decode_float(Decoder& d, Common op, Type type);

}  // namespace ptxsim
