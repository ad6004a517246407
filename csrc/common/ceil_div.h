// No torch header, no CUDA.
#pragma once

#include <cstdint>

namespace vidk {

// Of what is not negative, and without a sum that could overflow.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace vidk
