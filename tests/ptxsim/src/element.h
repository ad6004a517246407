// Elements of matrix operands as float, which holds every value of every one of these formats.
#pragma once

#include <array>
#include <cstring>

#include "narrow.h"
#include "text.h"

namespace ptxsim {

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// All values of an 8-bit format.
inline std::array<float, 256> values_of(const Format& format) {
  std::array<float, 256> values;
  for (uint32_t code = 0; code < 256; ++code) {
    values[code] = static_cast<float>(decode(format, code));
  }
  return values;
}

// e2m1 in the middle of a byte, as products of mixed formats have it (kind::f8f6f4).
constexpr Type kPaddedE2m1{'m', 8};

// The element of `type` in the low bits.
inline float element_value(Type type, uint32_t bits) {
  static const std::array<float, 256> e4m3 = values_of(kE4m3), e5m2 = values_of(kE5m2);
  constexpr float kE2m1Values[] = {0,    0.5,  1,  1.5,  2,  3,  4,  6,
                                   -0.f, -0.5, -1, -1.5, -2, -3, -4, -6};
  switch (type.kind) {
    case 'h':
      return widen(Half{static_cast<uint16_t>(bits)});
    case 'B':
      return widen(Brain{static_cast<uint16_t>(bits)});
    case 'T':
      return float_of(bits & 0xffffe000);  // the low 13 bits are not looked at
    case 'E':
      return e4m3[bits & 0xff];
    case 'F':
      return e5m2[bits & 0xff];
    case 'M':
      return kE2m1Values[bits & 15];
    case 'm':
      return kE2m1Values[bits >> 2 & 15];
    case 'U':
      return static_cast<float>(decode_ue8m0(bits & 0xff));
    case 'V':
      return e4m3[bits & 0x7f];
    default:
      return float_of(bits);
  }
}

// Element `i` of a little-endian run of packed elements.
inline float element_at(Type type, const void* packed, int i) {
  const auto* from = static_cast<const uint8_t*>(packed);
  const auto at = static_cast<size_t>(i) * type.bits / 8;
  if (type.bits == 4) return element_value(type, from[at] >> 4 * (i & 1));
  uint32_t bits = 0;
  std::memcpy(&bits, from + at, type.bits / 8u);
  return element_value(type, bits);
}

}  // namespace ptxsim
