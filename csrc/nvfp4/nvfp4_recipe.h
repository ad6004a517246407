// What the kernels of every device agree on about NVFP4. Torch-free, no CUDA.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace vidk {

constexpr int64_t kNvfp4Block = 16;  // elements that share a scale

// How a block's scale is chosen; vidk.reference.nvfp4 defines each.
enum class Nvfp4Recipe : int32_t { kPlain, kFourOverSix, kSearch };

inline std::optional<Nvfp4Recipe> nvfp4_recipe(const std::string& name) {
  if (name == "plain") return Nvfp4Recipe::kPlain;
  if (name == "4/6") return Nvfp4Recipe::kFourOverSix;
  if (name == "search") return Nvfp4Recipe::kSearch;
  return std::nullopt;
}

}  // namespace vidk
