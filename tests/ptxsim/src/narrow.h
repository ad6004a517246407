// Rounding to the formats of PTX, once, from a double.
//
// A double holds every product of two f32, f16 or bf16 exactly. What it cannot hold is rounded to
// odd first: the last bit of an inexact value is set, so it still tells which side of every coarser
// boundary the exact value lies on, and rounding it again (to at most 51 bits) rounds the exact
// value.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace ptxsim {

enum class Rounding : uint8_t {
  kNearest,  // ties to even
  kZero,
  kDown,
  kUp,
  kAway,  // nearest, ties away from zero
};

// --- exact arithmetic ---------------------------------------------------------------------------

// The double `near` stands for near + error, |error| at most half a unit in its last place.
inline double to_odd(double near, double error) {
  int64_t bits;
  std::memcpy(&bits, &near, sizeof bits);
  if (error == 0 || !std::isfinite(near) || (bits & 1)) return near;
  bits += (error > 0) == (near > 0) ? 1 : -1;
  std::memcpy(&near, &bits, sizeof bits);
  return near;
}

inline double odd_add(double a, double b, Rounding round) {
  const double sum = a + b;
  // Cancellation: -0 when rounding down, unless both were +0.
  if (sum == 0) {
    return round == Rounding::kDown && (std::signbit(a) || std::signbit(b)) ? -0.0 : sum;
  }
  const double part = sum - a;
  return to_odd(sum, (a - (sum - part)) + (b - part));
}

inline double odd_divide(double a, double b) {
  const double quotient = a / b;
  if (!std::isfinite(quotient) || std::isinf(b)) return quotient;
  return to_odd(quotient, std::fma(-quotient, b, a) * (b > 0 ? 1 : -1));
}

inline double odd_sqrt(double a) {
  const double root = std::sqrt(a);
  return std::isfinite(root) ? to_odd(root, std::fma(-root, root, a)) : root;
}

inline double odd_from(int64_t a) {
  const double near = static_cast<double>(a);
  // 2^63, to which the largest integers round, is not an int64.
  return to_odd(near, near == 0x1p63 ? -1.0 : static_cast<double>(a - static_cast<int64_t>(near)));
}

inline double odd_from(uint64_t a) {
  const double near = static_cast<double>(a);
  if (near == 0x1p64) return to_odd(near, -1.0);
  return to_odd(near, static_cast<double>(static_cast<int64_t>(a - static_cast<uint64_t>(near))));
}

// Rounds to an integer, in the same format. Nearest is the mode the host runs in.
inline double to_integral(double x, Rounding round) {
  switch (round) {
    case Rounding::kZero:
      return std::trunc(x);
    case Rounding::kDown:
      return std::floor(x);
    case Rounding::kUp:
      return std::ceil(x);
    default:
      return std::nearbyint(x);
  }
}

// --- formats with a sign, an exponent and a mantissa --------------------------------------------

struct Format {
  int bits, mantissa, bias;
  uint32_t largest;   // code of the largest finite value
  uint32_t infinity;  // 0: the format has none
  uint32_t nan;       // as PTX writes it
};

constexpr Format kF32{32, 23, 127, 0x7f7fffff, 0x7f800000, 0x7fffffff};
constexpr Format kTf32{19, 10, 127, 0x3fbff, 0x3fc00, 0x3ffff};
constexpr Format kF16{16, 10, 15, 0x7bff, 0x7c00, 0x7fff};
constexpr Format kBf16{16, 7, 127, 0x7f7f, 0x7f80, 0x7fff};
constexpr Format kE4m3{8, 3, 7, 0x7e, 0, 0x7f};
constexpr Format kE5m2{8, 2, 15, 0x7b, 0x7c, 0x7f};
constexpr Format kE2m1{4, 1, 1, 0x7, 0, 0x7};  // no NaN: it becomes the largest value

// The code of x; `finite` keeps what is too large, infinity included, at the largest value.
inline uint32_t encode(const Format& f, double x, Rounding round, bool finite = false) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool negative = bits >> 63;
  bits &= ~(1ull << 63);
  const uint64_t infinity = 0x7ffull << 52;
  if (bits > infinity) return f.nan;
  const uint32_t sign = static_cast<uint32_t>(negative) << (f.bits - 1);
  const int exponent = static_cast<int>(bits >> 52) - 1023;
  const int smallest = 1 - f.bias;
  // Below the normal range the unit in the last place stays that of the smallest exponent.
  const int shift = std::min(62, 52 - f.mantissa + std::max(0, smallest - exponent));
  const uint64_t hidden = bits >> 52 ? 1ull << 52 : 0;
  const uint64_t mantissa = (bits & ((1ull << 52) - 1)) | hidden;
  const uint64_t kept = mantissa >> shift;
  const uint64_t rest = mantissa - (kept << shift);
  const uint64_t half = 1ull << (shift - 1);
  bool up = false;
  switch (round) {
    case Rounding::kNearest:
      up = rest > half || (rest == half && (kept & 1));
      break;
    case Rounding::kAway:
      up = rest >= half;
      break;
    case Rounding::kDown:
      up = negative && rest != 0;
      break;
    case Rounding::kUp:
      up = !negative && rest != 0;
      break;
    case Rounding::kZero:
      break;
  }
  // `kept` holds the leading one, which counts as the first step of the exponent.
  const uint64_t steps = static_cast<uint64_t>(std::max(0, exponent - smallest));
  const uint64_t code = kept + up + (steps << f.mantissa);
  if (code <= f.largest) return sign | static_cast<uint32_t>(code);
  const bool inward = round == Rounding::kZero || (round == Rounding::kDown && !negative) ||
                      (round == Rounding::kUp && negative);
  if (finite || (inward && bits != infinity)) return sign | f.largest;
  return f.infinity ? sign | f.infinity : f.nan;
}

inline double decode(const Format& f, uint32_t code) {
  const uint32_t magnitude = code & ((1u << (f.bits - 1)) - 1);
  const double sign = code >> (f.bits - 1) & 1 ? -1 : 1;
  if (magnitude > f.largest) {
    return magnitude == f.infinity ? sign * std::numeric_limits<double>::infinity()
                                   : std::numeric_limits<double>::quiet_NaN();
  }
  const uint32_t exponent = magnitude >> f.mantissa;
  const uint32_t fraction = magnitude & ((1u << f.mantissa) - 1);
  const uint32_t leading = exponent ? 1u << f.mantissa : 0;
  const int scale = static_cast<int>(exponent ? exponent : 1) - f.bias - f.mantissa;
  return std::ldexp(sign * (leading | fraction), scale);
}

// --- ue8m0: powers of two -----------------------------------------------------------------------

// `round` is kZero or kUp, of the magnitude; the sign is dropped.
inline uint32_t encode_ue8m0(double x, Rounding round, bool finite) {
  if (std::isnan(x)) return 0xff;
  const double magnitude = std::fabs(x);
  if (magnitude <= 0x1p-127) return 0;
  if (std::isinf(magnitude)) return finite ? 0xfe : 0xff;
  int exponent;
  const double fraction = std::frexp(magnitude, &exponent);  // in [0.5, 1)
  const int code = exponent + 126 + (round == Rounding::kUp && fraction != 0.5);
  return static_cast<uint32_t>(std::max(0, std::min(code, finite ? 0xfe : 0xff)));
}

inline double decode_ue8m0(uint32_t code) {
  return code == 0xff ? std::numeric_limits<double>::quiet_NaN()
                      : std::ldexp(1.0, static_cast<int>(code) - 127);
}

// --- values in registers ------------------------------------------------------------------------

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};
template <class T>
struct Pair {
  T low, high;
};

inline float widen(Brain x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Shifts the exponent field into place and corrects its bias by a multiplication, which also
// normalises subnormals; only infinity and NaN need their exponent set.
inline float widen(Half x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &magnitude, sizeof value);
  value *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits |= magnitude >= 0x0f800000 ? 0x7f800000 : 0;
  bits |= static_cast<uint32_t>(x.bits & 0x8000) << 16;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

// What arithmetic makes of a NaN.
inline float canonical(float x) {
  const uint32_t nan = kF32.nan;
  float value;
  std::memcpy(&value, &nan, sizeof value);
  return x != x ? value : x;
}
inline double canonical(double x) { return x; }

// Rounds to T; exact for doubles, whatever `round`.
template <class T>
inline T narrow(double x, Rounding round, bool finite = false);

template <>
inline double narrow<double>(double x, Rounding, bool) {
  return x;
}
template <>
inline float narrow<float>(double x, Rounding round, bool finite) {
  if (round == Rounding::kNearest && !finite) return canonical(static_cast<float>(x));
  const uint32_t bits = encode(kF32, x, round, finite);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <>
inline Half narrow<Half>(double x, Rounding round, bool finite) {
  return {static_cast<uint16_t>(encode(kF16, x, round, finite))};
}
template <>
inline Brain narrow<Brain>(double x, Rounding round, bool finite) {
  return {static_cast<uint16_t>(encode(kBf16, x, round, finite))};
}

// Nearest bf16 of an f32: the conversion that attention does most.
inline Brain nearest_brain(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return {static_cast<uint16_t>(x != x ? kBf16.nan : rounded)};
}

}  // namespace ptxsim
