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

// The element of `type` in the low bits.
inline float element_value(Type type, uint32_t bits) {
  static const std::array<float, 256> e4m3 = values_of(kE4m3), e5m2 = values_of(kE5m2);
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
    default:
      return float_of(bits);
  }
}

// Element `i` of a little-endian run of packed elements.
inline float element_at(Type type, const void* packed, int i) {
  uint32_t bits = 0;
  const auto bytes = static_cast<size_t>(type.bits / 8);
  std::memcpy(&bits, static_cast<const uint8_t*>(packed) + static_cast<size_t>(i) * bytes, bytes);
  return element_value(type, bits);
}

}  // namespace ptxsim
