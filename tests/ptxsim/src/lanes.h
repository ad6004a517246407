// Lane-wise execution: one function of scalars becomes an instruction of a warp.
#pragma once

#include <cstring>
#include <type_traits>

#include "machine.h"

namespace ptxsim {

// The PTX value of type T in the low bits of a register, and back (zero-extended).
template <class T>
inline T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
inline uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

// d = F(a, b, ...) with operand 0 as d; the arguments' types are those of F's call operator, a
// struct such as  struct Add { uint32_t operator()(uint32_t a, uint32_t b) const { return a + b; }
// }; F is called for inactive lanes too, with whatever their registers hold.
template <class F, class R, class... A, size_t... I>
Flow map_lanes(Warp& w, const Inst& inst, Mask active, R (F::*)(A...) const,
               std::index_sequence<I...>) {
  Lanes room[sizeof...(A) + 1];
  const uint64_t* in[] = {w.read(inst.arg(static_cast<int>(I) + 1), room[I])...};
  uint64_t* out = room[sizeof...(A)].v;
  const F f;
// Registers do not overlap `out`, or are it: lane l is all that iteration l touches.
#pragma GCC ivdep
  for (int l = 0; l < kLanes; ++l) out[l] = to_bits<R>(f(from_bits<A>(in[I][l])...));
  w.write(inst.arg(0), active, out);
  return Flow::kNext;
}

template <class F, class R, class... A>
Flow map_lanes(Warp& w, const Inst& inst, Mask active, R (F::*call)(A...) const) {
  return map_lanes<F>(w, inst, active, call, std::index_sequence_for<A...>{});
}

template <class F>
Flow lanewise(Warp& w, const Inst& inst, Mask active) {
  return map_lanes<F>(w, inst, active, &F::operator());
}

}  // namespace ptxsim
