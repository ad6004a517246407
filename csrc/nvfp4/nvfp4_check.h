// What nvfp4_quantize demands of its arguments on every device.
#pragma once

#include <string>

#include "common/check.h"
#include "nvfp4/nvfp4_recipe.h"

namespace vidk {

inline Nvfp4Recipe check_nvfp4_quantize(const Tensor& x, const std::string& recipe) {
  const char* op = "nvfp4_quantize";
  check_activation(op, "x", x);
  if (x.size(3) % kNvfp4Block != 0) {
    fail(op, "x", "D = " + std::to_string(x.size(3)), "a multiple of 16");
  }
  const auto known = nvfp4_recipe(recipe);
  if (!known) fail(op, "recipe", "'" + recipe + "'", "'plain', '4/6' or 'search'");
  return *known;
}

}  // namespace vidk
