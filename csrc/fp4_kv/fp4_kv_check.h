// What qk_norm_rope_nvfp4_kv_write demands of its arguments on every device; the host data comes on
// top.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/fp4_layout.h"
#include "fp4_kv/fp4_recipe.h"
#include "norm_rope/norm_rope_check.h"

namespace vidk {

// A contiguous tensor of one shape and dtype.
inline void require_dense(const char* op, const char* arg, const Tensor& x,
                          const std::vector<int64_t>& sizes, const char* layout, ScalarType dtype,
                          const std::string& expected, const Tensor& q) {
  check_shaped(op, arg, x, sizes, layout);
  if (x.scalar_type() != dtype) fail(op, arg, "dtype " + dtype_of(x), "dtype " + expected);
  check_dense(op, arg, x);
  check_on_device(op, arg, x, "q", q);
}

inline Fp4Recipe check_qk_norm_rope_nvfp4_kv_write(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_weight,
    const Tensor& k_weight, double eps, const Tensor& frame_pos, const Tensor& frame_slot,
    const Tensor& time_freqs, const Tensor& space_freqs, int64_t height, int64_t width,
    const Tensor& k_codes, const Tensor& k_scales, const std::optional<Tensor>& k_mean,
    const Tensor& v_cache, const std::string& name, const std::optional<Tensor>& perm) {
  const char* op = "qk_norm_rope_nvfp4_kv_write";
  check_activation(op, "q", q);
  check_like(op, "k", k, "q", q);
  check_like(op, "v", v, "q", q);
  check_norm_weight(op, "q_weight", q_weight, "q", q);
  check_norm_weight(op, "k_weight", k_weight, "q", q);
  if (!(eps >= 0)) fail(op, "eps", float_of(eps), "a value of at least 0");
  check_int_vector(op, "frame_pos", frame_pos, "q", q);
  check_int_vector(op, "frame_slot", frame_slot, "q", q);
  check_rope_tables(op, "q", q, time_freqs, space_freqs, height, width);
  check_grid_size(op, q, frame_pos, height, width);

  const auto known = fp4_recipe(name);
  if (!known) {
    fail(op, "recipe", "'" + name + "'",
         "'plain', 'default', 'accurate', 'accurate256' or 'mxfp8'");
  }
  const Fp4Recipe recipe = *known;
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), dim = q.size(3);
  const int64_t frame_tokens = height * width;
  if (dim < 1 || dim % recipe.dim_unit() != 0) {
    fail(op, "q", "D = " + std::to_string(dim),
         "a multiple of " + std::to_string(recipe.dim_unit()) + " for the recipe '" + name + "'");
  }
  if (tokens % frame_tokens != 0) {
    fail(op, "q", std::to_string(tokens) + " tokens",
         "whole frames of " + std::to_string(frame_tokens));
  }
  check_block_fits(op, "q", q, "frame_pos", frame_pos, frame_tokens);
  check_block_fits(op, "q", q, "frame_slot", frame_slot, frame_tokens);

  if (v_cache.dim() != 4) {
    fail(op, "v_cache", "shape " + shape_of(v_cache), "4 dimensions [B, S_cap, H, D]");
  }
  if (v_cache.scalar_type() != q.scalar_type() &&
      v_cache.scalar_type() != ScalarType::Float8_e4m3fn) {
    fail(op, "v_cache", "dtype " + dtype_of(v_cache),
         "the dtype " + dtype_of(q) + " of q, or float8_e4m3fn");
  }
  if (v_cache.size(0) != batch || v_cache.size(2) != heads || v_cache.size(3) != dim) {
    fail(op, "v_cache", "shape " + shape_of(v_cache),
         "[B, S_cap, H, D] with the B, H and D of q " + shape_of(q));
  }
  const int64_t capacity = v_cache.size(1);
  if (capacity % frame_tokens != 0) {
    fail(op, "v_cache", std::to_string(capacity) + " rows",
         "whole slots of " + std::to_string(frame_tokens));
  }
  check_unit_stride(op, "v_cache", v_cache);
  check_on_device(op, "v_cache", v_cache, "q", q);

  const int64_t tiles = capacity / frame_tokens * fp4_tiles(frame_tokens);
  const std::string for_recipe = " for the recipe '" + name + "'";
  require_dense(op, "k_codes", k_codes, {batch, heads, capacity, recipe.row_bytes(dim)},
                "[B, H, S_cap, bytes]", ScalarType::Byte, "uint8", q);
  require_dense(op, "k_scales", k_scales,
                {batch, heads, tiles, recipe.row_scales(dim) / 4, 32, 4, 4},
                "[B, H, tiles of 128 rows, scales / 4, 32, 4, 4]",
                recipe.is_mxfp8() ? ScalarType::Float8_e8m0fnu : ScalarType::Float8_e4m3fn,
                (recipe.is_mxfp8() ? "float8_e8m0fnu" : "float8_e4m3fn") + for_recipe, q);
  if (recipe.mean && !k_mean) fail(op, "k_mean", "None", "a tensor" + for_recipe);
  if (!recipe.mean && k_mean) fail(op, "k_mean", "a tensor", "None" + for_recipe);
  if (k_mean) {
    require_dense(op, "k_mean", *k_mean, {batch, heads, tiles, dim}, "[B, H, tiles of 128 rows, D]",
                  ScalarType::BFloat16, "bfloat16", q);
  }
  if (perm) {
    require_dense(op, "perm", *perm, {heads, dim}, "[H, D]", ScalarType::Int, "int32", q);
  }

  check_distinct_elements(op, "v_cache", v_cache);
  // All that is read too: a row is written while others, and indices checked before, are still
  // needed.
  check_memory(op,
               {{"k_codes", &k_codes},
                {"k_scales", &k_scales},
                {"k_mean", k_mean ? &*k_mean : nullptr},
                {"v_cache", &v_cache}},
               {{"q", &q},
                {"k", &k},
                {"v", &v},
                {"q_weight", &q_weight},
                {"k_weight", &k_weight},
                {"frame_pos", &frame_pos},
                {"frame_slot", &frame_slot},
                {"time_freqs", &time_freqs},
                {"space_freqs", &space_freqs},
                {"perm", perm ? &*perm : nullptr}});
  return recipe;
}

// Host data.
inline void check_channels(const char* op, const int32_t* perm, int64_t heads, int64_t dim) {
  for (int64_t i = 0; i < heads * dim; ++i) {
    if (perm[i] < 0 || perm[i] >= dim) {
      fail(op, "perm",
           "channel " + std::to_string(perm[i]) + " in place " + std::to_string(i % dim) +
               " of head " + std::to_string(i / dim),
           "a channel from 0 to " + std::to_string(dim - 1));
    }
  }
}

}  // namespace vidk
