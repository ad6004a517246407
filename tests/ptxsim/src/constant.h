// Constant expressions of PTX: folded while they are read.
#pragma once

#include <cstdint>

#include "lexer.h"

namespace ptxsim {

struct Constant {
  uint64_t bits = 0;  // of floating-point numbers too
  bool is_unsigned = false;
  uint8_t float_bits = 0;  // 32, 64, or 0 for integers
};

Constant constant(Cursor& at);

// Without operators between terms, unless there are parentheses around them.
Constant term(Cursor& at);

// What may follow a name: `+4`, `+-4`, `-8+2`, or nothing.
uint64_t offset(Cursor& at);

}  // namespace ptxsim
