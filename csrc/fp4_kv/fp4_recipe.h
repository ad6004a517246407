// How rows of q and k are quantised for FP4 attention; vidk.reference.fp4 defines each recipe.
// Torch-free, no CUDA.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace vidk {

constexpr int64_t kFp4Samples = 16;  // rows of a tile that its mean is taken over
constexpr int64_t kFp4MaxCross = 64;

enum class Fp4Scale : int32_t { kPlain, kFourOverSix, kMxfp8 };

struct Fp4Recipe {
  Fp4Scale scale;
  int32_t cross;  // leading channels whose rounding errors are carried in further columns
  bool mean;      // of each tile, taken off its keys

  bool is_mxfp8() const { return scale == Fp4Scale::kMxfp8; }
  int64_t block() const { return is_mxfp8() ? 32 : 16; }  // elements that share a scale
  int64_t dim_unit() const { return 4 * block(); }        // a tile has whole columns only
  int64_t depth(int64_t dim) const { return dim + 2 * cross; }
  int64_t bytes_of(int64_t elements) const { return is_mxfp8() ? elements : elements / 2; }
  int64_t row_bytes(int64_t dim) const { return bytes_of(depth(dim)); }
  int64_t row_scales(int64_t dim) const { return depth(dim) / block(); }
};

inline std::optional<Fp4Recipe> fp4_recipe(const std::string& name) {
  if (name == "plain") return Fp4Recipe{Fp4Scale::kPlain, 0, false};
  if (name == "default") return Fp4Recipe{Fp4Scale::kFourOverSix, 0, true};
  if (name == "accurate") return Fp4Recipe{Fp4Scale::kFourOverSix, 32, true};
  if (name == "accurate256") return Fp4Recipe{Fp4Scale::kFourOverSix, 64, true};
  if (name == "mxfp8") return Fp4Recipe{Fp4Scale::kMxfp8, 0, false};
  return std::nullopt;
}

}  // namespace vidk
